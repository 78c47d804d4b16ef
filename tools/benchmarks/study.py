"""Iterations of LeNet-5 a second: the study's workers beside a plain PyTorch DataLoader loop, an in-memory
loop and the arithmetic alone.

Every contender is one process for each core with one thread, or (the loops, which are the headline peer's own
way) one process with all cores; all have the allocator set. Real MNIST where BRATS_SEG_DATA holds it, random
bytes otherwise.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from benchmarks.measure import Contender, Result, interleave
from brats_seg.classification.fitting import TrainingImages, build_network
from brats_seg.classification.image_set import ImageSet
from brats_seg.classification.images import load_images
from brats_seg.classification.methods import remedy
from brats_seg.classification.settings import Knobs, StudySettings
from brats_seg.classification.source import ImageSource
from brats_seg.core.errors import InputError
from brats_seg.core.runtime import Runtime, set_allocator
from brats_seg.core.settings import load_settings
from brats_seg.training.phases import Method as Phases
from brats_seg.training.steps import Steps, alone

BATCH = 64
Step = Callable[[], object]
LOSS_STEPS = 50
"""Iterations over which the losses of our step and of a plain loop are compared."""


def run(*, work: Path, quick: bool) -> Result:
    """Network-iterations a second of the whole machine, and the share of a worker's time around the
    arithmetic.
    """
    images = _digits()
    cores = torch.get_num_threads()
    n = 10 if quick else 40
    gang = [_Worker("ours", n), *[_Worker("ours", n) for _ in range(cores - 1)]]
    loops = {
        "DataLoader loop": loader_step(images, workers=0),
        f"DataLoader loop, {cores} worker processes": loader_step(images, workers=cores),
        "in-memory loop": memory_step(images),
    }
    contenders = [Contender(name, _times(step, n)) for name, step in loops.items()]
    seconds = interleave([Contender("ours", lambda: _together(gang)), *contenders], rounds=3 if quick else 9)
    for worker in gang:
        worker.end()
    torch.set_num_threads(1)
    alone = {"our step": _times(our_step(images), n), "arithmetic alone": _times(arithmetic_step(images), n)}
    single = interleave([Contender(name, work) for name, work in alone.items()], rounds=5 if quick else 25)
    rates = {name: n / taken for name, taken in seconds.items()}
    rates["ours"] *= cores
    limit = cores * n / single["arithmetic alone"]
    rows = rates | {
        "one worker, ms": 1e3 * single["our step"] / n,
        "arithmetic alone, ms": 1e3 * single["arithmetic alone"] / n,
        "overhead around the arithmetic, %": 100 * (single["our step"] / single["arithmetic alone"] - 1),
        f"largest difference of {LOSS_STEPS} losses to a plain loop of the same seed and "
        "order": loss_difference(images),
    }
    ratios = {name: rates["ours"] / rate for name, rate in rates.items() if name != "ours"}
    return Result(
        "study",
        f"LeNet-5 iterations of {BATCH} images a second, {cores} cores, float32",
        rates["ours"],
        limit,
        "DataLoader loop",
        ratios=ratios,
        share_of_limit=rates["ours"] / limit,
        rows=rows,
    )


def our_step(images: ImageSet) -> Step:
    """What a worker of a study does for an iteration: draw, gather, learn."""
    settings, runtime = _settings(), Runtime(torch.device("cpu"))
    source = ImageSource(images)
    pool, network = source, build_network(settings, images, seed=0, runtime=runtime).train()
    config = remedy("baseline", Knobs()).config(settings, lr=settings.optimizer.lr, seed=0)
    phases = Phases(config=config, index=pool.index, runtime=runtime, targets="images")
    steps = Steps(
        sampler=phases.make_sampler(phases.first()),
        source=TrainingImages(pool, runtime=runtime),
        learner=phases.make_learner(phases.first(), network),
    )
    steps.learner.begin_epoch()
    numbers = count()

    def step() -> Tensor:
        alone(steps.take(next(numbers)))
        return steps.unchecked.pop()[2]

    return step


def arithmetic_step(images: ImageSet) -> Step:
    """The least that trains this network: one batch, forward, cross-entropy, backward, fused SGD; channels
    last.
    """
    batch = ImageSource(images).batch(np.arange(BATCH))
    return _plain_step(images, lambda: (batch.inputs, batch.targets.long()), channels_last=True, fused=True)


def memory_step(images: ImageSet) -> Step:
    """Images in memory as float32, planar; a random batch indexed each time."""
    pixels = torch.from_numpy(images.images).permute(0, 3, 1, 2).float().mul_(images.scale).contiguous()
    labels, generator = torch.from_numpy(images.labels), torch.Generator().manual_seed(0)

    def batch() -> tuple[Tensor, Tensor]:
        ids = torch.randint(len(labels), (BATCH,), generator=generator)
        return pixels[ids], labels[ids]

    return _plain_step(images, batch, channels_last=False, fused=False)


def loader_step(images: ImageSet, *, workers: int) -> Step:
    """The usual way: a data set of PIL images made tensors one by one, a shuffling DataLoader, SGD."""
    loader = DataLoader(
        _Digits(images),
        BATCH,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        drop_last=True,
    )
    batches = _forever(loader)
    return _plain_step(images, lambda: next(batches), channels_last=False, fused=False)


def loss_difference(images: ImageSet) -> float:
    """Our losses against those of a plain loop with torch's own SGD that is given the same first weights and
    the same batches.
    """
    settings, runtime = _settings(), Runtime(torch.device("cpu"))
    source = ImageSource(images)
    ours = our_step(images)
    network = build_network(settings, images, seed=0, runtime=runtime).to(
        memory_format=torch.contiguous_format
    )
    knobs = settings.optimizer
    optimizer = torch.optim.SGD(
        network.parameters(), lr=knobs.lr, momentum=knobs.momentum, weight_decay=knobs.weight_decay
    )
    config = remedy("baseline", Knobs()).config(settings, lr=knobs.lr, seed=0)
    phases = Phases(config=config, index=source.index, runtime=runtime, targets="images")
    draws = phases.make_sampler(phases.first())
    worst = 0.0
    for number in range(LOSS_STEPS):
        batch = source.batch(draws.next().ids)
        for group in optimizer.param_groups:
            group["lr"] = knobs.lr * (1 + knobs.gamma * number) ** -knobs.power
        loss = cross_entropy(network(batch.inputs.contiguous()), batch.targets.long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        worst = max(worst, abs(float(loss.detach()) - float(ours())))  # type: ignore[arg-type]
    return worst


class _Digits(Dataset[tuple[Tensor, int]]):
    """As torchvision's MNIST gives them: a PIL image, made a float tensor of (1, y, x)."""

    def __init__(self, images: ImageSet) -> None:
        self._images, self._scale = images, images.scale

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        picture = Image.fromarray(np.asarray(self._images.images[i, :, :, 0]))
        return torch.from_numpy(np.array(picture))[None].float().mul_(self._scale), int(
            self._images.labels[i]
        )


class _Worker:
    """A process with one thread that takes `n` of our steps whenever it is told to."""

    def __init__(self, name: str, n: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, n), name=name, daemon=True)
        self._process.start()

    def end(self) -> None:
        self.pipe.send(False)
        self._process.join()


def _serve(pipe: Connection, n: int) -> None:
    set_allocator()
    torch.set_num_threads(1)
    step = our_step(_digits())
    while pipe.recv():
        for _ in range(n):
            step()
        pipe.send(True)


def _together(gang: list[_Worker]) -> None:
    """Every worker takes its steps at once."""
    for worker in gang:
        worker.pipe.send(True)
    for worker in gang:
        worker.pipe.recv()


def _plain_step(
    images: ImageSet, batch: Callable[[], tuple[Tensor, Tensor]], *, channels_last: bool, fused: bool
) -> Step:
    network: nn.Module = build_network(
        _settings(), images, seed=0, runtime=Runtime(torch.device("cpu"))
    ).train()
    if not channels_last:
        network = network.to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=fused)

    def step() -> None:
        inputs, targets = batch()
        loss = cross_entropy(network(inputs), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def _times(step: Step, n: int) -> Step:
    def turn() -> None:
        for _ in range(n):
            step()

    return turn


def _forever(loader: "DataLoader[tuple[Tensor, int]]") -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from loader


def _settings() -> StudySettings:
    return load_settings(StudySettings, "mnist_quick", shelf="studies")


def _digits() -> ImageSet:
    """MNIST's training images, or as many random ones."""
    try:
        return load_images("mnist", Path(os.environ.get("BRATS_SEG_DATA", "")) / "mnist").train
    except InputError:
        generator = np.random.default_rng(0)
        pixels = generator.integers(0, 256, (60_000, 28, 28, 1), dtype=np.uint8)
        return ImageSet(
            "random digits", pixels, generator.integers(10, size=60_000), tuple("0123456789"), 1 / 256
        )
