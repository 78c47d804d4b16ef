"""Two nodes under torchrun, one of which is killed: the other goes on from the last checkpoint."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dask_processes import ROOT, until
from test_pipeline import TINY

from brats_seg import pipeline
from brats_seg.bank.build import BuildOptions
from brats_seg.core.config import load_config
from brats_seg.core.run_folder import LAST
from brats_seg.models.checkpoint import load_checkpoint
from brats_seg.phantoms.cohort import write_cohort

OVERRIDES = (
    *TINY, "network.norm=group", "training.epochs=6", "training.checkpoint_epochs=1", "validation.every=6",
    "optimizer.clip_norm=1",
)  # fmt: skip


def node(bank: Path, run: Path, *, port: int, log: Path) -> "subprocess.Popen[bytes]":
    """A torchrun agent with one rank, in a process group of its own as on a node of its own."""
    torchrun = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2", "--nproc-per-node=1",
        "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=brats", "--max-restarts=3",
        "--rdzv-conf=join_timeout=60,last_call_timeout=5,keep_alive_interval=1,keep_alive_max_attempt=3",
        "--local-addr=127.0.0.1",
    ]  # fmt: skip
    verb = ["-m", "brats_seg", "train", str(bank), str(run), "--config", "demo", "--fold", "0", "--resume"]
    knobs = [word for override in OVERRIDES for word in ("--set", override)]
    return subprocess.Popen(
        [*torchrun, *verb, *knobs, "--device", "cpu"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=log.open("wb"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


@pytest.mark.campaign
def test_a_node_that_is_killed_costs_no_more_than_the_steps_since_the_last_checkpoint(tmp_path: Path) -> None:
    write_cohort(tmp_path / "scans", n_cases=4, layout="brats2021", size=48, seed=1)
    bank, run = tmp_path / "bank", tmp_path / "run"
    pipeline.preprocess(tmp_path / "scans", bank, options=BuildOptions(n_folds=2), workers=1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    nodes = [node(bank, run, port=port, log=tmp_path / f"node{number}.txt") for number in range(2)]
    assert until(lambda: (run / LAST).exists(), seconds=300), (tmp_path / "node0.txt").read_text()
    os.killpg(nodes[1].pid, signal.SIGKILL)  # the agent and its rank, as when a node loses power
    nodes[1].wait()
    assert nodes[0].wait(timeout=300) == 0, (tmp_path / "node0.txt").read_text()
    config = load_config("demo", overrides=OVERRIDES)
    pipeline.train(bank, tmp_path / "whole", config, fold=0, device="cpu")
    survivor, whole = (load_checkpoint(tmp_path / name / LAST) for name in ("run", "whole"))
    assert (survivor.epoch, len(survivor.weights)) == (6, len(whole.weights))
    for name, weight in whole.weights.items():
        torch.testing.assert_close(survivor.weights[name], weight, atol=2e-2, rtol=1e-2)
