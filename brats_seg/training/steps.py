"""Draw, gather, learn: one step after another, on voxels and on images alike."""

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
"""A training that stops before each step, to be told what the step came to. Its value is what it gives at its
end. `alone` runs one, `stack.train_together` several.
"""
Losses = list[tuple[int, Draw, float]]
"""Number, draw and loss of some steps."""


class Examples(NamedTuple):
    """What a network learns from in one step, on the runtime's device.

    Attributes:
        inputs: float32 (B, channels, *patch): patches, or whole images.
        targets: class of each voxel (B, *patch), or of each image (B,): uint8, or int64 where there are more
            than 255 classes.
        counts: (K + 1,) int64 examples of each class that enter the loss, and a last place for voxels outside
            the brain; NumPy, or a tensor on any device.
    """

    inputs: AnyInputs
    targets: AnyTargets
    counts: Any


@runtime_checkable
class Source(Protocol):
    """Where examples come from. A source never chooses: a sampler draws from its `index`."""

    @property
    def index(self) -> ClassIndex:
        """The ids of each class."""

    def batch(self, draw: Draw, *, number: int) -> Examples:
        """The examples of a draw, as they are learned from in step `number` of the run. The next batch may
        write into the same memory.
        """


@runtime_checkable
class MinedSource(Source, Protocol):
    """A source that also says which of its examples a network finds hard."""

    def hard_pools(
        self, network: nn.Module, sampler: HardSampler, *, hard: Hard, seed: int
    ) -> Mapping[int, Ids]:
        """The ids of each class that the network finds hard, for the next pass of the sampler.

        Args:
            network: in evaluation mode.
            sampler: has ended a pass.
            hard: which ids are asked about, and what hard is.
            seed: of the ids that are asked about.
        """


@runtime_checkable
class Mixes(Protocol):
    """Mixes the examples of a batch in place, and gives the second label of each."""

    def __call__(self, examples: Examples, draw: Draw, *, number: int) -> Second:
        """Mix the examples of step `number` of the run."""


@dataclass(kw_only=True)
class Steps:
    """A network that learns, what it learns from, and what it was shown.

    Attributes:
        sampler: which ids are drawn.
        source: gives their examples.
        learner: moves the weights.
        mixer: mixes the examples of a batch; None leaves them as they are.
        ledger: counts what was drawn; None where nobody asks.
        n_drawn: (K,) draws of each class.
        unchecked: number, draw and loss of the steps whose losses were not looked at yet.
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
            number: from 0.
            wishes: asked after the batch was gathered; see `Learner.learn`.

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
        """Number, draw and loss of the steps since the last look."""
        values = torch.stack([loss for _, _, loss in self.unchecked]).tolist() if self.unchecked else []
        looked_at = [
            (number, draw, value) for (number, draw, _), value in zip(self.unchecked, values, strict=True)
        ]
        self.unchecked.clear()
        return looked_at


def alone(training: Training[V]) -> V:
    """Run a training by itself, and give its value."""
    try:
        lesson = next(training)
        while True:
            lesson = training.send(lesson.learn())
    except StopIteration as end:
        value: V = end.value
        return value


@dataclass
class Best:
    """The best score so far, higher is better, and when it was reached; None before the first."""

    at: int | None = None
    score: float | None = None

    def see(self, at: int, score: float) -> bool:
        """Take in a score; whether it is the best. A score that is no number never is."""
        if np.isnan(score) or (self.score is not None and score <= self.score):
            return False
        self.at, self.score = at, score
        return True
