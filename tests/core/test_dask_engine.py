"""Tasks on a real cluster survive killed workers, and what is wrong with a cluster is one line."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from dask_processes import Processes, dask_processes, until

from brats_seg.core import dask_engine
from brats_seg.core.dask_engine import Cluster, open_cluster
from brats_seg.core.engine import map_in_order, map_unordered
from brats_seg.core.errors import InputError, UsageError
from brats_seg.studies.grid import Grid, GridWorkers, Job, run_grid

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    with dask_processes(tmp_path_factory.mktemp("dask"), workers=2) as started:
        with distributed.Client(scheduler_file=str(started.file)) as client:
            client.wait_for_workers(2, timeout=300)
        yield started


def _work(task: tuple[Path, int]) -> int:
    """Square a number; 3 kills its worker the first time, 5 every time, 7 is an error. Each call is noted."""
    folder, number = task
    (folder / f"{number}-{time.time_ns()}").touch()
    if number == 5 or (number == 3 and len(list(folder.glob("3-*"))) == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 7:
        raise ValueError("seven")
    return number * number


def test_a_lost_worker_costs_the_task_it_had_and_a_task_that_kills_three_is_named(
    processes: Processes, tmp_path: Path
) -> None:
    calls = tmp_path / "calls"
    with open_cluster(str(processes.file), shared=calls) as cluster:
        tasks = [(calls, n) for n in range(9)]
        outcomes = {o.position: o for o in map_unordered(_work, tasks, workers=1, cluster=cluster)}
    assert {n: o.value for n, o in outcomes.items() if o.error is None} == {
        n: n * n for n in (0, 1, 2, 3, 4, 6, 8)
    }
    assert outcomes[5].died
    assert str(outcomes[5].error) == "ended 3 workers: killed, or out of memory"
    assert isinstance(outcomes[7].error, ValueError)
    n_calls = {n: len(list(calls.glob(f"{n}-*"))) for n in range(9)}
    assert n_calls == dict.fromkeys(range(9), 1) | {3: 2, 5: 3}


def _slow(task: tuple[Path, int]) -> int:
    (task[0] / f"begun-{task[1]}").touch()
    time.sleep(0.5)
    return os.getpid()


def test_tasks_are_cancelled_when_the_caller_stops(processes: Processes, tmp_path: Path) -> None:
    with open_cluster(str(processes.file)) as cluster:
        assert cluster is not None
        outcomes = cluster.map_unordered(_slow, [(tmp_path, n) for n in range(20)])
        next(outcomes)
        outcomes.close()  # as Ctrl-C does
        time.sleep(1.5)  # a task that runs ends in its time
        n_begun = len(list(tmp_path.glob("begun-*")))
        time.sleep(1.0)
    assert len(list(tmp_path.glob("begun-*"))) == n_begun <= 4


def test_values_stand_in_the_order_of_the_tasks(processes: Processes) -> None:
    with open_cluster(str(processes.file)) as cluster:
        assert map_in_order(abs, [-3, 2, -1], threads=1, label="", on_death=_no, cluster=cluster) == [3, 2, 1]


def _no(task: int, error: BaseException) -> int:
    raise error


def _folder_and_pid(task: int) -> tuple[str, int]:
    return os.getcwd(), os.getpid()


def test_tasks_run_in_the_folder_of_the_client(
    processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with open_cluster(str(processes.file)) as cluster:
        (outcome,) = map_unordered(_folder_and_pid, [1], workers=1, cluster=cluster)
    folder, pid = outcome.unwrap()
    assert (folder, pid in processes.computing_pids()) == (str(tmp_path), True)


def test_what_every_worker_must_see_is_named(processes: Processes, tmp_path: Path) -> None:
    missing = tmp_path / "not_there"
    with (
        pytest.raises(UsageError, match=f"does not see {missing}; all workers need one shared"),
        open_cluster(str(processes.file), needs=[missing]),
    ):
        pass


def test_a_token_that_no_worker_sees_names_the_folder(
    processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "touch", lambda path: None)  # as on a disk that is not shared
    monkeypatch.setattr(Path, "unlink", lambda path, **options: None)
    with (
        pytest.raises(UsageError, match=f"worker tcp://.* does not see {tmp_path}; all"),
        open_cluster(str(processes.file), shared=tmp_path),
    ):
        pass


def test_no_token_is_left(processes: Processes, tmp_path: Path) -> None:
    said: list[str] = []
    with open_cluster(str(processes.file), shared=tmp_path / "new", say=said.append):
        pass
    assert list((tmp_path / "new").iterdir()) == []
    (line,) = said
    assert line.startswith("cluster: workers 2, dashboard http://127.0.0.1")


def test_workers_of_another_version_are_one_line_each(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_engine, "version", lambda name: "0.0.1" if name == "torch" else "7")
    with (
        pytest.raises(UsageError, match="this process 7; install the same version") as caught,
        open_cluster(str(processes.file)),
    ):
        pass
    assert len(str(caught.value).splitlines()) == 2


def test_a_scheduler_of_another_version_is_one_line(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = distributed.__version__
    monkeypatch.setattr(distributed, "__version__", "1.0")
    with (
        pytest.raises(UsageError, match=f"the scheduler has distributed {ours}, this process 1.0; install"),
        open_cluster(str(processes.file)),
    ):
        pass


def test_a_worker_without_the_package_is_left_out_and_named(processes: Processes, tmp_path: Path) -> None:
    """Such a worker cannot import `brats_seg`: a module of that name that fails stands in its way."""
    (tmp_path / "brats_seg.py").write_text('raise ModuleNotFoundError("No module named brats_seg")\n')
    said: list[str] = []
    with open_cluster(str(processes.file), say=said.append) as cluster:
        assert isinstance(cluster, Cluster)
        worker = processes.add_worker("--no-nanny", PYTHONPATH=str(tmp_path))
        cluster.client.wait_for_workers(3, timeout=300)
        values = [o.unwrap() for o in cluster.map_unordered(abs, list(range(20)))]
        worker.terminate()
        worker.wait()
        assert until(lambda: len(cluster.client.nthreads()) == 2)
    assert sorted(values) == list(range(20))
    assert "cannot run brats-seg (" in said[-1]
    assert "No module named brats_seg" in said[-1]
    assert said[-1].endswith("install this version there; this worker is left out")


@dataclass(frozen=True)
class Number(Job):
    """A number to square."""

    value: int
    pid: int

    @property
    def key(self) -> str:
        return f"cell {self.value}"

    def tree(self) -> dict[str, Any]:
        return {"value": self.value, "pid": self.pid}


def _square(job: Number) -> list[dict[str, Any]]:
    return [{"value": job.value**2, "pid_differs": os.getpid() != job.pid}]


def test_cells_of_a_grid_are_computed_by_the_workers(processes: Processes, tmp_path: Path) -> None:
    jobs = [Number(n, os.getpid()) for n in range(4)]
    with open_cluster(str(processes.file), shared=tmp_path) as cluster:
        on = GridWorkers(n=1, cluster=cluster)
        report = run_grid(_square, jobs, Grid(store=tmp_path, identity={}, label="squares", on=on))
    assert report.rows == tuple({"value": n * n, "pid_differs": True} for n in range(4))


def test_local_is_a_cluster_on_this_machine() -> None:
    said: list[str] = []
    with open_cluster("local", workers=1, say=said.append) as cluster:
        (outcome,) = map_unordered(_folder_and_pid, [1], workers=1, cluster=cluster)
    folder, pid = outcome.unwrap()
    assert (folder, pid != os.getpid()) == (os.getcwd(), True)
    assert said[0].startswith("cluster: workers 1, dashboard http://127.0.0.1:")


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_engine, "_ANSWER_S", 1.0)
    with (
        pytest.raises(UsageError, match="no scheduler answers within 1 s"),
        open_cluster("tcp://127.0.0.1:1"),
    ):
        pass


def test_an_address_that_is_none_is_told_at_once() -> None:
    with (
        pytest.raises(UsageError, match=r"scheduler\.jsn: is not a file; give tcp://HOST:PORT"),
        open_cluster("scheduler.jsn"),
    ):
        pass


def test_no_address_is_no_cluster() -> None:
    with open_cluster(None) as cluster:
        assert cluster is None


def test_dask_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(UsageError, match=r"brats-seg\[cluster\]"), open_cluster("tcp://127.0.0.1:1"):
        pass


def _kill_scheduler(processes: Processes, folder: Path) -> None:
    with open_cluster(str(processes.file)) as cluster:
        assert cluster is not None
        for _ in cluster.map_unordered(_slow, [(folder, n) for n in range(9)]):
            processes.scheduler.kill()


def test_a_scheduler_that_goes_away_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_engine, "_ANSWER_S", 2.0)
    with (
        dask_processes(tmp_path, workers=1) as own,
        pytest.raises(InputError, match="the scheduler has ended"),
    ):
        _kill_scheduler(own, tmp_path)


class _Future:
    """A value that is there at once, one that was cancelled, or one that never comes."""

    def __init__(self, key: str, state: str, value: Any = None) -> None:
        self.key, self.state, self.value = key, state, value

    def done(self) -> bool:
        return self.state != "pending"

    def result(self, timeout: float) -> Any:
        if self.state == "cancelled":
            raise CancelledError
        return self.value


class _Client:
    """A scheduler with the workers "a" and "b". The first task of "a" has the state that is given; after that
    task "a" is paused.
    """

    def __init__(self, first: str) -> None:
        self.first, self.n_of, self.paused = first, {"a": 0, "b": 0}, False

    def nthreads(self) -> dict[str, int]:
        return {"a": 1, "b": 1}

    def scheduler_info(self, n_workers: int) -> dict[str, Any]:
        status = {"a": "paused" if self.paused else "running", "b": "running"}
        return {"workers": {name: {"status": what} for name, what in status.items()}}

    def run(self, function: Any, paths: list[Path], *, workers: list[str], on_error: str) -> dict[str, Any]:
        return {worker: function(paths) for worker in workers}

    def submit(self, serve: Any, *job: Any, workers: list[str], pure: bool) -> _Future:
        (worker,) = workers
        self.n_of[worker] += 1
        if worker == "a" and not self.paused:
            self.paused = True
            return _Future("first", self.first)
        return _Future("later", "finished", serve(*job))

    def processing(self, workers: list[str]) -> dict[str, tuple[str, ...]]:
        return {worker: () for worker in workers}

    def cancel(self, futures: list[_Future], force: bool) -> None:
        pass


@pytest.mark.parametrize("first", ["pending", "cancelled"])
def test_a_task_that_a_worker_does_not_begin_goes_to_another(
    first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dask pauses a worker that is short of memory; a scheduler that is started anew cancels all tasks."""
    monkeypatch.setattr(dask_engine, "_LOOK_S", 0.0)
    monkeypatch.setattr(distributed, "wait", lambda *given, **options: None)
    client = _Client(first)
    cluster = Cluster(client, "tcp://x:1", (), tmp_path, print)
    outcomes = list(cluster.map_unordered(_square_of, [2, 3, 4]))
    assert sorted(outcome.unwrap() for outcome in outcomes) == [4, 9, 16]
    assert client.n_of == {"a": 1, "b": 3}


def _square_of(number: int) -> int:
    return number * number


def test_a_shared_folder_that_is_gone_is_named_and_not_the_scheduler(tmp_path: Path) -> None:
    cluster = Cluster(_Client("pending"), "tcp://x:1", (), tmp_path / "gone", print)
    with pytest.raises(InputError, match=r"gone: cannot be written \(No such file or directory\)"):
        cluster.check({"a"})


@pytest.mark.parametrize("text", ['{"a": 1}', "[]", "no JSON"])
def test_a_file_that_no_scheduler_wrote_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(text)
    with (
        pytest.raises(UsageError, match=r"s\.json: is not a scheduler file of Dask"),
        open_cluster(str(tmp_path / "s.json")),
    ):
        pass
