"""A grid of tasks -> rows, resumable: a finished cell is never computed again, and only the parent writes."""

import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any

from brats_seg.core.engine import Cluster, Outcome, map_unordered
from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.files import lock, parse_json, read_json, shown, write_json
from brats_seg.core.progress import log_line, progress_bar

Row = dict[str, Any]
STORE = "grid.json"
"""In the folder of a store: what all its cells share."""


@dataclass(frozen=True)
class Cell:
    """One task of a grid.

    Attributes:
        key: its name for people.
        job: what decides its result, all of it, as plain values; what does not (where files go) is no part of
            it.
    """

    key: str
    job: Mapping[str, Any]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the job, whatever the order of its keys."""
        return hashlib.sha256(
            json.dumps(self.job, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
        ).hexdigest()


@dataclass(frozen=True)
class GridReport:
    """What a grid came to.

    Attributes:
        rows: of every finished cell that was asked for, in the order of the cells.
        n_kept: cells that were finished before.
        n_new: cells finished now.
        failed: key and reason of the others.
    """

    rows: tuple[Row, ...]
    n_kept: int
    n_new: int
    failed: tuple[tuple[str, str], ...]


def run_grid(
    function: Callable[[Mapping[str, Any]], list[Row]],
    cells: Sequence[Cell],
    *,
    store: Path,
    identity: Mapping[str, Any],
    workers: int,
    label: str,
    note: Callable[[str, list[Row]], str] | None = None,
    known: Mapping[str, list[Row]] | None = None,
    part: tuple[int, int] | None = None,
    cluster: Cluster | None = None,
) -> GridReport:
    """Compute the cells that a store does not hold yet, and keep the rows of each the moment it ends.

    A killed worker's cell is tried once more, alone; a killed study goes on where it was. Ctrl-C and SIGTERM
    raise `KeyboardInterrupt` once the workers have ended.

    Args:
        function: job -> rows of plain values (no NaN); at module level. In a worker the libraries are told to
            use one thread.
        cells: no two of one key or one job.
        store: folder of `grid.json` and `rows.jsonl`; made if absent.
        identity: what all cells of the store share, such as the data they were computed on.
        workers: processes; with 1 the cells run in this one.
        label: of the progress bar.
        note: key and rows of a cell just finished -> what the bar says beside the count; where standard error
            is no terminal, a line of its own says it.
        known: rows by digest of cells that were finished elsewhere; those that are asked for are taken over.
        part: (I, N): every N-th cell from the I-th on, into `STORE/part_I_of_N`; what the store and its other
            parts hold is not computed again.

        cluster: whose workers compute the cells, instead of processes of this machine.

    Raises:
        UsageError: two cells of one key or one job.
        InputError: a store of another study, a damaged one, one that another process writes to, or a full
            disk. Nothing finished is lost.
    """
    _check(cells)
    known = {**(known or {}), **read_cells(store)}
    if part is not None:
        cells, store = cells[part[0] - 1 :: part[1]], store / f"part_{part[0]}_of_{part[1]}"
    store.mkdir(parents=True, exist_ok=True)
    with lock(store / ".grid.lock"):
        _claim(store, identity)
        finished = _Rows(store / "rows.jsonl")
        for cell in cells:
            if cell.digest in known and cell.digest not in finished.by_digest:
                finished.append(cell, known[cell.digest])
        todo = [cell for cell in cells if cell.digest not in finished.by_digest]
        failed = _compute(
            function,
            todo,
            finished,
            n_cells=len(cells),
            workers=workers,
            cluster=cluster,
            label=label,
            note=note,
        )
    return GridReport(
        rows=tuple(row for cell in cells for row in finished.by_digest.get(cell.digest, ())),
        n_kept=len(cells) - len(todo),
        n_new=len(todo) - len(failed),
        failed=tuple(failed),
    )


def read_rows(store: Path) -> list[Row]:
    """Rows of every finished cell of a store, in the order they ended. A line that is still being written is
    left out.
    """
    return [row for line in _lines(store / "rows.jsonl")[0] for row in line["rows"]]


def read_cells(store: Path) -> dict[str, list[Row]]:
    """Rows of every finished cell of a store and of its parts by its digest, as `known` takes them."""
    lines = (line for one in stores(store) for line in _lines(one / "rows.jsonl")[0])
    return {line["digest"]: line["rows"] for line in lines}


def stores(store: Path) -> tuple[Path, ...]:
    """A store, and the parts of it that processes on other machines write."""
    return (store, *sorted(store.glob("part_*_of_*")))


def check_identity(store: Path, identity: Mapping[str, Any]) -> None:
    """Raise `InputError` where a folder, or a part of it, is a store of another identity. A folder that is no
    store yet is accepted.
    """
    ours = json.loads(json.dumps(identity))
    for path in (one / STORE for one in stores(store)):
        theirs = read_json(path) if path.exists() else ours
        if theirs == ours:
            continue
        theirs = theirs if isinstance(theirs, dict) else {}
        name = next((k for k in [*ours, *theirs] if ours.get(k) != theirs.get(k)), "identity")
        was, asked = shown(theirs.get(name)), shown(ours.get(name))
        raise InputError(
            f"{path.parent}: a store of another study: its {name} is {was}, this one's {asked}; choose a new "
            "folder"
        )


def _check(cells: Sequence[Cell]) -> None:
    keys: dict[str, str] = {}
    names: set[str] = set()
    for cell in cells:
        if cell.digest in keys:
            raise UsageError(f"{cell.key}: is the same computation as {keys[cell.digest]}; name it once")
        if cell.key in names:
            raise UsageError(f"{cell.key}: names two cells of the grid; names must differ")
        keys[cell.digest] = cell.key
        names.add(cell.key)


def _claim(store: Path, identity: Mapping[str, Any]) -> None:
    """Write the identity of a new store, or compare it with that of an old one."""
    path = store / STORE
    check_identity(store, identity)
    if not path.exists():
        if (store / "rows.jsonl").exists():
            raise InputError(f"{path}: is missing, and rows.jsonl beside it is not; choose a new folder")
        write_json(path, json.loads(json.dumps(identity)))


class _Rows:
    """The rows file: one line for each finished cell, on the disk before the next is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines, whole = _lines(path)
        if path.exists() and path.stat().st_size > whole:
            os.truncate(path, whole)  # the writer of the last line was killed
        self.by_digest: dict[str, list[Row]] = {line["digest"]: line["rows"] for line in lines}

    def append(self, cell: Cell, rows: list[Row]) -> None:
        line = json.dumps({"key": cell.key, "digest": cell.digest, "rows": rows}, allow_nan=False) + "\n"
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("ab", buffering=0) as file:
                if file.write(line.encode()) != len(line):  # JSON is ASCII: bytes are characters
                    raise OSError("the disk is full")
                os.fsync(file.fileno())
        except OSError as error:
            if self.path.exists():
                os.truncate(self.path, size)
            raise InputError(f"{self.path}: cannot be written: {error.strerror or error}; make room and "
                             "start again, "
                             f"the {len(self.by_digest)} finished cells are kept") from None  # fmt: skip
        self.by_digest[cell.digest] = rows


def _lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The whole lines of a rows file, and how many bytes they are."""
    if not path.exists():
        return [], 0
    text = path.read_bytes()
    whole = text.rfind(b"\n") + 1
    lines = []
    for number, line in enumerate(text[:whole].splitlines(), start=1):
        try:
            found = parse_json(line)
            lines.append({name: found[name] for name in ("digest", "rows")})
            is_sound = isinstance(found["digest"], str) and isinstance(found["rows"], list)
            if not (is_sound and all(isinstance(row, dict) and row for row in found["rows"])):
                raise ValueError("rows")
        except (ValueError, TypeError, KeyError):
            raise InputError(
                f"{path}: line {number} is damaged; delete that line, and its cell is computed again"
            ) from None
    return lines, whole


def _compute(
    function: Callable[[Mapping[str, Any]], list[Row]],
    cells: Sequence[Cell],
    finished: _Rows,
    *,
    n_cells: int,
    workers: int,
    cluster: Cluster | None,
    label: str,
    note: Callable[[str, list[Row]], str] | None,
) -> list[tuple[str, str]]:
    """Compute cells and keep their rows; gives key and reason of those that failed."""
    failed: list[tuple[str, str]] = []
    by_digest = {cell.digest: cell for cell in cells}
    jobs = [(cell.digest, dict(cell.job)) for cell in cells]
    start, n_kept = time.monotonic(), n_cells - len(cells)
    with progress_bar() as bar, _interrupted_by_sigterm():
        task = bar.add_task(label, total=n_cells, completed=n_kept, note="")
        for n_new, outcome in enumerate(
            map_unordered(_Call(function), jobs, workers=workers, threads=1, cluster=cluster), start=1
        ):
            cell = by_digest[outcome.task[0]]
            problem = _keep(cell, outcome, finished)
            if problem:
                failed.append((cell.key, problem))
                said = f"failed {cell.key}: {problem}"
            else:
                said = note(cell.key, finished.by_digest[cell.digest]) if note else cell.key
            bar.update(
                task, advance=1, note=f"{n_new / (time.monotonic() - start) * 3600:.0f} an hour  {said}"
            )
            log_line(bar, f"{label} {n_kept + n_new}/{n_cells}: {said}")
    return failed


@dataclass(frozen=True)
class _Call:
    """The function on a task of the pool: a digest and a job."""

    function: Callable[[Mapping[str, Any]], list[Row]]

    def __call__(self, task: tuple[str, dict[str, Any]]) -> list[Row]:
        return self.function(task[1])


def _keep(cell: Cell, outcome: Outcome[Any, list[Row]], finished: _Rows) -> str:
    """Write the rows of a cell; gives what is wrong where there are none."""
    if outcome.error is not None:
        error = outcome.error
        if isinstance(error, OSError) and error.filename:
            return f"{error.filename}: {error.strerror}"
        return (
            str(error) if isinstance(error, InputError | UsageError) else f"{type(error).__name__}: {error}"
        )
    try:
        finished.append(cell, outcome.value or [])
    except (TypeError, ValueError) as error:
        return f"a row that is no plain JSON: {error}"
    return ""


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM as `KeyboardInterrupt`, so that the workers are ended and the lock is let go."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
