"""A concurrent.futures executor, local processes or Dask: tasks survive a killed worker."""

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from itertools import chain, count
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from brats_seg.core.errors import UsageError
from brats_seg.core.progress import track

T = TypeVar("T")
V = TypeVar("V")

THREAD_SETTINGS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
"""Read by the libraries when a process loads them: a worker gets them before it starts."""

_NUMBER = "BRATS_SEG_WORKER"
_PATIENCE_S = 30.0
"""How long a worker that is told to stop has to save its work."""


class WorkerDiedError(OSError):
    """A worker process ended in the middle of its task: killed, out of memory, or crashed."""


@dataclass(frozen=True)
class Outcome(Generic[T, V]):
    """What became of a task: its value, or why there is none."""

    task: T
    value: V | None = None
    error: BaseException | None = None

    @property
    def died(self) -> bool:
        """Whether its worker was killed. The error then is an `OSError` by its class alone."""
        return isinstance(self.error, WorkerDiedError)


def run_tasks(
    function: Callable[[T], V], tasks: Sequence[T], *, workers: int, label: str
) -> Iterator[Outcome[T, V]]:
    """Call a function on each task behind a progress bar and yield what became of each; see
    `iterate_outcomes`.
    """
    yield from track(iterate_outcomes(function, tasks, workers=workers), total=len(tasks), label=label)


def iterate_outcomes(
    function: Callable[[T], V], tasks: Sequence[T], *, workers: int, threads: int | None = None
) -> Iterator[Outcome[T, V]]:
    """Call a function on each task, in processes that stay alive between tasks, and yield what became of each
    as they end.

    A task whose worker dies (killed, out of memory) is tried once more after all others, alone; then it is an
    error. Other tasks are not touched by it: each worker has a pipe of its own, so that one that dies in the
    middle of a word garbles nobody else's. Any exception the function raises is its task's error. Workers do
    not outlive this process, even when it is killed.

    Args:
        function: at module level, since processes import it.
        tasks: picklable.
        workers: processes at a time; with 1 the tasks run here, one after the other, and a kill ends this
            process.
        threads: how many each process computes with; None leaves it to the libraries. Tasks that run here are
            not touched by it.
    """
    if workers == 1:
        for task in tasks:
            yield _attempt(function, task)
        return
    died: list[T] = []
    for outcome in _run_in_pool(function, tasks, workers=workers, threads=threads):
        if outcome.died:
            died.append(outcome.task)
        else:
            yield outcome
    for task in died:
        yield from _run_in_pool(function, [task], workers=1, threads=threads)


def worker_number() -> int:
    """The number of this process among the workers that live, from 0; 0 in a process that is none."""
    return int(os.environ.get(_NUMBER, "0"))


def connect(address: str) -> Executor:
    """An executor on a running Dask scheduler, such as "tcp://host:8786". Raises `UsageError` without the
    extra `cluster`.
    """
    try:
        distributed = import_module("distributed")
    except ImportError:
        raise UsageError(f"{address}: Dask is not installed; pip install 'brats-seg[cluster]'") from None
    executor: Executor = distributed.Client(address).get_executor()
    return executor


@dataclass(frozen=True, eq=False)
class _Worker:
    """A process, our end of the pipe to it, and its number among those that live."""

    process: BaseProcess
    pipe: Connection
    number: int

    def ask(self, task: Any) -> None:
        with suppress(OSError):  # it died while idle: listening to it says so
            self.pipe.send(task)

    def hear(self, task: T) -> Outcome[T, Any]:
        try:
            value, error = pickle.loads(self.pipe.recv_bytes())
        except (EOFError, OSError, pickle.UnpicklingError):
            self.process.join(timeout=_PATIENCE_S)
            return Outcome(
                task,
                error=WorkerDiedError(
                    f"its process ended with {self.process.exitcode}: killed, or out of memory"
                ),
            )
        return Outcome(task, value=value, error=error)


def _run_in_pool(
    function: Callable[[T], V], tasks: Sequence[T], *, workers: int, threads: int | None
) -> Iterator[Outcome[T, V]]:
    queue, idle, done = deque(tasks), [], []  # type: deque[T], list[_Worker], list[Outcome[T, V]]
    busy: dict[Connection, tuple[_Worker, T]] = {}
    free: Iterator[int] = count()
    try:
        while queue or busy or done:
            while queue and len(busy) < workers:
                worker = idle.pop() if idle else _hire(function, threads, number=next(free))
                busy[worker.pipe] = worker, queue.popleft()
                worker.ask(busy[worker.pipe][1])
            yield from done  # after the workers have something to do again
            done = []
            for pipe in wait(list(busy)) if busy else ():
                assert isinstance(pipe, Connection)
                worker, task = busy.pop(pipe)
                done.append(worker.hear(task))
                if not done[-1].died:
                    idle.append(worker)
                else:
                    free = chain([worker.number], free)
    finally:
        _dismiss([*idle, *(worker for worker, _ in busy.values())])


def _dismiss(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        worker.process.join(timeout=_PATIENCE_S)
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()


def _hire(function: Callable[..., Any], threads: int | None, *, number: int) -> _Worker:
    # spawned, not forked: a fork of a process with running threads (torch, numba) can hang
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, function), daemon=True)
    with _environment(
        {_NUMBER: str(number)} | ({} if threads is None else dict.fromkeys(THREAD_SETTINGS, str(threads)))
    ):
        process.start()
    theirs.close()
    return _Worker(process, ours, number)


@contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(pipe: Connection, function: Callable[[Any], Any]) -> None:
    """The life of a worker: task in, (value, error) out, until the pipe closes."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches all processes of a terminal; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        try:
            outcome = _attempt(function, task)
        except KeyboardInterrupt:  # told to stop, and its work is saved: the parent says so, once
            sys.exit(1)
        pipe.send_bytes(_pickled(outcome))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _attempt(function: Callable[[T], V], task: T) -> Outcome[T, V]:
    try:
        return Outcome(task, value=function(task))
    except Exception as error:
        return Outcome(task, error=error)


def _pickled(outcome: Outcome[Any, Any]) -> bytes:
    """Value and error as bytes that the parent can read, whatever the function returned or raised."""
    try:
        message = pickle.dumps((outcome.value, outcome.error))
        pickle.loads(message)
    except Exception as error:
        what = outcome.error or error
        message = pickle.dumps((None, RuntimeError(f"{type(what).__name__}: {what}")))
    return message
