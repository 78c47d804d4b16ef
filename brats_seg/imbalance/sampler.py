"""The base class of all samplers: a stream of draws that is the same on every rank and after a resumed
run.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int64

from brats_seg.core.errors import UsageError, refuse
from brats_seg.core.shapes import Counts, Ids, Shares
from brats_seg.imbalance.groups import Groups
from brats_seg.imbalance.index import ClassIndex
from brats_seg.imbalance.shares import drifted_shares

# Number of ids drawn at once. The positions of 1,251 cases are then read once for 273 batches of 120 draws,
# not in every batch.
_BLOCK_DRAWS = 32768
# The purpose of a random stream. It is a word of the generator's counter, so that no two streams of an epoch
# overlap.
DRAWS, POOL, SHUFFLE, SUBSET = range(4)


@dataclass(frozen=True)
class Draw:
    """The part of one batch that belongs to this rank.

    Attributes:
        ids: example ids.
        classes: class of each example.
        hard: whether the example came from a pool of hard examples.
        positions: number of the draw in the epoch, over all ranks: step * batch_size + position in the batch.
    """

    ids: Ids
    classes: Ids
    hard: Bool[np.ndarray, " n"]
    positions: Ids


@dataclass(frozen=True)
class EpochPlan:
    """The number of draws, the seed and the rank of a sampler.

    `steps` None: as many steps as needed to show every example of the largest class once. `drift_epochs`:
    number of epochs in which the shares move to the natural shares or from them (`drift`); None for constant
    shares.
    """

    batch_size: int
    steps: int | None
    seed: int
    rank: int = 0
    n_ranks: int = 1
    drift_epochs: int | None = None
    drift: Literal["to_natural", "from_natural"] = "to_natural"

    def __post_init__(self) -> None:
        refuse(
            (
                self.drift_epochs is not None and self.steps is None,
                f"sampler.drift '{self.drift}' needs training.steps: without it the length of "
                "an epoch changes with the shares",
            ),
            (self.batch_size < 1, f"training.batch_size {self.batch_size}: give 1 or more"),
            (self.steps is not None and self.steps < 1, f"training.steps {self.steps}: give 1 or more"),
            (not 0 <= self.seed < 2**63, f"training.seed {self.seed}: must be a whole number in 0..2^63 - 1"),
            (not 0 <= self.rank < self.n_ranks, f"rank {self.rank}: must lie in 0..{self.n_ranks - 1}"),
            (
                self.batch_size % max(1, self.n_ranks),
                f"training.batch_size {self.batch_size}: {self.n_ranks} ranks share a batch, so give a "
                f"multiple of {self.n_ranks}",
            ),
        )


class Sampler(ABC):
    """A stream of draws: a pure function of (seed, epoch, step, state), the same on every rank.

    The first epoch is 1. The random numbers of a block of steps come from a Philox generator with the key
    (seed, epoch) and a counter computed from the number of the block. Therefore no generator state is stored,
    and a resumed run may have another number of ranks.
    """

    def __init__(
        self,
        index: ClassIndex,
        *,
        requested: Shares,
        sizes: Counts,
        plan: EpochPlan,
        groups: Groups | None = None,
    ) -> None:
        """Store the settings of the draws.

        `requested`: the share of each class in the first epoch. `sizes`: number of examples of each class.
        `groups`: groups that are drawn first within a class; None draws every example of a class with equal
        probability.
        """
        if groups is not None and plan.steps is None:
            raise UsageError(
                "sampler.first: an epoch that shows every example cannot draw cases or lesions first; give "
                "training.steps"
            )
        self.groups = groups
        self._first_shares = requested
        self.epoch = 1
        self.step = 0
        self._index = index
        self._sizes = sizes
        self._plan = plan
        self._whole_epochs = plan.steps is None
        self.steps = plan.steps if plan.steps is not None else self._steps_to_show_all()
        self._block_steps = max(1, _BLOCK_DRAWS // plan.batch_size)
        self._loaded: tuple[int, int] | None = None
        self._shuffles: dict[int, np.ndarray] = {}
        self._prepare()

    def _prepare(self) -> None:  # noqa: B027, most kinds prepare nothing
        """Prepare the data that a kind needs once, before the first draw."""

    @property
    def requested(self) -> Shares:
        """The requested share of each class in the current epoch."""
        return self.requested_in(self.epoch)

    def requested_in(self, epoch: int) -> Shares:
        """The requested share of each class in an epoch. Without a drift the shares are the same in all
        epochs.
        """
        if self._plan.drift_epochs is None:
            return self._first_shares
        return drifted_shares(
            self._first_shares, counts=self._index.counts, epoch=epoch, n_epochs=self._plan.drift_epochs,
            drift=self._plan.drift,
        )  # fmt: skip

    def next(self) -> Draw:
        """The next batch of this rank. After `steps` batches `epoch` increases by 1 and `step` returns to
        0.
        """
        block, row = divmod(self.step, self._block_steps)
        if self._loaded != (self.epoch, block):
            self._load(block)
        start = self.step * self._plan.batch_size
        draw = Draw(
            ids=self._ids[row], classes=self._classes[row], hard=self._hard[row],
            positions=np.arange(start + self._plan.rank, start + self._plan.batch_size, self._plan.n_ranks),
        )  # fmt: skip
        self.step += 1
        if self.step == self.steps:
            self.epoch, self.step = self.epoch + 1, 0
        return draw

    def state_dict(self) -> dict[str, Any]:
        """The position in the stream, in plain whole numbers and arrays."""
        return {"epoch": self.epoch, "step": self.step, **self._settings()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved `state`, with exactly the same draws. Raises `UsageError` if the sampler has
        other settings.
        """
        for knob, value in self._settings().items():
            if state.get(knob) != value:
                raise UsageError(
                    f"training.{knob} {value}: the run to resume has {state.get(knob)}; give the same value, "
                    "or start a new run"
                )
        self.epoch, self.step = int(state["epoch"]), int(state["step"])
        self._loaded = None

    def _settings(self) -> dict[str, int]:
        drift = {} if self._plan.drift_epochs is None else {"epochs": self._plan.drift_epochs}
        return {"seed": self._plan.seed, "batch_size": self._plan.batch_size, "steps": self.steps, **drift}

    def _generator(self, purpose: int, number: int = 0, *, epoch: int | None = None) -> np.random.Generator:
        key = np.array([self._plan.seed, self.epoch if epoch is None else epoch], dtype=np.uint64)
        return np.random.Generator(
            np.random.Philox(key=key, counter=np.array([0, 0, number, purpose], dtype=np.uint64))
        )

    def _load(self, block: int) -> None:
        if self._loaded is None or self._loaded[0] != self.epoch:
            self._start_epoch()
        first = block * self._block_steps
        n = min(self._block_steps, self.steps - first)
        generator = self._generator(DRAWS, block)
        classes, numbers = self._numbers(first, n, generator=generator)
        if self.groups is not None:
            numbers = self.groups.numbers(classes, generator.random(classes.shape))
        own_draws = np.s_[:, self._plan.rank :: self._plan.n_ranks]
        self._classes = np.ascontiguousarray(classes[own_draws])
        self._ids, self._hard = self._examples(classes, numbers, first=first, own_draws=own_draws)
        self._loaded = (self.epoch, block)

    def _start_epoch(self) -> None:
        """Prepare the data for all blocks of an epoch."""
        self._shuffles.clear()

    @abstractmethod
    def _steps_to_show_all(self) -> int:
        """The number of batches of an epoch that shows every example of the largest class at least once."""

    @abstractmethod
    def _numbers(
        self, first: int, n: int, *, generator: np.random.Generator
    ) -> tuple[Int64[np.ndarray, "n b"], Int64[np.ndarray, "n b"]]:
        """The class of every draw and its number within the class, on all ranks, for the `n` steps from
        `first` on.
        """

    def _examples(
        self,
        classes: Int64[np.ndarray, "n b"],
        numbers: Int64[np.ndarray, "n b"],
        *,
        first: int,
        own_draws: tuple[slice, slice],
    ) -> tuple[Int64[np.ndarray, "n r"], Bool[np.ndarray, "n r"]]:
        """The ids of the draws of this rank, and whether each is a hard example."""
        ids = self._index.pick(classes[own_draws].ravel(), numbers[own_draws].ravel()).reshape(
            classes[own_draws].shape
        )
        return ids, np.zeros(ids.shape, dtype=bool)

    def _shuffled(self, number: int, size: int) -> Int64[np.ndarray, " size"]:
        if number not in self._shuffles:
            self._shuffles[number] = self._generator(SHUFFLE, number).permutation(size)
        return self._shuffles[number]
