"""The outcome of a task: its value or its error."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

T = TypeVar("T")
V = TypeVar("V")


class WorkerDiedError(OSError):
    """A worker process ended in the middle of its task: killed, out of memory, or crashed."""


@dataclass(frozen=True)
class Outcome(Generic[T, V]):
    """The outcome of a task: its value or its error, and its position among the tasks, from 0."""

    task: T
    value: V | None = None
    error: BaseException | None = None
    position: int = 0

    @property
    def died(self) -> bool:
        """Whether the worker of the task was killed. The error is then an `OSError`."""
        return isinstance(self.error, WorkerDiedError)

    def unwrap(self) -> V:
        """The value. Raises the error if there is no value."""
        if self.error is not None:
            raise self.error
        return cast(V, self.value)


def attempt(function: Callable[[T], V], task: T, position: int) -> Outcome[T, V]:
    """Call a function on a task. Every `Exception` becomes the error of the task.

    An exception that another process cannot read becomes a `RuntimeError` with the same text.
    """
    try:
        return Outcome(task, value=function(task), position=position)
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            error = RuntimeError(f"{type(error).__name__}: {error}")
        return Outcome(task, error=error, position=position)
