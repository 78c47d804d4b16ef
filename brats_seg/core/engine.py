"""Independent tasks -> the outcome of each task: computed in this process, in local processes, or on a Dask
cluster.
"""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from brats_seg.core.dask_engine import Cluster
from brats_seg.core.local_engine import map_in_processes
from brats_seg.core.outcome import Outcome, T, V, attempt
from brats_seg.core.progress import track

__all__ = ("Cluster", "Outcome", "map_in_order", "map_unordered", "run_tasks")


def run_tasks(
    function: Callable[[T], V],
    tasks: Sequence[T],
    *,
    workers: int,
    label: str,
    cluster: Cluster | None = None,
) -> Generator[Outcome[T, V], None, None]:
    """`map_unordered` with a progress bar."""
    with closing(map_unordered(function, tasks, workers=workers, cluster=cluster)) as outcomes:
        yield from track(outcomes, total=len(tasks), label=label)


def map_unordered(
    function: Callable[[T], V],
    tasks: Sequence[T],
    *,
    workers: int,
    threads: int | None = None,
    cluster: Cluster | None = None,
) -> Generator[Outcome[T, V], None, None]:
    """Call a function on each task and yield the outcomes in the order in which the tasks end.

    An exception of the function is the error of its task. A task whose process is killed (out of memory, a
    signal) is tried again: with local processes once, alone, after all other tasks; on a cluster until it has
    ended three workers. Then it is an error. Other tasks are not affected. Close the generator
    (`contextlib.closing`) if an error may leave it unfinished: this ends the processes.

    Args:
        function: function at module level, because processes import it.
        tasks: picklable values.
        workers: number of local processes. With 1 the tasks run in this process, one after the other, and a
            kill ends this process. Not used with a cluster.
        threads: number of threads of each local process; None leaves it to the libraries. It does not change
            tasks in this process.
        cluster: if given, its workers run the tasks instead of local processes.

    Raises:
        InputError: the scheduler of the cluster has ended.
    """
    if cluster is not None:
        yield from cluster.map_unordered(function, tasks)
    elif workers == 1:
        for position, task in enumerate(tasks):
            yield attempt(function, task, position)
    else:
        yield from map_in_processes(function, tasks, workers=workers, threads=threads)


def map_in_order(
    function: Callable[[T], V],
    tasks: Sequence[T],
    *,
    threads: int,
    label: str,
    on_death: Callable[[T, BaseException], V],
    line: Callable[[V], str] | None = None,
    cluster: Cluster | None = None,
) -> list[V]:
    """The values of a function in the order of the tasks, computed by local threads or by the workers of a
    cluster. An error of the function ends the whole call.

    Args:
        function: function at module level.
        tasks: picklable values.
        threads: number of tasks at a time in this process.
        label: text of the progress bar.
        on_death: the value of a task that ended three workers of the cluster.
        line: returns the log line of a value, for a standard error that is not a terminal.
        cluster: if given, its workers run the tasks instead of threads.
    """
    if cluster is None:
        with ThreadPoolExecutor(threads) as pool:
            return list(track(pool.map(function, tasks), total=len(tasks), label=label, line=line))
    values: dict[int, V] = {}

    def keep(outcome: Outcome[T, V]) -> V:
        died = outcome.error if outcome.died else None
        values[outcome.position] = on_death(outcome.task, died) if died else outcome.unwrap()
        return values[outcome.position]

    with closing(cluster.map_unordered(function, tasks)) as outcomes:
        deque(track(map(keep, outcomes), total=len(tasks), label=label, line=line), maxlen=0)
    return [values[position] for position in range(len(tasks))]
