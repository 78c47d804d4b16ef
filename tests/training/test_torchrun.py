"""Two nodes under torchrun, one of which is killed: the other goes on from the last checkpoint."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from dask_processes import ROOT, until
from test_pipeline import TINY

from brats_seg import pipeline
from brats_seg.bank.build import BuildOptions
from brats_seg.core.config import load_config
from brats_seg.core.files import LAST
from brats_seg.models.checkpoint import load_checkpoint
from brats_seg.phantoms.cohort import write_cohort

OVERRIDES = (
    *TINY, "network.norm=group", "training.epochs=6", "training.checkpoint_epochs=1", "validation.every=6",
    "training.precision=float32", "optimizer.kind=sgd", "optimizer.lr=0.01",  # Adam makes steps of rounding
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a node runs: its address, the address of the first node, what its command begins with, and
    whether it holds the store of the rendezvous: the first node does, and lives on.
    """

    address: str
    first: str
    prefix: tuple[str, ...] = ()
    interface: str = "lo"
    role: str = ""


def ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True, capture_output=True)


@contextmanager
def two_places(kind: str) -> Iterator[list[Place]]:
    """Two nodes on the loopback address, or each in a network namespace of its own, joined by a cable."""
    if kind == "loopback":
        yield [Place("127.0.0.1", "127.0.0.1", role=role) for role in (",is_host=true", ",is_host=false")]
        return
    places = [
        Place(
            address=f"10.213.0.{n}",
            first="10.213.0.1",
            prefix=("ip", "netns", "exec", f"bratsseg{n}"),
            interface=f"bratsseg-v{n}",
            role=f",is_host={n == 1}",
        )
        for n in (1, 2)
    ]
    try:
        ip("link add bratsseg-v1 type veth peer name bratsseg-v2")
        for place in places:
            ip(f"netns add {place.prefix[-1]}")
            ip(f"link set {place.interface} netns {place.prefix[-1]}")
            ip(f"-n {place.prefix[-1]} addr add {place.address}/24 dev {place.interface}")
            for interface in ("lo", place.interface):
                ip(f"-n {place.prefix[-1]} link set {interface} up")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces cannot be made here: {error}")
    try:
        yield places
    finally:
        for place in places:
            ip(f"netns del {place.prefix[-1]}")


def node(bank: Path, run: Path, *, place: Place, port: int, log: Path) -> "subprocess.Popen[bytes]":
    """A torchrun agent with one rank."""
    torchrun = [
        *place.prefix, sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2", "--nproc-per-node=1",
        "--rdzv-backend=c10d", f"--rdzv-endpoint={place.first}:{port}", "--rdzv-id=brats",
        "--rdzv-conf=join_timeout=60,last_call_timeout=5,keep_alive_interval=1,keep_alive_max_attempt=3"
        f"{place.role}",
        "--max-restarts=3", f"--local-addr={place.address}",
    ]  # fmt: skip
    verb = ["-m", "brats_seg", "train", str(bank), str(run), "--config", "demo", "--fold", "0", "--resume"]
    knobs = [word for override in OVERRIDES for word in ("--set", override)]
    settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": place.interface}
    command = [*torchrun, *verb, *knobs, "--device", "cpu"]
    with log.open("wb") as file:
        return subprocess.Popen(
            command, env={**os.environ, **settings}, stdout=file, stderr=subprocess.STDOUT
        )


def lose_power(agent: "subprocess.Popen[bytes]") -> None:
    """Kill a node by SIGKILL: the agent and its rank, which has a session of its own."""
    for process in [*psutil.Process(agent.pid).children(recursive=True), psutil.Process(agent.pid)]:
        process.kill()
    agent.wait()


@pytest.mark.campaign
@pytest.mark.parametrize("kind", ["loopback", "namespaces"])
def test_a_node_that_is_killed_costs_no_more_than_the_steps_since_the_last_checkpoint(
    kind: str, tmp_path: Path
) -> None:
    write_cohort(tmp_path / "scans", n_cases=4, layout="brats2021", size=48, seed=1)
    bank, run = tmp_path / "bank", tmp_path / "run"
    pipeline.preprocess(tmp_path / "scans", bank, options=BuildOptions(n_folds=2), workers=1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    logs = [tmp_path / f"node{number}.txt" for number in range(2)]
    with two_places(kind) as places:
        nodes = [
            node(bank, run, place=place, port=port, log=log) for place, log in zip(places, logs, strict=True)
        ]
        assert until(lambda: (run / LAST).exists(), seconds=600), logs[0].read_text()
        lose_power(nodes[1])
        assert nodes[0].wait(timeout=900) == 0, logs[0].read_text()
    log = logs[0].read_text()
    assert "failed (exitcode: 1)" in log  # the rank that lost its peer
    assert [log.count(f"training {n}/6: epoch {n}:") for n in range(1, 7)] == [1] * 6  # none twice
    config = load_config("demo", overrides=OVERRIDES)
    pipeline.train(bank, tmp_path / "whole", config, fold=0, device="cpu")
    survivor, whole = (load_checkpoint(tmp_path / name / LAST) for name in ("run", "whole"))
    assert (survivor.epoch, len(survivor.weights)) == (6, len(whole.weights))
    for name, weight in whole.weights.items():
        torch.testing.assert_close(survivor.weights[name], weight, atol=1e-4, rtol=1e-3)
