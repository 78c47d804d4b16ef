"""How much of a training step of the reference 2-D U-Net is spent waiting for its patches."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.cohort import open_bank
from benchmarks.measure import Result
from benchmarks.peers import crop_loop_batches, monai_batches, torchio_batches, volumes_of
from benchmarks.reference import channels_last
from benchmarks.sampling import BATCH, DRAWS_PER_TURN, drawing
from brats_seg.bank.bank import PatchBank
from brats_seg.core.sections import Network
from brats_seg.imbalance.samplers import make_sampler
from brats_seg.models.networks import make_network

Load = Callable[[], tuple[Tensor, Tensor]]


def run(*, work: Path, quick: bool) -> Result:
    """Seconds until the next batch is there over seconds of the whole step, everyone in one process; MONAI
    with two workers as well.
    """
    bank = open_bank(work)
    step = _training_step(len(bank.modalities), len(bank.classes))
    volumes = volumes_of(bank)
    loads = _loads(bank, volumes)
    waits, compute = _alternate(loads, step, rounds=4 if quick else 16)
    waits["ours"] += _seconds_to_draw(bank)
    shares = {name: wait / (wait + compute) for name, wait in waits.items()}
    if not quick:
        shares["MONAI, 2 workers"] = _with_workers(
            volumes, step, n_classes=len(bank.classes), compute=compute
        )
    best = {
        peer: min(share for name, share in shares.items() if name.startswith(peer))
        for peer in ("MONAI", "TorchIO", "crop loop")
    }
    return Result(
        "stall",
        "share of a training step spent waiting for patches",
        shares["ours"],
        0.0,
        "MONAI",
        ratios={peer: share / shares["ours"] for peer, share in best.items()},
        share_of_limit=1 - shares["ours"],
        rows={**shares, "step without waiting, ms": 1000 * compute, "our wait, ms": 1000 * waits["ours"]},
    )


def _alternate(
    loads: dict[str, Load], step: Callable[[Tensor, Tensor], None], *, rounds: int
) -> tuple[dict[str, float], float]:
    """Median seconds each waits for a batch, and of a step, over `rounds` of a step each, after one that does
    not count.
    """
    waits: dict[str, list[float]] = {name: [] for name in loads}
    steps: list[float] = []
    for turn in range(rounds + 1):
        for name, load in loads.items():
            start = time.perf_counter()
            batch = load()
            loaded = time.perf_counter()
            step(*batch)
            if turn:
                waits[name].append(loaded - start)
                steps.append(time.perf_counter() - loaded)
    return {name: statistics.median(times) for name, times in waits.items()}, statistics.median(steps)


def _with_workers(
    volumes: list[Any], step: Callable[[Tensor, Tensor], None], *, n_classes: int, compute: float
) -> float:
    """What two worker processes cost a step, on cores that they share with it: what it takes over the step
    alone.
    """
    load = _squeezed(monai_batches(volumes, n_classes=n_classes, workers=2, from_cases=1))
    totals = []
    for _ in range(16):
        start = time.perf_counter()
        step(*load())
        totals.append(time.perf_counter() - start)
    return max(0.0, 1 - compute / statistics.median(totals[4:]))


def _seconds_to_draw(bank: PatchBank) -> float:
    """Mean seconds of drawing a batch's ids: they are drawn for 273 batches at once, so a median of single
    draws would not see it.
    """
    draw = drawing(bank)
    start = time.perf_counter()
    for _ in range(DRAWS_PER_TURN):
        draw()
    return (time.perf_counter() - start) / DRAWS_PER_TURN


def _loads(bank: PatchBank, volumes: list[Any]) -> dict[str, Load]:
    sampler = make_sampler("balanced", bank.index, batch_size=BATCH, steps=1000, seed=0)
    k = len(bank.classes)
    out = bank.batch(sampler.next().ids)

    def ours() -> tuple[Tensor, Tensor]:
        batch = bank.batch(sampler.next().ids, out=out)
        return batch.inputs, batch.targets

    return {
        "ours": ours,
        "MONAI, 12 of 10 cases": _squeezed(monai_batches(volumes, n_classes=k, workers=0, from_cases=10)),
        "MONAI, 120 of 1 case": _squeezed(monai_batches(volumes, n_classes=k, workers=0, from_cases=1)),
        "crop loop": crop_loop_batches(volumes, n_classes=k),
        "TorchIO": _squeezed(torchio_batches(volumes, n_classes=k, workers=0)),
    }


def _squeezed(load: Callable[[], Any]) -> Load:
    """Image (B, M, Y, X) and label (B, Y, X) of a batch of one-slice patches (MONAI's and TorchIO's form)."""

    def pair() -> tuple[Tensor, Tensor]:
        batch = load()
        image, label = (
            entry["data"] if isinstance(entry, dict) else entry for entry in (batch["image"], batch["label"])
        )
        return image[:, :, 0], label[:, 0, 0]

    return pair


def _training_step(n_channels: int, n_classes: int) -> Callable[[Tensor, Tensor], None]:
    network = channels_last(make_network(Network(), n_channels=n_channels, n_classes=n_classes, n_dims=2))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)

    def step(inputs: Tensor, targets: Tensor) -> None:
        kept = targets.long()
        logits = network(inputs.contiguous(memory_format=torch.channels_last))
        loss = cross_entropy(logits, torch.where(kept >= n_classes, 0, kept))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step
