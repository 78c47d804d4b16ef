"""A grid of jobs -> rows. The grid can be resumed: a finished job is never computed again. Only the parent
process writes.
"""

import hashlib
import json
import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from brats_seg.core.dask_engine import Cluster
from brats_seg.core.engine import map_unordered
from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.files import lock
from brats_seg.core.outcome import Outcome
from brats_seg.core.progress import log_line, progress_bar
from brats_seg.studies.store import Row, Rows, claim, read_cells

Note = Callable[[str, list[Row]], str]
"""Key and rows of a job that has just finished -> the text shown for it."""


class Job(ABC):
    """One task of a grid: a frozen dataclass of everything that determines its rows. Anything else, such as
    the folder of its files, is not part of it.
    """

    @property
    @abstractmethod
    def key(self) -> str:
        """The name of the job for people."""

    @abstractmethod
    def tree(self) -> dict[str, Any]:
        """Everything that determines the rows, as plain values."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the tree."""
        return digest_of(self.tree())


_AGAIN_S = 60.0  # longer than the time that the workers have to save their work
J = TypeVar("J", bound=Job)
Stacked = Callable[[tuple[J, ...]], list[Outcome[J, list[Row]]]]
"""Several jobs -> the outcome of each job, in the same order."""


def digest_of(tree: Mapping[str, Any]) -> str:
    """SHA-256 of plain values. The order of the keys does not matter."""
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class GridWorkers:
    """The processes that compute the jobs of a grid.

    Attributes:
        n: number of processes on this machine, each with one thread. With 1 the jobs run in this process. For
            experiments and studies of images, 0 means one process for each core, or for each GPU.
        device: "auto", "cpu", "cuda" or "cuda:N"; with several GPUs the processes use them in turn.
        cluster: if given, the workers of this cluster compute the jobs instead of processes on this machine.
    """

    n: int = 0
    device: str = "auto"
    cluster: Cluster | None = None


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The store of a grid, and how the grid is computed.

    Attributes:
        store: folder of `grid.json` and `rows.jsonl`; created if it does not exist.
        identity: values that are the same for all jobs of the store, such as the digest of their data.
        label: text of the progress bar.
        on: the processes that compute the jobs.
        part: (I, N): compute every N-th job from the I-th on, and write the rows into `STORE/part_I_of_N`.
            Jobs that the store or another part has finished are not computed again.
        stack: number of jobs that one call of a `Stacked` function computes; None for a function of one job.
    """

    store: Path
    identity: Mapping[str, Any]
    label: str
    on: GridWorkers
    part: tuple[int, int] | None = None
    stack: int | None = None


@dataclass(frozen=True)
class GridReport:
    """The results of a grid.

    Attributes:
        rows: rows of every finished job of this call, in the order of the jobs.
        n_kept: number of jobs that were finished before.
        n_new: number of jobs finished in this call.
        failed: key and reason of each failed job.
    """

    rows: tuple[Row, ...]
    n_kept: int
    n_new: int
    failed: tuple[tuple[str, str], ...]


def run_grid(
    function: Callable[[J], list[Row]] | Stacked[J],
    jobs: Sequence[J],
    grid: Grid,
    *,
    note: Note | None = None,
    known: Mapping[str, list[Row]] | None = None,
) -> GridReport:
    """Compute the jobs that are not in the store yet, and write the rows of each job as soon as it ends.

    If a worker is killed, its job is tried once more, alone. If a study is killed, the next call resumes it.
    Ctrl-C and SIGTERM raise `KeyboardInterrupt` after the workers have ended.

    Args:
        function: job -> rows of plain values (no NaN), or with `grid.stack` several jobs -> the outcome of
            each; defined at module level. In a worker the libraries use one thread.
        jobs: no two jobs have the same key or the same digest.
        grid: the store, and how the grid is computed.
        note: returns the text that the progress bar shows for a job that has just finished. If standard error
            is not a terminal, the text is printed as a line.
        known: rows of jobs that were finished elsewhere, by digest. The rows of `jobs` are copied into the
            store.

    Raises:
        UsageError: two jobs have the same key or the same digest.
        InputError: the store belongs to another study, is damaged or is in use by another process, or the
            disk is full. No finished job is lost.
    """
    check_jobs(jobs)
    store = grid.store
    known = {**(known or {}), **read_cells(store)}
    if grid.part is not None:
        number, n_parts = grid.part
        jobs, store = jobs[number - 1 :: n_parts], store / f"part_{number}_of_{n_parts}"
    store.mkdir(parents=True, exist_ok=True)
    with lock(store / ".grid.lock"):
        claim(store, grid.identity)
        finished = Rows(store / "rows.jsonl")
        for job in jobs:
            if job.digest in known and job.digest not in finished.by_digest:
                finished.append(key=job.key, digest=job.digest, rows=known[job.digest])
        n_kept = sum(job.digest in finished.by_digest for job in jobs)
        failed = _compute(function, jobs, grid, finished=finished, note=note)
    rows = tuple(row for job in jobs for row in finished.by_digest.get(job.digest, ()))
    return GridReport(rows, n_kept, len(jobs) - n_kept - len(failed), tuple(failed))


def check_jobs(jobs: Sequence[Job]) -> None:
    """Raise `UsageError` if two jobs have the same key or the same digest."""
    keys: dict[str, str] = {}
    names: set[str] = set()
    for job in jobs:
        if job.digest in keys:
            raise UsageError(f"{job.key}: is the same computation as {keys[job.digest]}; name it once")
        if job.key in names:
            raise UsageError(f"{job.key}: names two cells of the grid; names must differ")
        keys[job.digest] = job.key
        names.add(job.key)


def _outcomes(
    function: Callable[..., Any], todo: Sequence[J], grid: Grid
) -> Generator[Outcome[J, list[Row]], None, None]:
    """The outcome of each job, in the order in which the calls of the function end."""
    size = grid.stack or 1
    stacks = [tuple(todo[start : start + size]) for start in range(0, len(todo), size)]
    tasks: Sequence[Any] = todo if grid.stack is None else stacks
    computed = map_unordered(function, tasks, workers=grid.on.n, threads=1, cluster=grid.on.cluster)
    with closing(computed) as outcomes:
        for outcome in outcomes:
            if grid.stack is None:
                yield outcome
                continue
            for place, job in enumerate(outcome.task):
                one = Outcome(job, error=outcome.error) if outcome.value is None else outcome.value[place]
                yield replace(one, position=outcome.position * size + place)


def _compute(
    function: Callable[..., Any],
    jobs: Sequence[J],
    grid: Grid,
    *,
    finished: Rows,
    note: Note | None,
) -> list[tuple[str, str]]:
    """Compute the jobs that are not finished and keep their rows. Return key and reason of the failures."""
    failed: list[tuple[str, str]] = []
    todo = [job for job in jobs if job.digest not in finished.by_digest]
    start, n_kept = time.monotonic(), len(jobs) - len(todo)
    with progress_bar() as bar, _interrupted_by_sigterm():
        task = bar.add_task(grid.label, total=len(jobs), completed=n_kept, note="")
        with closing(_outcomes(function, todo, grid)) as outcomes:
            for n_new, outcome in enumerate(outcomes, start=1):
                job = todo[outcome.position]
                problem = _keep(job, outcome, finished)
                if problem:
                    failed.append((job.key, problem))
                    said = f"failed {job.key}: {problem}"
                else:
                    said = note(job.key, finished.by_digest[job.digest]) if note else job.key
                rate = n_new / (time.monotonic() - start) * 3600
                bar.update(task, advance=1, note=f"{rate:.0f} an hour  {said}")
                log_line(bar, f"{grid.label} {n_kept + n_new}/{len(jobs)}: {said}")
    return failed


def _keep(job: Job, outcome: Outcome[Any, list[Row]], finished: Rows) -> str:
    """Write the rows of a job. Return the reason as text if the job has no rows, else ""."""
    if (error := outcome.error) is not None:
        if isinstance(error, OSError) and error.filename:
            return f"{error.filename}: {error.strerror}"
        is_said = isinstance(error, InputError | UsageError)
        return str(error) if is_said else f"{type(error).__name__}: {error}"
    try:
        finished.append(key=job.key, digest=job.digest, rows=outcome.value or [])
    except (TypeError, ValueError) as error:
        return f"a row is not plain JSON: {error}"
    return ""


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Turn SIGTERM into `KeyboardInterrupt`, so that the workers end and the lock is released.

    Python ignores an error that is raised while it runs a callback, such as the callback of a weak reference.
    Therefore the signal is sent again if the block has not ended some time later.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    again = threading.Timer(_AGAIN_S, os.kill, (os.getpid(), signal.SIGTERM))
    again.daemon = True

    def interrupt(number: int, frame: FrameType | None) -> None:
        if again.ident is None:
            again.start()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        again.cancel()
        signal.signal(signal.SIGTERM, before)
