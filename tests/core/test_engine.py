"""Tasks survive a killed worker."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from brats_seg.core.engine import map_in_order, map_unordered, run_tasks
from brats_seg.core.local_engine import worker_number
from brats_seg.core.outcome import Outcome


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


def _square(number: int) -> int:
    return number * number


def test_a_worker_that_is_killed_between_two_tasks_costs_none() -> None:
    outcomes = map_unordered(_square, range(6), workers=2)
    first = next(outcomes)
    time.sleep(1.0)  # the workers have ended their next tasks, and wait
    for worker in multiprocessing.active_children():
        worker.kill()
        worker.join()
    assert sorted(outcome.unwrap() for outcome in [first, *outcomes]) == [0, 1, 4, 9, 16, 25]


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


def test_positions_say_which_task_an_outcome_is_of(tmp_path: Path) -> None:
    tasks = [(tmp_path, n) for n in (2, 3, 4)]
    for workers in (1, 2):
        (tmp_path / "died").touch()
        outcomes = map_unordered(_work, tasks, workers=workers)
        assert {o.position: o.value for o in outcomes} == {0: 4, 1: 9, 2: 16}


def _threads(task: int) -> tuple[str | None, str | None]:
    return os.environ.get("OMP_NUM_THREADS"), os.environ.get("NUMBA_NUM_THREADS")


def test_workers_get_their_thread_settings_and_this_process_keeps_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    (outcome,) = map_unordered(_threads, [1], workers=2, threads=3)
    assert outcome.value == ("3", "3")
    assert _threads(1) == ("7", None)


def _unreadable(task: int) -> object:
    if task == 0:
        return lambda: 0  # cannot be sent
    raise _TwoArgumentsError("a", "b")


class _TwoArgumentsError(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


def test_what_another_process_cannot_read_is_an_error_of_its_task_alone() -> None:
    outcomes = {o.task: o for o in map_unordered(_unreadable, [0, 1], workers=2)}
    assert outcomes[0].error is not None
    assert not outcomes[0].died
    assert str(outcomes[1].error) == "_TwoArgumentsError: a and b"


_PARENT = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from test_engine import _sleep
from brats_seg.core.engine import map_unordered
if __name__ == "__main__":
    list(map_unordered(_sleep, [sys.argv[2], sys.argv[2]], workers=2))
"""


def _sleep(folder: str) -> None:
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(60)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state != "Z"


def _until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(_PARENT)
    pids = tmp_path / "pids"
    pids.mkdir()
    with subprocess.Popen([sys.executable, script, Path(__file__).parent, pids]) as parent:
        assert _until(lambda: len(list(pids.iterdir())) == 2)
        parent.kill()
    assert _until(lambda: not any(_lives(int(path.name)) for path in pids.iterdir()))


def test_values_of_threads_stand_in_the_order_of_the_tasks() -> None:
    values = map_in_order(abs, [-3, 2, -1], threads=2, label="abs", on_death=_no_value)
    assert values == [3, 2, 1]


def _no_value(task: int, error: BaseException) -> int:
    raise error


def test_a_value_is_unwrapped_and_an_error_raised() -> None:
    assert Outcome(1, value=2).unwrap() == 2
    with pytest.raises(ValueError, match="seven"):
        Outcome(1, error=ValueError("seven")).unwrap()
