"""A training step of the published configuration beside the same network on a fixed batch in memory;
augmentation beside it.
"""

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.cohort import open_bank
from benchmarks.measure import Contender, Result, interleave
from brats_seg.bank.bank import PatchBank
from brats_seg.bank.gather import Batch
from brats_seg.core.augmentation import Augment
from brats_seg.core.config import Config, load_config
from brats_seg.core.runtime import Runtime, start_runtime
from brats_seg.imbalance.ledger import Ledger
from brats_seg.imbalance.sampler import Sampler
from brats_seg.imbalance.samplers import make_sampler
from brats_seg.models.losses import make_loss
from brats_seg.models.networks import make_network
from brats_seg.training.augment import Augmenter
from brats_seg.training.run import LOSSES_AT_ONCE
from brats_seg.training.split import Split
from brats_seg.training.step import Learner, Schedule
from brats_seg.training.train import train

CONFIG = "unet2d"
BLOCK = 273
"""Batches of 120 whose ids the sampler draws at once."""
STEPS_A_TURN = {"cpu": 2, "cuda": BLOCK}
OFF = Augment(flip=0.0)
Step = Callable[[], object]


def run(*, work: Path, quick: bool, device: str) -> Result:
    """Our step (draw, gather, count, learn) with augmentation off and on; on CUDA also the published budget,
    with hard replay.
    """
    config = load_config(CONFIG)
    bank = open_bank(work, patch_size=config.patch.size)
    runtime = start_runtime(device=device, precision=config.training.precision)
    steps = {
        "ours": our_step(bank, config, runtime, augment=OFF),
        "fixed batch": fixed_step(bank, config, runtime),
        "fixed batch, plain loop": plain_step(bank, config, runtime),
        "ours, augmented": our_step(bank, config, runtime, augment=config.augment),
        "augmentation alone": augmenting(bank, config, runtime),
    }
    n = STEPS_A_TURN[runtime.device.type]
    contenders = [Contender(name, _turn(step, n, runtime)) for name, step in steps.items()]
    drawing = Contender("draw ids", _sampler(bank, config).next, per_turn=4 * BLOCK)
    seconds = interleave([*contenders, drawing], rounds=3 if quick else 15)
    draw = seconds.pop("draw ids")
    seconds = {name: taken / n for name, taken in seconds.items()}
    if n < BLOCK:  # the median turn draws nothing
        seconds |= {name: seconds[name] + draw for name in ("ours", "ours, augmented")}
    more = _published_budget(bank, quick=quick, device=device) if runtime.device.type == "cuda" else {}
    return _result(seconds, config, runtime, more)


def our_step(bank: PatchBank, config: Config, runtime: Runtime, *, augment: Augment) -> Step:
    """What the loop of `training.loop` does for a batch: draw, gather, enter in the ledger, augment, learn,
    look at the losses.
    """
    seen, sampler, learner = bank.to(runtime.device), _sampler(bank, config), _learner(bank, config, runtime)
    augmenter, ledger = Augmenter(augment, seed=0, patch_size=bank.patch_size), Ledger(bank.classes)
    batches: list[Batch | None] = [None]
    losses: list[Tensor] = []
    learner.network.train()

    def step() -> None:
        epoch, number = sampler.epoch, (sampler.epoch - 1) * config.training.steps + sampler.step
        draw = sampler.next()
        parameters = augmenter.draw(epoch=epoch, positions=draw.positions, n_modalities=len(bank.modalities))
        batch = seen.batch(draw.ids, out=batches[0], maps=augmenter.maps(parameters))
        batches[0] = batch
        ledger.add(draw, batch.counts)
        inputs, targets = augmenter(batch.inputs, batch.targets, parameters=parameters)
        losses.append(learner.learn(inputs, targets, number=number)[0])
        if len(losses) >= LOSSES_AT_ONCE[runtime.device.type]:
            torch.stack(losses).tolist()
            losses.clear()

    return step


def fixed_step(bank: PatchBank, config: Config, runtime: Runtime) -> Step:
    """Our optimizer step on one batch."""
    batch, learner = _one_batch(bank, config, runtime), _learner(bank, config, runtime)
    learner.network.train()
    return lambda: learner.learn(batch.inputs, batch.targets, number=0)


def plain_step(bank: PatchBank, config: Config, runtime: Runtime) -> Step:
    """The least that trains this network: forward, cross-entropy, backward, fused AdamW; same precision and
    layout, one batch.
    """
    batch, network = _one_batch(bank, config, runtime), runtime.place(_network(bank, config)).train()
    classes = batch.targets.long().masked_fill_(batch.targets == 255, 0)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.optimizer.lr, weight_decay=config.optimizer.weight_decay, fused=True
    )

    def step() -> None:
        with runtime.autocast():
            logits = network(batch.inputs)
        loss = cross_entropy(logits.float(), classes)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def augmenting(bank: PatchBank, config: Config, runtime: Runtime) -> Step:
    """A batch drawn, gathered through its maps and augmented as published, other parameters each time."""
    sampler, augmenter = _sampler(bank, config), Augmenter(config.augment, seed=0, patch_size=bank.patch_size)
    seen, n_modalities = bank.to(runtime.device), len(bank.modalities)
    batches: list[Batch | None] = [None]

    def step() -> None:
        draw = sampler.next()
        parameters = augmenter.draw(epoch=sampler.epoch, positions=draw.positions, n_modalities=n_modalities)
        batch = seen.batch(draw.ids, out=batches[0], maps=augmenter.maps(parameters))
        batches[0] = batch
        augmenter(batch.inputs, batch.targets, parameters=parameters)

    return step


def _turn(step: Step, n: int, runtime: Runtime) -> Step:
    """`n` steps, and the wait until the device has done them."""

    def turn() -> None:
        for _ in range(n):
            step()
        if runtime.device.type == "cuda":
            torch.cuda.synchronize(runtime.device)

    return turn


def _sampler(bank: PatchBank, config: Config) -> Sampler:
    return make_sampler(
        "balanced", bank.index, batch_size=config.training.batch_size, steps=config.training.steps, seed=0
    )


def _one_batch(bank: PatchBank, config: Config, runtime: Runtime) -> Batch:
    return bank.to(runtime.device).batch(_sampler(bank, config).next().ids)


def _network(bank: PatchBank, config: Config) -> torch.nn.Module:
    torch.manual_seed(0)
    return make_network(
        config.network,
        n_channels=len(bank.modalities),
        n_classes=len(bank.classes),
        n_dims=len(bank.patch_size),
    )


def _learner(bank: PatchBank, config: Config, runtime: Runtime) -> Learner:
    return Learner(
        _network(bank, config),
        loss=make_loss(config.loss.kind, outside=config.loss.outside),
        schedule=Schedule(
            optimizer=config.optimizer,
            n_steps=config.training.epochs * config.training.steps,
            batch_size=config.training.batch_size,
            ema=config.training.ema,
        ),
        runtime=runtime,
    )


def _published_budget(bank: PatchBank, *, quick: bool, device: str) -> dict[str, float]:
    """Minutes of the product's own `train`: 50 epochs x 1,000 x 120 patches, hard replay and augmentation on;
    `quick` does two.
    """
    overrides = ("sampler.kind=hard", *(["training.epochs=2"] if quick else []))
    config = load_config(CONFIG, overrides=overrides)
    runtime = start_runtime(device=device, precision=config.training.precision)
    with TemporaryDirectory() as folder:
        start = time.perf_counter()
        result = train(
            Path(folder) / "run",
            bank=bank,
            split=Split(tuple(case.id for case in bank.cases)),
            config=config,
            runtime=runtime,
        )
        minutes = (time.perf_counter() - start) / 60
    return {
        f"train, {result.n_epochs} epochs x {config.training.steps} x {config.training.batch_size}, hard "
        "replay, minutes": minutes
    }


def _result(seconds: dict[str, float], config: Config, runtime: Runtime, more: dict[str, float]) -> Result:
    ours, augmentation = seconds["ours"], seconds.pop("augmentation alone")
    limit = min(seconds["fixed batch"], seconds["fixed batch, plain loop"])
    rows = {name: 1 / taken for name, taken in seconds.items()} | {
        f"{name}, ms": 1000 * taken for name, taken in seconds.items()
    }
    rows |= {
        "our step to the fixed batch": ours / seconds["fixed batch"],
        "our step to the plain loop": ours / seconds["fixed batch, plain loop"],
        "augmentation alone, ms": 1000 * augmentation,
        "augmentation, share of a step": augmentation / (augmentation + ours),
        "patches per second": config.training.batch_size / ours,
    }
    precision = (
        "float32" if runtime.dtype_autocast is None else str(runtime.dtype_autocast).removeprefix("torch.")
    )
    return Result(
        "train", f"steps per second of {config.training.batch_size} patches, {CONFIG}, "
                 f"{runtime.device.type}, {precision}",
        1 / ours, 1 / limit, "fixed batch",
        ratios={name: seconds[name] / ours for name in ("fixed batch", "fixed batch, plain loop")},
        share_of_limit=limit / ours, rows=rows | more,
    )  # fmt: skip
