"""Every stage on a real cluster: the bytes of one machine, whatever is killed meanwhile."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from dask_processes import ROOT, Processes, dask_processes, until
from yaml import safe_load

from brats_seg import pipeline
from brats_seg.bank.build import BuildOptions
from brats_seg.classification.settings import StudySettings
from brats_seg.cli import main
from brats_seg.core.config import load_config
from brats_seg.core.dask_engine import Cluster, open_cluster
from brats_seg.core.errors import InputError
from brats_seg.core.outcome import Outcome, WorkerDiedError
from brats_seg.core.settings import parse_settings
from brats_seg.evaluation.folders import ScoreOptions, evaluate_folders
from brats_seg.inference.options import PredictOptions
from brats_seg.inference.remote import OnCluster
from brats_seg.models.trained import open_run
from brats_seg.phantoms.cohort import write_cohort
from brats_seg.scans.case import Problem
from brats_seg.scans.layouts import find_cases
from brats_seg.scans.verify import verify_cases
from brats_seg.studies.experiment import run_experiment
from brats_seg.studies.grid import GridWorkers
from brats_seg.studies.strategies import ExperimentConfig
from brats_seg.studies.study import run_study, study_rows

distributed = pytest.importorskip("distributed")

TINY = (
    "network.channels=[8,8,16,16,16,8]", "patch.size=[32,32]", "training.epochs=1", "training.steps=2",
    "training.batch_size=16", "training.threads=1",
)  # fmt: skip
BUILD = BuildOptions(n_folds=2)
PREDICT = PredictOptions(device="cpu", precision="float32")


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    with dask_processes(tmp_path_factory.mktemp("dask"), workers=2) as started:
        yield started


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans, a bank, a run and predictions, made on one machine."""
    root = tmp_path_factory.mktemp("local")
    write_cohort(root / "scans", n_cases=4, layout="brats2021", size=48, seed=5)
    assert pipeline.preprocess(root / "scans", root / "bank", options=BUILD, workers=1).exit_code == 0
    config = load_config("demo", overrides=TINY)
    pipeline.train(root / "bank", root / "run", config, fold=0, device="cpu")
    assert pipeline.predict(root / "run", root / "scans", root / "out", options=PREDICT).exit_code == 0
    with chdir(root):  # problems name the folder as it was given
        assert evaluate_folders("out", root / "scans", output="scores").exit_code == 0
    return root


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder that a reader sees."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def _kill_one(processes: Processes, begun: Path) -> None:
    """Kill a worker by SIGKILL once the first case has begun."""
    assert until(lambda: any(begun.glob("cases/*")))
    os.kill(processes.computing_pids()[0], signal.SIGKILL)


def test_every_stage_gives_the_bytes_of_one_machine(
    processes: Processes, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verify; preprocess while a worker is killed; predict with a relative path; evaluate."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scans").symlink_to(local / "scans")
    with open_cluster(str(processes.file), shared=tmp_path) as cluster:
        assert (
            pipeline.verify_scans("scans", cluster=cluster).to_dict()
            == pipeline.verify_scans("scans").to_dict()
        )
        killer = threading.Thread(target=_kill_one, args=(processes, tmp_path / "bank"))
        killer.start()
        submit, sent = cluster.client.submit, []
        monkeypatch.setattr(
            cluster.client, "submit", lambda *job, **to: sent.append(job) or submit(*job, **to)
        )
        built = pipeline.preprocess(local / "scans", tmp_path / "bank", options=BUILD, cluster=cluster)
        killer.join()
        assert len(sent) == 4 + 1  # the case of the killed worker was executed again
        predicted = pipeline.predict(local / "run", "scans", "out", options=PREDICT, cluster=cluster)
        scored = evaluate_folders("out", local / "scans", output="scores", cluster=cluster)
    assert (built.exit_code, predicted.exit_code, scored.exit_code) == (0, 0, 0)
    assert contents(tmp_path / "bank") == contents(local / "bank")
    assert contents(tmp_path / "scores") == contents(local / "scores")
    ours, theirs = contents(tmp_path / "out"), contents(local / "out")
    assert [p.case for p in predicted.predictions] == sorted(built.done)
    for name in theirs.keys() - {"predictions.csv"}:
        assert ours[name] == theirs[name], name
    tables = [pd.read_csv(folder / "out/predictions.csv") for folder in (tmp_path, local)]
    assert tables[0].drop(columns="seconds").equals(tables[1].drop(columns="seconds"))


def test_an_experiment_and_a_study_have_the_rows_of_one_machine(
    processes: Processes, local: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    images = (rng.integers(0, 100, (40, 28, 28)) + 100 * labels[:, None, None]).astype(np.uint8)
    np.savez(tmp_path / "set.npz", images=images, labels=labels)
    study = parse_settings(
        StudySettings,
        {"images": {"name": "npz"}, "base": 12, "training": {"iterations": 3, "batch_size": 4},
         "distributions": [{"kind": "step", "rho": [3], "mu": [0.5]}],
         "methods": {"baseline": {}, "oversample": {"two_phase": True}}},
    )  # fmt: skip
    knobs = {key: safe_load(value) for key, value in (knob.split("=") for knob in TINY)}
    experiment = parse_settings(
        ExperimentConfig,
        {"base": "demo", "every": knobs, "folds": [0],
         "strategies": {kind: {"sampler.kind": kind} for kind in ("random", "balanced")}},
    )  # fmt: skip
    tables = []
    with open_cluster(str(processes.file), shared=tmp_path) as cluster:
        for name, on in (
            ("one", GridWorkers(n=1, device="cpu")),
            ("shared", GridWorkers(n=1, device="cpu", cluster=cluster)),
        ):
            out = tmp_path / name
            assert run_study(study, out / "study", folder=tmp_path / "set.npz", on=on).failed == ()
            assert run_experiment(local / "bank", out / "runs", experiment, on=on).grid.failed == ()
            tables.append([pd.DataFrame(study_rows(out / "study")), pd.read_csv(out / "runs" / "runs.csv")])
    for one, shared in zip(*tables, strict=True):
        assert len(one) > 1
        pd.testing.assert_frame_equal(one.drop(columns="seconds"), shared.drop(columns="seconds"))


def test_a_second_start_goes_on_after_the_client_was_killed(
    processes: Processes, local: Path, tmp_path: Path
) -> None:
    bank = tmp_path / "bank"
    command = [sys.executable, "-m", "brats_seg", "preprocess", str(local / "scans"), str(bank)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "BRATS_SEG_CLUSTER": str(processes.file)}
    with subprocess.Popen([*command, "--folds", "2"], env=environment, stderr=subprocess.PIPE) as client:
        assert until(lambda: any(bank.glob("cases/BraTS*")))
        client.kill()
    assert client.returncode == -signal.SIGKILL
    second = subprocess.run([*command, "--folds", "2"], env=environment, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert "cluster: workers 2, dashboard http://" in second.stderr
    until(lambda: not list(bank.glob("cases/.*.part")), seconds=5)
    assert contents(bank) == contents(local / "bank")


def test_part_beside_cluster_is_one_line(
    local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [
        "preprocess",
        str(local / "scans"),
        str(tmp_path),
        "--part",
        "1/2",
        "--cluster",
        "tcp://127.0.0.1:1",
    ]
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line
        == "brats-seg: --part with --cluster: the cluster already divides the cases; leave out one of the two"
    )


class _DeadlyCluster(Cluster):
    """Each worker that gets the second task dies."""

    def __init__(self) -> None:
        """Connect to nothing."""

    def map_unordered(self, function: Any, tasks: Sequence[Any]) -> Iterator[Outcome[Any, Any]]:
        for position, task in reversed(list(enumerate(tasks))):
            if position == 1:
                yield Outcome(task, error=WorkerDiedError("ended 3 workers"), position=position)
            else:
                yield Outcome(task, value=function(task), position=position)


class _FatalCluster(_DeadlyCluster):
    """Each worker dies of each task."""

    def map_unordered(self, function: Any, tasks: Sequence[Any]) -> Iterator[Outcome[Any, Any]]:
        for position, task in enumerate(tasks):
            yield Outcome(task, error=WorkerDiedError("ended 3 workers"), position=position)


def test_networks_that_no_worker_can_load_are_one_line(tmp_path: Path) -> None:
    remote = OnCluster(_FatalCluster(), runs=[("starter", "x")], options=PREDICT, out=tmp_path)
    with pytest.raises(InputError, match="loading the networks ended 3 workers; start workers with more"):
        remote.settings()


def test_a_case_that_ends_three_workers_is_named_and_the_others_are_done(local: Path, tmp_path: Path) -> None:
    cluster = _DeadlyCluster()
    found = find_cases(local / "scans")
    second = found.cases[1].id
    verified = verify_cases(found, cluster=cluster)
    assert [(p.case, p.what) for p in verified.problems] == [(second, "ended 3 workers")]
    built = pipeline.preprocess(local / "scans", tmp_path / "bank", options=BUILD, cluster=cluster)
    assert ([p.case for p in built.refused], len(built.done)) == ([second], 3)
    scored = evaluate_folders(local / "out", local / "scans", options=ScoreOptions(), cluster=cluster)
    assert [p.case for p in scored.problems if p.severity == "error"] == [second]
    assert len({score.case for score in scored.scores}) == 3
    run = local / "run"
    remote = OnCluster(cluster, runs=[(run, open_run(run).digest)], options=PREDICT, out=tmp_path)
    segmented = remote.segment(found.cases)
    assert [isinstance(result, Problem) for result in segmented] == [False, True, False, False]
