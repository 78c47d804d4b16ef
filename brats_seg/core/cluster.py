"""A concurrent.futures executor, local processes or Dask: tasks survive a killed worker."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, Generic, TypeVar

from pebble import ProcessPool
from pebble.common.types import ProcessExpired

from brats_seg.core.progress import track
from brats_seg.errors import UsageError

T = TypeVar("T")
V = TypeVar("V")


@dataclass(frozen=True)
class Outcome(Generic[T, V]):
    """What became of a task: its value, or why there is none."""

    task: T
    value: V | None = None
    error: BaseException | None = None

    @property
    def died(self) -> bool:
        """Whether its worker was killed. The error then is an `OSError` by its class alone."""
        return isinstance(self.error, ProcessExpired)


def run_tasks(function: Callable[[T], V], tasks: Sequence[T], *, workers: int, label: str) -> Iterator[Outcome[T, V]]:
    """Call a function on each task, in processes, and yield what became of each as they end.

    A task whose worker dies (killed, out of memory) is tried once more after all others, alone in a process; then it is an error.
    Other tasks are not touched by it. Any exception the function raises is its task's error.

    Args:
        function: at module level, since processes import it.
        tasks: picklable.
        workers: processes at a time; with 1 the tasks run here, one after the other, and a kill ends this process.
        label: of the progress bar.
    """
    yield from track(_outcomes(function, tasks, workers=workers), total=len(tasks), label=label)


def connect(address: str) -> Executor:
    """An executor on a running Dask scheduler, such as "tcp://host:8786". Raises `UsageError` without the extra `cluster`."""
    try:
        distributed = import_module("distributed")
    except ImportError:
        raise UsageError(f"{address}: Dask is not installed; pip install 'brats-seg[cluster]'") from None
    executor: Executor = distributed.Client(address).get_executor()
    return executor


def _outcomes(function: Callable[[T], V], tasks: Sequence[T], *, workers: int) -> Iterator[Outcome[T, V]]:
    if workers == 1:
        for task in tasks:
            yield _attempt(function, task)
        return
    died: list[T] = []
    for outcome in _run_in_pool(function, tasks, workers=workers):
        if outcome.died:
            died.append(outcome.task)
        else:
            yield outcome
    for task in died:
        yield from _run_in_pool(function, [task], workers=1)


def _attempt(function: Callable[[T], V], task: T) -> Outcome[T, V]:
    try:
        return Outcome(task, value=function(task))
    except Exception as error:
        return Outcome(task, error=error)


def _run_in_pool(function: Callable[[T], V], tasks: Sequence[T], *, workers: int) -> Iterator[Outcome[T, V]]:
    # spawned, not forked: a fork of a process with running threads (torch, numba) can hang
    with ProcessPool(max_workers=workers, context=multiprocessing.get_context("spawn")) as pool:
        running: dict[Future[Any], T] = {pool.schedule(partial(function, task)): task for task in tasks}
        try:
            while running:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    task, error = running.pop(future), future.exception()
                    yield Outcome(task, error=error) if error else Outcome(task, value=future.result())
        except BaseException:
            pool.stop()
            raise
