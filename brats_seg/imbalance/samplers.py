"""Which ids to draw next: random, balanced, ratio, hard replay, over- and undersampling."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int64

from brats_seg.core.errors import UsageError
from brats_seg.core.shapes import Counts, Ids, Shares
from brats_seg.imbalance.groups import Groups
from brats_seg.imbalance.index import ClassIndex
from brats_seg.imbalance.shares import (
    LONGEST_PERIOD,
    batch_counts,
    drifted_shares,
    named_classes,
    requested_shares,
    resampled_counts,
)

# Ids drawn in one go: reading the positions of 1,251 cases once for 273 batches of 120 costs 1/273 of it a
# batch.
_BLOCK_DRAWS = 32768
# What a random stream is for: a word of the generator's counter, so that no two streams of an epoch meet.
_DRAWS, _POOL, _SHUFFLE, _SUBSET = range(4)


@dataclass(frozen=True)
class Draw:
    """This rank's part of one batch.

    Attributes:
        ids: example ids.
        classes: class of each.
        hard: whether it came from a pool of hard examples.
        positions: number of the draw in the epoch, over all ranks: step * batch_size + place in the batch.
    """

    ids: Ids
    classes: Ids
    hard: Bool[np.ndarray, " n"]
    positions: Ids


@dataclass(frozen=True)
class EpochPlan:
    """How much is drawn, from which seed, and for whom.

    `steps` None: as many as show every example of the largest class once. `drift_epochs`: by the last of so
    many epochs the shares are the natural ones; None for shares that stay.
    """

    batch_size: int
    steps: int | None
    seed: int
    rank: int = 0
    n_ranks: int = 1
    drift_epochs: int | None = None

    def __post_init__(self) -> None:
        if self.drift_epochs is not None and self.steps is None:
            raise UsageError(
                "sampler.drift 'to_natural' needs training.steps: an epoch that shows every example has "
                "another length each time"
            )
        if self.batch_size < 1:
            raise UsageError(f"training.batch_size {self.batch_size}: at least 1")
        if self.steps is not None and self.steps < 1:
            raise UsageError(f"training.steps {self.steps}: at least 1")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"training.seed {self.seed}: a whole number from 0 to 2^63 - 1")
        if not 0 <= self.rank < self.n_ranks:
            raise UsageError(f"rank {self.rank}: must lie in 0..{self.n_ranks - 1}")
        if self.batch_size % self.n_ranks:
            raise UsageError(
                f"training.batch_size {self.batch_size}: {self.n_ranks} ranks share a batch, so a multiple "
                f"of {self.n_ranks}"
            )


class Sampler(ABC):
    """A stream of draws: a pure function of (seed, epoch, step, state), the same on every rank.

    Epochs count from 1. The random numbers of a block of steps come from Philox keyed by (seed, epoch) at a
    counter made of the block's number, so no generator state is ever stored, and a resumed run may have
    another number of ranks.
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
        """`requested`: the share of each class, in the first epoch. `sizes`: how many examples of each class
        there are to draw from.

        `groups`: what is drawn first within a class; None for every example of the class alike.
        """
        if groups is not None and plan.steps is None:
            raise UsageError(
                "sampler.first: an epoch that shows every example draws no case or lesion first; give "
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

    @property
    def requested(self) -> Shares:
        """The share of each class asked for in the current epoch."""
        return self.requested_in(self.epoch)

    def requested_in(self, epoch: int) -> Shares:
        """The share of each class asked for in an epoch: in all the same, or, with a drift, on the way to the
        natural shares.
        """
        if self._plan.drift_epochs is None:
            return self._first_shares
        return drifted_shares(
            self._first_shares, counts=self._index.counts, epoch=epoch, n_epochs=self._plan.drift_epochs
        )

    def next(self) -> Draw:
        """The next batch of this rank; after `steps` batches `epoch` goes up and `step` back to 0."""
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
        """Where the stream stands, in plain whole numbers and arrays."""
        return {"epoch": self.epoch, "step": self.step, **self._settings()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken, to the bit. Raises `UsageError` where the sampler was set up in
        another way.
        """
        for knob, value in self._settings().items():
            if state.get(knob) != value:
                raise UsageError(
                    f"training.{knob} {value}: the run to resume has {state.get(knob)}; give the same, or "
                    "start a new run"
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
        generator = self._generator(_DRAWS, block)
        classes, numbers = self._numbers(first, n, generator=generator)
        if self.groups is not None:
            numbers = self.groups.numbers(classes, generator.random(classes.shape))
        mine = np.s_[:, self._plan.rank :: self._plan.n_ranks]
        self._classes = np.ascontiguousarray(classes[mine])
        self._ids, self._hard = self._examples(classes, numbers, first=first, mine=mine)
        self._loaded = (self.epoch, block)

    def _start_epoch(self) -> None:
        """Make what holds for all blocks of an epoch."""
        self._shuffles.clear()

    @abstractmethod
    def _steps_to_show_all(self) -> int:
        """Batches in an epoch that shows every example of the largest class at least once."""

    @abstractmethod
    def _numbers(
        self, first: int, n: int, *, generator: np.random.Generator
    ) -> tuple[Int64[np.ndarray, "n b"], Int64[np.ndarray, "n b"]]:
        """Class and number within the class of every draw, on all ranks, of the `n` steps from `first` on."""

    def _examples(
        self,
        classes: Int64[np.ndarray, "n b"],
        numbers: Int64[np.ndarray, "n b"],
        *,
        first: int,
        mine: tuple[slice, slice],
    ) -> tuple[Int64[np.ndarray, "n r"], Bool[np.ndarray, "n r"]]:
        """Id of this rank's draws, and whether each is a hard one."""
        ids = self._index.pick(classes[mine].ravel(), numbers[mine].ravel()).reshape(classes[mine].shape)
        return ids, np.zeros(ids.shape, dtype=bool)

    def _shuffled(self, number: int, size: int) -> Int64[np.ndarray, " size"]:
        if number not in self._shuffles:
            self._shuffles[number] = self._generator(_SHUFFLE, number).permutation(size)
        return self._shuffles[number]


class RandomSampler(Sampler):
    """Every example alike: the classes come as often as they occur. In whole epochs each example once, the
    last batch filled up.
    """

    def _steps_to_show_all(self) -> int:
        return -(-int(self._sizes.sum()) // self._plan.batch_size)

    def _numbers(
        self, first: int, n: int, *, generator: np.random.Generator
    ) -> tuple[Int64[np.ndarray, "n b"], Int64[np.ndarray, "n b"]]:
        total = int(self._sizes.sum())
        shape = (n, self._plan.batch_size)
        if self._whole_epochs:
            start = first * self._plan.batch_size
            overall = self._shuffled(0, total)[
                np.arange(start, start + n * self._plan.batch_size) % total
            ].reshape(shape)
        else:
            overall = (generator.random(shape) * total).astype(np.int64)
        ends = np.cumsum(self._sizes)
        classes = np.searchsorted(ends, overall, side="right")
        return classes, overall - (ends - self._sizes)[classes]


class ShareSampler(Sampler):
    """Exact counts of each class in every batch; uniform within a class, in whole epochs without repeats
    until all were shown.
    """

    def _steps_to_show_all(self) -> int:
        largest = self._sizes == self._sizes.max()
        if (self.requested[largest] == 0).any():
            name = self._index.class_names[int(np.argmax(largest))]
            raise UsageError(
                f"training.steps: give a number; the largest class '{name}' has a share of 0 and is never "
                "shown"
            )
        slots = self._plan.batch_size * float(self.requested[largest].min())
        batches = int(
            -(-(int(self._sizes.max()) + 8) // slots)
        )  # 8 draws more than the mean needs: the remainder rotates
        drawn = np.cumsum(self._counts(0, batches + LONGEST_PERIOD), axis=0)[:, largest]
        drawn = np.concatenate([np.zeros((1, drawn.shape[1]), np.int64), drawn])
        steps = int(np.argmax((drawn[: batches + 1] >= self._sizes[largest]).all(axis=1)))
        # Later epochs begin elsewhere in the rotation, and are to show all as well.
        while (drawn[steps : steps + LONGEST_PERIOD] - drawn[:LONGEST_PERIOD] < self._sizes[largest]).any():
            steps += 1
        return steps

    def _counts(self, first: int, n: int) -> Int64[np.ndarray, "n k"]:
        """Draws of each class in `n` batches from number `first` of all epochs on: the remainder rotates over
        epochs.
        """
        return batch_counts(
            self.requested, batch_size=self._plan.batch_size, steps=np.arange(first, first + n)
        )

    def _start_epoch(self) -> None:
        super()._start_epoch()
        drawn = np.cumsum(self._counts((self.epoch - 1) * self.steps, self.steps), axis=0)
        self._drawn = np.concatenate([np.zeros((1, self._index.n_classes), np.int64), drawn])

    def _numbers(
        self, first: int, n: int, *, generator: np.random.Generator
    ) -> tuple[Int64[np.ndarray, "n b"], Int64[np.ndarray, "n b"]]:
        counts = np.diff(self._drawn[first : first + n + 1], axis=0)
        names = np.tile(np.arange(self._index.n_classes), n)
        in_order = np.repeat(names, counts.ravel()).reshape(n, self._plan.batch_size)
        classes = generator.permuted(in_order, axis=1)
        if not self._whole_epochs:
            return classes, (generator.random(classes.shape) * self._sizes[classes]).astype(np.int64)
        numbers = np.empty_like(classes)
        for k, (places, turns) in self._turns(classes, first).items():
            numbers.ravel()[places] = self._shuffled(k, int(self._sizes[k]))[turns % self._sizes[k]]
        return classes, numbers

    def _turns(self, classes: np.ndarray, first: int) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Of each class: its places in the flat block, and which draw of the class in this epoch each of them
        is.
        """
        places = {k: np.flatnonzero(classes == k) for k in range(self._index.n_classes)}
        return {k: (at, self._drawn[first, k] + np.arange(len(at))) for k, at in places.items() if len(at)}


class UndersamplingSampler(ShareSampler):
    """Draws from one random subset of each class that is too frequent, the same in all epochs, chosen by the
    seed.
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
        super().__init__(index, requested=requested, sizes=sizes, plan=plan, groups=groups)
        self._subsets = {k: self._subset(k) for k in range(index.n_classes) if sizes[k] < index.counts[k]}
        for k, subset in self._subsets.items():
            self.groups = self.groups.keep(k, subset) if self.groups is not None else None

    def _subset(self, k: int) -> Ids:
        return self._generator(_SUBSET, k, epoch=0).choice(
            int(self._index.counts[k]), int(self._sizes[k]), replace=False
        )

    def _numbers(
        self, first: int, n: int, *, generator: np.random.Generator
    ) -> tuple[Int64[np.ndarray, "n b"], Int64[np.ndarray, "n b"]]:
        classes, numbers = super()._numbers(first, n, generator=generator)
        for k, subset in self._subsets.items():
            numbers[classes == k] = subset[numbers[classes == k]]
        return classes, numbers


class HardSampler(ShareSampler):
    """Each class's slots are filled from its shuffled pool of hard examples first; an empty pool means
    random.

    Hard example mining by replay; with `hard_classes=("healthy",)` it is hard negative mining (Felzenszwalb
    et al., PAMI 2010).
    """

    recycle: bool = False
    max_age: int = 1

    def __init__(
        self,
        index: ClassIndex,
        *,
        requested: Shares,
        sizes: Counts,
        plan: EpochPlan,
        groups: Groups | None = None,
    ) -> None:
        super().__init__(index, requested=requested, sizes=sizes, plan=plan, groups=groups)
        self.hard_classes = tuple(range(index.n_classes))
        self._pools: dict[int, dict[int, np.ndarray]] = {}

    def configure(self, *, hard_classes: Sequence[str] | None, recycle: bool, max_age: int) -> None:
        """Which classes have a pool (`shares.named_classes`; None for all); whether a used-up pool starts
        again (or its class goes on at random); epochs a pool is used for.
        """
        names = self._index.class_names
        for name in hard_classes or ():
            if not named_classes(name, names):
                raise UsageError(
                    f"hard.classes: no class '{name}' in the bank; the classes are {', '.join(names)}"
                )
        if max_age < 1:
            raise UsageError(f"hard.max_age {max_age}: epochs that a pool is used for, at least 1")
        self.hard_classes = tuple(
            sorted(
                {
                    k
                    for name in (names if hard_classes is None else hard_classes)
                    for k in named_classes(name, names)
                }
            )
        )
        self.recycle = recycle
        self.max_age = max_age

    def accept_pools(self, pools: Mapping[int, np.ndarray]) -> None:
        """The hard ids of each class, as the last epoch's network finds them; used from the epoch that now
        begins on.

        Pools of the last `max_age` epochs are joined. Classes left out get an empty pool. Raises `UsageError`
        inside an epoch, or for a class outside `hard_classes`.
        """
        if self.step:
            raise UsageError(
                f"hard pools are exchanged between epochs, not at step {self.step} of {self.steps}"
            )
        if not set(pools) <= set(self.hard_classes):
            raise UsageError(
                f"hard pools for classes {sorted(set(pools) - set(self.hard_classes))}; hard.classes are "
                f"{list(self.hard_classes)}"
            )
        for k in self.hard_classes:
            alive = {
                born: ids for born, ids in self._pools.get(k, {}).items() if self.epoch - born < self.max_age
            }
            self._pools[k] = alive | {self.epoch: np.unique(np.asarray(pools.get(k, ()), dtype=np.int64))}
        self._loaded = None

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, pools included."""
        pools = [
            {"class": k, "epoch": born, "ids": ids.copy()}
            for k, aged in self._pools.items()
            for born, ids in aged.items()
        ]
        return super().state_dict() | {"pools": pools}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken, to the bit."""
        super().load_state_dict(state)
        self._pools = {}
        for pool in state["pools"]:
            self._pools.setdefault(int(pool["class"]), {})[int(pool["epoch"])] = np.asarray(
                pool["ids"], dtype=np.int64
            )

    def _start_epoch(self) -> None:
        super()._start_epoch()
        self._pool: dict[int, np.ndarray] = {}
        for k, aged in self._pools.items():
            alive = [ids for born, ids in aged.items() if 0 <= self.epoch - born < self.max_age]
            if alive:
                self._pool[k] = self._generator(_POOL, k).permutation(np.unique(np.concatenate(alive)))

    def _examples(
        self,
        classes: Int64[np.ndarray, "n b"],
        numbers: Int64[np.ndarray, "n b"],
        *,
        first: int,
        mine: tuple[slice, slice],
    ) -> tuple[Int64[np.ndarray, "n r"], Bool[np.ndarray, "n r"]]:
        hard_ids = np.full(classes.shape, -1, dtype=np.int64)
        for k, (places, turns) in self._turns(classes, first).items():
            pool = self._pool.get(k, np.empty(0, np.int64))
            n_hard = len(turns) if self.recycle and len(pool) else int(np.searchsorted(turns, len(pool)))
            hard_ids.ravel()[places[:n_hard]] = pool[turns[:n_hard] % max(1, len(pool))]
        ids, _ = super()._examples(classes, numbers, first=first, mine=mine)
        hard = hard_ids[mine] >= 0
        return np.where(hard, hard_ids[mine], ids), hard


SAMPLERS: dict[str, type[Sampler]] = {
    "random": RandomSampler, "balanced": ShareSampler, "ratio": ShareSampler, "hard": HardSampler,
    "oversample": ShareSampler, "undersample": UndersamplingSampler,
}  # fmt: skip
DRIFTING = ("balanced", "ratio", "hard")
"""Kinds whose shares can move to the natural ones; the others are natural already, or shares of a resampled
set.
"""


def make_sampler(
    kind: str,
    index: ClassIndex,
    *,
    batch_size: int,
    steps: int | None,
    seed: int,
    rank: int = 0,
    n_ranks: int = 1,
    shares: Mapping[str, float] | None = None,
    healthy_share: float | None = None,
    imbalance_ratio: float = 1.0,
    allow_absent_class: bool = False,
    hard_classes: Sequence[str] | None = None,
    recycle: bool = False,
    max_age: int = 1,
    drift: Literal["none", "to_natural"] = "none",
    n_epochs: int | None = None,
    groups: Groups | None = None,
) -> Sampler:
    """The sampler of this name; all its settings are checked here.

    Args:
        kind: a key of `SAMPLERS`.
        index: the examples of the training cases.
        batch_size: draws in a batch, over all ranks; a multiple of `n_ranks`.
        steps: batches in an epoch; None for as many as show every example of the largest class at least once.
        seed, rank, n_ranks: all ranks draw one list; rank r takes its positions r, r + n_ranks, ...
        shares, healthy_share, imbalance_ratio, allow_absent_class: see `requested_shares`.
        hard_classes, recycle, max_age: kind `hard` alone; see `HardSampler.configure`.
        drift: whether the shares of an epoch move from those asked for to the natural ones; kinds `balanced`,
            `ratio` and `hard`.
        n_epochs: by the last of so many epochs they are there; see `drifted_shares`.
        groups: within a class, a group is drawn first and then an example of it; None draws every example of
            a class alike. The classes come as often as without groups. Pools of hard examples are used first
            and have no groups.

    Raises:
        UsageError: naming the knob, its value and what it may be.
    """
    if kind not in SAMPLERS:
        raise UsageError(f"sampler.kind '{kind}': must be one of {', '.join(SAMPLERS)}")
    if kind not in ("ratio", "hard") and (shares is not None or healthy_share is not None):
        raise UsageError(f"sampler.kind '{kind}' takes no shares; use kind 'ratio' or 'hard'")
    if drift != "none" and (kind not in DRIFTING or n_epochs is None or n_epochs < 1):
        raise UsageError(
            f"sampler.drift '{drift}': goes with sampler.kind {', '.join(DRIFTING)} and the number of "
            f"epochs; got '{kind}', {n_epochs}"
        )
    plan = EpochPlan(
        batch_size=batch_size,
        steps=steps,
        seed=seed,
        rank=rank,
        n_ranks=n_ranks,
        drift_epochs=None if drift == "none" else n_epochs,
    )
    requested = requested_shares(
        kind, index.class_names, counts=index.counts, shares=shares, healthy_share=healthy_share,
        imbalance_ratio=imbalance_ratio, allow_absent_class=allow_absent_class,
    )  # fmt: skip
    sizes = (
        resampled_counts(kind, index.counts, imbalance_ratio=imbalance_ratio)
        if kind == "undersample"
        else index.counts
    )
    sampler = SAMPLERS[kind](index, requested=requested, sizes=sizes, plan=plan, groups=groups)
    if isinstance(sampler, HardSampler):
        sampler.configure(hard_classes=hard_classes, recycle=recycle, max_age=max_age)
    return sampler
