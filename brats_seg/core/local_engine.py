"""Run tasks in processes of this machine. Each process is an executor of the standard library with one
worker.

In loky, and in an executor with many workers, one dead worker ends all tasks. In pebble, a worker that is
killed while it holds a shared lock stops the other workers. Executors with one worker share nothing.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from brats_seg.core.outcome import Outcome, T, V, WorkerDiedError, attempt

_THREADS = tuple(f"{x}_NUM_THREADS" for x in ("OMP", "OPENBLAS", "MKL", "NUMBA"))  # read at an import
_NUMBER = "BRATS_SEG_WORKER"
_PATIENCE_S = 30.0  # time that a worker has to save its work after it is told to stop


def map_in_processes(
    function: Callable[[T], V], tasks: Sequence[T], *, workers: int, threads: int | None
) -> Iterator[Outcome[T, V]]:
    """As `engine.map_unordered`, in processes that end with this process, even if it is killed."""
    died = []
    for outcome in _run(function, list(enumerate(tasks)), workers=workers, threads=threads):
        if outcome.died:
            died.append(outcome)
        else:
            yield outcome
    for outcome in died:
        yield from _run(function, [(outcome.position, outcome.task)], workers=1, threads=threads)


def worker_number() -> int:
    """The number of this process among the running workers, from 0; 0 in a process that is not a worker."""
    return int(os.environ.get(_NUMBER, "0"))


class _Worker(NamedTuple):
    executor: ProcessPoolExecutor
    process: BaseProcess
    number: int


def _run(
    function: Callable[[T], V], tasks: Sequence[tuple[int, T]], *, workers: int, threads: int | None
) -> Iterator[Outcome[T, V]]:
    queue, idle, free = deque(tasks), deque[_Worker](), deque(range(workers))
    busy: dict[Future[Outcome[T, V]], tuple[_Worker, int, T]] = {}
    done: list[Outcome[T, V]] = []
    try:
        while queue or busy or done:
            while queue and (idle or free):
                worker = idle.popleft() if idle else _hire(free.popleft(), threads)
                position, task = queue.popleft()
                try:
                    busy[worker.executor.submit(_serve, function, task, position)] = worker, position, task
                except BrokenProcessPool:  # killed between two tasks: another worker gets this task
                    _dismiss([worker])
                    free.appendleft(worker.number)
                    queue.appendleft((position, task))
            yield from done  # after the workers have new tasks
            done = []
            for future in wait(busy, return_when=FIRST_COMPLETED).done:
                worker, position, task = busy.pop(future)
                idle.append(worker)
                done.append(_outcome(future, worker, position, task))
                if done[-1].died:
                    _dismiss([idle.pop()])
                    free.appendleft(worker.number)
    finally:
        _dismiss([*idle, *(worker for worker, _, _ in busy.values())])


def _outcome(future: Future[Outcome[T, V]], worker: _Worker, position: int, task: T) -> Outcome[T, V]:
    error = future.exception()  # also the error of a value that cannot be sent between processes
    if isinstance(error, BrokenProcessPool):
        worker.process.join(timeout=_PATIENCE_S)
        error = WorkerDiedError(f"its process ended with {worker.process.exitcode}: killed, or out of memory")
    return future.result() if error is None else Outcome(task, error=error, position=position)


def _hire(number: int, threads: int | None) -> _Worker:
    # spawned, not forked: a fork of a process with running threads (torch, numba) can hang
    executor = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin, (number,))
    earlier, before = set(multiprocessing.active_children()), dict(os.environ)
    settings = dict.fromkeys(_THREADS if threads is not None else (), str(threads))
    os.environ.update(settings)
    executor.submit(os.getpid)  # the first call starts the process
    for name in settings:
        del os.environ[name]
    os.environ.update(before)
    return _Worker(executor, (set(multiprocessing.active_children()) - earlier).pop(), number)


def _dismiss(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        worker.process.join(timeout=_PATIENCE_S)
        worker.process.kill()
        worker.executor.shutdown(cancel_futures=True)


def _begin(number: int) -> None:
    os.environ[_NUMBER] = str(number)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent decides
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _serve(function: Callable[[Any], Any], task: Any, position: int) -> Outcome[Any, Any]:
    try:
        return attempt(function, task, position)
    except KeyboardInterrupt:  # told to stop, and its work is saved; the parent reports this once
        os._exit(1)
