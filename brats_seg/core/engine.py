"""Independent tasks -> what became of each: in this process, in local processes, or on a Dask cluster."""

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
    """`map_unordered` behind a progress bar."""
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
    """Call a function on each task and yield what became of each, in the order in which the tasks end.

    Any exception that the function raises is the error of its task. A task whose process is killed (out of
    memory, a signal) is tried again: once by local processes, alone, after all others; on a cluster until it
    has ended three workers. Then it is an error. Other tasks are not touched by it. Close the generator
    (`contextlib.closing`) where an error may leave it unfinished: that ends the processes.

    Args:
        function: at module level, since processes import it.
        tasks: picklable.
        workers: local processes at a time. With 1 the tasks run in this process, one after the other, and a
            kill ends this process. Not used with a cluster.
        threads: how many each local process computes with; None leaves it to the libraries. Tasks in this
            process are not touched by it.
        cluster: whose workers run the tasks, instead of local processes.

    Raises:
        InputError: the scheduler of the cluster went away.
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
    """The values of a function that raises nothing that belongs to one task, in the order of the tasks: from
    local threads, or from the workers of a cluster.

    Args:
        function: at module level. Its error ends the call.
        tasks: picklable.
        threads: tasks at a time in this process.
        label: of the progress bar.
        on_death: the value of a task that ended three workers of the cluster.
        line: what a log says of a value, where standard error is no terminal.
        cluster: whose workers run the tasks, instead of threads.
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
