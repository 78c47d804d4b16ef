"""The steps of a training, on voxels or images: draw, gather, learn."""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from brats_seg.core.sections import Hard
from brats_seg.core.shapes import Counts, Ids
from brats_seg.imbalance.index import ClassIndex
from brats_seg.imbalance.ledger import Ledger
from brats_seg.imbalance.sampler import Draw, Sampler
from brats_seg.imbalance.samplers import HardSampler
from brats_seg.training.log import Stopwatch
from brats_seg.training.step import AnyInputs, AnyTargets, Learned, Learner, Lesson, Second

V = TypeVar("V")
Training = Generator[Lesson, Learned, V]
"""A training as a generator. It stops before each step and receives the result of the step. Its return value
is the result of the training. `alone` runs one training, `stack.train_together` several.
"""
Losses = list[tuple[int, Draw, float]]
"""Number, draw and loss of several steps."""


class Examples(NamedTuple):
    """The examples of one step, on the device of the runtime.

    Attributes:
        inputs: float32 (B, channels, *patch): patches, or whole images.
        targets: class of each voxel (B, *patch), or of each image (B,): uint8, or int64 if there are more
            than 255 classes.
        counts: (K + 1,) int64, number of examples of each class in the loss; the last entry counts voxels
            outside the brain. NumPy, or a tensor on any device.
    """

    inputs: AnyInputs
    targets: AnyTargets
    counts: Any


@runtime_checkable
class Source(Protocol):
    """Provides examples. A sampler chooses the examples from its `index`."""

    @property
    def index(self) -> ClassIndex:
        """The ids of each class."""

    def batch(self, draw: Draw, *, number: int) -> Examples:
        """The examples of a draw for step `number` of the run. The next batch may use the same memory."""


@runtime_checkable
class MinedSource(Source, Protocol):
    """A source that can also find the examples that are hard for a network."""

    def hard_pools(
        self, network: nn.Module, sampler: HardSampler, *, hard: Hard, seed: int
    ) -> Mapping[int, Ids]:
        """The ids of each class that are hard for the network, for the next pass of the sampler.

        Args:
            network: the network, in evaluation mode.
            sampler: the sampler, at the end of a pass.
            hard: determines which ids are tested and when an id is hard.
            seed: seed for the choice of the tested ids.
        """


@runtime_checkable
class Mixes(Protocol):
    """Mixes the examples of a batch in place, and returns the second label of each example."""

    def __call__(self, examples: Examples, draw: Draw, *, number: int) -> Second:
        """Mix the examples of step `number` of the run."""


@dataclass(kw_only=True)
class Steps:
    """A network in training, its source of examples, and the counts of its draws.

    Attributes:
        sampler: draws the ids.
        source: provides their examples.
        learner: updates the weights.
        mixer: mixes the examples of a batch; None for no mixing.
        ledger: counts the draws; None if the counts are not needed.
        n_drawn: (K,) number of draws of each class.
        unchecked: number, draw and loss of the steps whose losses were not read yet.
    """

    sampler: Sampler
    source: Source
    learner: Learner
    mixer: Mixes | None = None
    ledger: Ledger | None = None
    watch: Stopwatch = field(default_factory=Stopwatch)
    unchecked: list[tuple[int, Draw, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.n_drawn: Counts = np.zeros(self.source.index.n_classes, np.int64)

    def take(
        self, number: int, *, wishes: Callable[[], tuple[bool, ...]] = lambda: ()
    ) -> Training[tuple[bool, ...]]:
        """Take step `number` of the run.

        Args:
            number: number of the step, from 0.
            wishes: function that is called after the batch was gathered; see `Learner.learn`.

        Returns:
            The wishes that hold for all ranks.
        """
        with self.watch("sampling_s"):
            draw = self.sampler.next()
        examples = self.source.batch(draw, number=number)
        if self.ledger is not None:
            self.ledger.add(draw, examples.counts)
        second = None if self.mixer is None else self.mixer(examples, draw, number=number)
        loss, granted = yield Lesson(
            self.learner, examples.inputs, examples.targets, number, second, wishes()
        )
        self.n_drawn += np.bincount(draw.classes, minlength=len(self.n_drawn))
        self.unchecked.append((number, draw, loss))
        return granted

    def losses(self) -> Losses:
        """Number, draw and loss of the steps since the last read."""
        values = torch.stack([loss for _, _, loss in self.unchecked]).tolist() if self.unchecked else []
        looked_at = [
            (number, draw, value) for (number, draw, _), value in zip(self.unchecked, values, strict=True)
        ]
        self.unchecked.clear()
        return looked_at


def alone(training: Training[V]) -> V:
    """Run one training, and return its result."""
    try:
        lesson = next(training)
        while True:
            lesson = training.send(lesson.learn())
    except StopIteration as end:
        value: V = end.value
        return value


@dataclass
class Best:
    """The best score until now (higher is better) and its epoch; None before the first score."""

    at: int | None = None
    score: float | None = None

    def see(self, at: int, score: float) -> bool:
        """Add a score. Return whether it is the best score. NaN is never the best score."""
        if np.isnan(score) or (self.score is not None and score <= self.score):
            return False
        self.at, self.score = at, score
        return True
