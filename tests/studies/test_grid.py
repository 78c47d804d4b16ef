"""A grid loses no finished row, writes none twice, and goes on where it was."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.files import lock
from brats_seg.studies import grid
from brats_seg.studies.grid import Grid, GridWorkers, Job, digest_of, run_grid
from brats_seg.studies.store import read_rows

ROOT = str(Path(__file__).parents[2])


@dataclass(frozen=True)
class Number(Job):
    """A number to square; `marks` is a folder."""

    n: int
    marks: str = ""
    name: str = ""

    @property
    def key(self) -> str:
        return self.name or f"n{self.n}"

    def tree(self) -> dict[str, Any]:
        return {"n": self.n, "marks": self.marks}


def _square(job: Number) -> list[dict[str, Any]]:
    """Square a number; leaves a mark each time it runs; some numbers are trouble."""
    if job.marks:
        (Path(job.marks) / f"{job.n}.{os.getpid()}.{time.monotonic_ns()}").touch()
    if job.n == 13:
        raise InputError("thirteen: not today")
    if job.n == 17:
        os.kill(os.getpid(), signal.SIGKILL)
    return [{"n": job.n, "square": job.n**2 if job.n != 19 else float("nan")}]


def _jobs(*numbers: int, marks: str = "") -> list[Number]:
    return [Number(n, marks) for n in numbers]


def _run(store: Path, jobs: list[Number], *, data: str = "d1", workers: int = 1, **more: Any) -> Any:
    grid = Grid(store=store, identity={"data": data}, label="squares", on=GridWorkers(n=workers))
    return run_grid(_square, jobs, grid, **more)


def test_finished_cells_are_kept_and_new_ones_computed(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    first = _run(tmp_path / "store", _jobs(1, 2, marks=str(marks)))
    assert (first.n_kept, first.n_new, first.failed) == (0, 2, ())
    grown = _run(tmp_path / "store", _jobs(3, 2, 1, marks=str(marks)))
    assert (grown.n_kept, grown.n_new) == (2, 1)
    assert [row["square"] for row in grown.rows] == [9, 4, 1]
    assert [row["square"] for row in read_rows(tmp_path / "store")] == [1, 4, 9]
    assert len(list(marks.iterdir())) == 3


def test_a_digest_does_not_hang_on_the_order_of_keys() -> None:
    assert digest_of({"x": 1, "y": 2}) == digest_of({"y": 2, "x": 1}) != digest_of({"x": 1, "y": 3})
    assert Number(1, name="one").digest == Number(1).digest != Number(2).digest


def test_troubled_cells_are_named_and_the_others_finished(tmp_path: Path) -> None:
    report = _run(tmp_path, _jobs(1, 13, 17, 19, 2), workers=2)
    assert [row["n"] for row in report.rows] == [1, 2]
    reasons = dict(report.failed)
    assert reasons["n13"] == "thirteen: not today"
    assert "killed" in reasons["n17"]
    assert "not plain JSON" in reasons["n19"]
    assert _run(tmp_path, _jobs(1, 2)).n_kept == 2


def test_a_torn_last_line_is_cut_off_and_computed_again(tmp_path: Path) -> None:
    _run(tmp_path, _jobs(1, 2))
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(rows.read_bytes()[:-7])
    assert [row["n"] for row in read_rows(tmp_path)] == [1]
    assert _run(tmp_path, _jobs(1, 2)).n_new == 1
    assert [json.loads(line)["key"] for line in rows.read_text().splitlines()] == ["n1", "n2"]


@pytest.mark.parametrize(
    "line", ["{oops", "5", '{"key": "n1"}', '{"digest": "d", "rows": 5}', '{"digest": "d", "rows": [{}]}']
)
def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path, line: str) -> None:
    _run(tmp_path, _jobs(1, 2))
    rows = tmp_path / "rows.jsonl"
    rows.write_text(f"{line}\n" + rows.read_text())
    with pytest.raises(InputError, match="line 1 is damaged"):
        _run(tmp_path, _jobs(1))


def test_a_store_of_another_study_is_refused(tmp_path: Path) -> None:
    _run(tmp_path, _jobs(1))
    with pytest.raises(InputError, match="its data is 'd1', this one's 'd2'"):
        _run(tmp_path, _jobs(1), data="d2")


def test_a_second_parent_is_refused(tmp_path: Path) -> None:
    with lock(tmp_path / ".grid.lock"), pytest.raises(InputError, match="held by another process"):
        _run(tmp_path, _jobs(1))


def test_two_cells_of_one_name_or_one_job_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="twin: is the same computation as n1"):
        _run(tmp_path, [*_jobs(1), Number(1, name="twin")])
    with pytest.raises(UsageError, match="n1: names two cells"):
        _run(tmp_path, [*_jobs(1), Number(2, name="n1")])


def test_rows_known_from_elsewhere_are_taken_over(tmp_path: Path) -> None:
    one, two = _jobs(1, 2)
    report = _run(
        tmp_path, [one, two], known={one.digest: [{"n": 1, "square": "known"}], "another": [{"n": 5}]}
    )
    assert [row["square"] for row in report.rows] == ["known", 4]
    assert report.n_kept == 1
    assert len(read_rows(tmp_path)) == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_line_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    _run(tmp_path, _jobs(1))
    before = (tmp_path / "rows.jsonl").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("brats_seg.studies.store.os.fsync", full)
        with pytest.raises(
            InputError, match=r"No space left on device.*the 1 finished cells are kept"
        ) as caught:
            _run(tmp_path, _jobs(1, 2, 3, 4), workers=workers)
    assert multiprocessing.active_children() == []
    assert "\n" not in str(caught.value)
    assert (tmp_path / "rows.jsonl").read_bytes() == before
    assert _run(tmp_path, _jobs(1, 2)).n_new == 1


def test_the_note_sees_each_new_cell(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []
    _run(tmp_path, _jobs(1, 2), note=lambda key, rows: seen.append((key, rows[0]["square"])) or "")
    assert seen == [("n1", 1), ("n2", 4)]


STUDY = """
import os, sys, time
from pathlib import Path
from dataclasses import dataclass
from brats_seg.studies.grid import Grid, Job, GridWorkers, run_grid

@dataclass(frozen=True)
class Number(Job):
    n: int
    marks: str

    @property
    def key(self):
        return f"n{self.n}"

    def tree(self):
        return {"n": self.n, "marks": self.marks}

def square(job):
    marks, parent = Path(job.marks), os.getppid()
    most = int((marks.parent / "most").read_text())
    (marks / f"{job.n}.{time.monotonic_ns()}").touch()
    time.sleep(0.05)
    while len(os.listdir(marks)) > most and os.getppid() == parent:
        time.sleep(0.01)
    return [{"n": job.n, "square": job.n**2}]

if __name__ == "__main__":
    jobs = [Number(n, sys.argv[2]) for n in range(13)]
    run_grid(square, jobs, Grid(store=Path(sys.argv[1]), identity={}, on=GridWorkers(n=2), label="squares"))
"""


def _workers(pid: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue  # ended meanwhile
        if parent == pid and b"spawn_main" in command:
            found.append(int(folder.name))
    return found


def _wait_until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def _lose_a_sigterm() -> None:
    """As Python does around the callback of a weak reference."""
    with suppress(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)


def test_a_sigterm_that_is_lost_in_a_callback_is_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "_AGAIN_S", 0.2)
    with grid._interrupted_by_sigterm():
        _lose_a_sigterm()
        with pytest.raises(KeyboardInterrupt):
            time.sleep(10)


@contextmanager
def _started(command: list[str], **environment: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that is waited for at the end of the block, and killed first where the block fails."""
    with subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_a_study_killed_again_and_again_ends_with_the_table_of_one_never_killed(tmp_path: Path) -> None:
    marks, store, script = tmp_path / "marks", tmp_path / "store", tmp_path / "study.py"
    marks.mkdir()
    script.write_text(STUDY)
    command = [sys.executable, str(script), str(store), str(marks)]
    chance = random.Random(7)
    for blow in (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM):
        n_before = len(list(marks.iterdir()))
        (tmp_path / "most").write_text(
            str(n_before + 3)
        )  # cells after these wait, so that the study is never finished too early
        with _started(command, PYTHONPATH=ROOT) as study:
            # The moments count from the first cell of this attempt, not from the imports. A worker of the
            # attempt before may still leave a mark after it was counted: wait for the workers of this one.
            assert _wait_until(
                lambda: len(list(marks.iterdir())) > n_before and len(_workers(study.pid)) == 2  # noqa: B023
            )
            time.sleep(chance.uniform(0, 0.1))
            workers = _workers(study.pid)
            os.kill(chance.choice(workers), signal.SIGKILL)
            time.sleep(chance.uniform(0, 0.1))
            study.send_signal(blow)
        assert study.returncode != 0
        assert _wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))  # noqa: B023
    (tmp_path / "most").write_text("1000")
    assert subprocess.run(command, env={**os.environ, "PYTHONPATH": ROOT}, check=True).returncode == 0
    lines = [json.loads(line) for line in (store / "rows.jsonl").read_text().splitlines()]
    assert sorted(line["key"] for line in lines) == sorted(f"n{n}" for n in range(13))
    assert sorted(row["square"] for line in lines for row in line["rows"]) == [n**2 for n in range(13)]


def test_a_log_says_how_far_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run(tmp_path, _jobs(1), note=lambda key, rows: f"{key}: {rows[0]['square']}")
    assert capsys.readouterr().err == "squares 1/1: n1: 1\n"
    _run(tmp_path, _jobs(1, 2, 13))
    assert capsys.readouterr().err.splitlines() == [
        "squares 2/3: n2",
        "squares 3/3: failed n13: thirteen: not today",
    ]
