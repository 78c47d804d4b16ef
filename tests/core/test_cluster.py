"""Tasks survive a killed worker."""

import os
import signal
import time
from pathlib import Path

import pytest

from brats_seg.core.cluster import connect, run_tasks, worker_number
from brats_seg.core.errors import UsageError


def _work(task: tuple[Path, int]) -> int:
    """Square a number; 3 kills its worker the first time, 5 every time, 7 is an error."""
    folder, number = task
    if number == 3 and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 7:
        raise ValueError("seven")
    return number * number


def test_a_killed_task_is_tried_again_alone_and_the_others_are_unharmed(tmp_path: Path) -> None:
    outcomes = {
        o.task[1]: o for o in run_tasks(_work, [(tmp_path, n) for n in range(8)], workers=2, label="square")
    }
    assert {n: o.value for n, o in outcomes.items() if o.error is None} == {
        0: 0,
        1: 1,
        2: 4,
        3: 9,
        4: 16,
        6: 36,
    }
    assert type(outcomes[5].error).__name__ == "WorkerDiedError"
    assert isinstance(outcomes[7].error, ValueError)


def _number(task: int) -> int:
    time.sleep(0.2)
    return worker_number()


def test_workers_are_numbered_and_this_process_is_none() -> None:
    assert {o.value for o in run_tasks(_number, range(4), workers=2, label="number")} == {0, 1}
    assert worker_number() == 0


def test_one_worker_is_this_process() -> None:
    assert [o.value for o in run_tasks(_pid, [1, 2], workers=1, label="pid")] == [os.getpid()] * 2


def _pid(task: int) -> int:
    return os.getpid()


def test_an_error_of_a_task_is_its_outcome_here_too(tmp_path: Path) -> None:
    outcomes = list(run_tasks(_work, [(tmp_path, 7), (tmp_path, 2)], workers=1, label="square"))
    assert isinstance(outcomes[0].error, ValueError)
    assert outcomes[1].value == 4


def _stopped(task: int) -> int:
    raise KeyboardInterrupt


def test_a_worker_told_to_stop_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    (outcome,) = run_tasks(_stopped, [1], workers=2, label="stopped")
    assert outcome.died
    assert capfd.readouterr().err == ""


def test_no_tasks() -> None:
    assert list(run_tasks(_pid, [], workers=2, label="none")) == []


def test_dask_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(UsageError, match=r"brats-seg\[cluster\]"):
        connect("tcp://127.0.0.1:1")
