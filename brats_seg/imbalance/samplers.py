"""The samplers by name: random, balanced, ratio, hard replay, over- and undersampling."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from brats_seg.core import sections as knobs
from brats_seg.core.errors import UsageError, refuse
from brats_seg.core.settings import parse_settings
from brats_seg.core.shapes import Ids
from brats_seg.imbalance.groups import Groups
from brats_seg.imbalance.index import ClassIndex
from brats_seg.imbalance.sampler import POOL, SUBSET, EpochPlan, Sampler
from brats_seg.imbalance.shares import (
    LONGEST_PERIOD,
    batch_counts,
    named_classes,
    requested_shares,
    resampled_counts,
)


class RandomSampler(Sampler):
    """Draws every example with equal probability, so the classes have their natural shares. In whole epochs
    each example is drawn once, and the last batch is filled up.
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
    """Draws exact counts of each class in every batch, uniformly within a class. In whole epochs no example
    is repeated until all were shown.
    """

    def _steps_to_show_all(self) -> int:
        largest = self._sizes == self._sizes.max()
        if (self.requested[largest] == 0).any():
            name = self._index.class_names[int(np.argmax(largest))]
            raise UsageError(
                f"training.steps: give a number; the largest class '{name}' has a share of 0, so it is never "
                "shown"
            )
        slots = self._plan.batch_size * float(self.requested[largest].min())
        batches = int(
            -(-(int(self._sizes.max()) + 8) // slots)
        )  # 8 draws more than the mean, because the remainder rotates
        drawn = np.cumsum(self._counts(0, batches + LONGEST_PERIOD), axis=0)[:, largest]
        drawn = np.concatenate([np.zeros((1, drawn.shape[1]), np.int64), drawn])
        steps = int(np.argmax((drawn[: batches + 1] >= self._sizes[largest]).all(axis=1)))
        # Later epochs start at another position of the rotation, and must also show all examples.
        while (drawn[steps : steps + LONGEST_PERIOD] - drawn[:LONGEST_PERIOD] < self._sizes[largest]).any():
            steps += 1
        return steps

    def _counts(self, first: int, n: int) -> Int64[np.ndarray, "n k"]:
        """The number of draws of each class in `n` batches from batch `first` on, counted over all epochs,
        because the remainder rotates over the epochs.
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
        """The positions of each class in the flat block, and for each position the number of the draw of the
        class in this epoch.
        """
        places = {k: np.flatnonzero(classes == k) for k in range(self._index.n_classes)}
        return {k: (at, self._drawn[first, k] + np.arange(len(at))) for k, at in places.items() if len(at)}


class UndersamplingSampler(ShareSampler):
    """Draws from one random subset of each class that is too frequent. The seed determines the subset, and it
    is the same in all epochs.
    """

    def _prepare(self) -> None:
        counts = self._index.counts
        self._subsets = {k: self._subset(k) for k in range(len(counts)) if self._sizes[k] < counts[k]}
        for k, subset in self._subsets.items():
            self.groups = self.groups.keep(k, subset) if self.groups is not None else None

    def _subset(self, k: int) -> Ids:
        return self._generator(SUBSET, k, epoch=0).choice(
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
    """Draws each class first from its shuffled pool of hard examples. If the pool is empty, the draws are
    random.

    This is hard example mining by replay. With `Hard(classes=("healthy",))` it is hard negative mining
    (Felzenszwalb et al., PAMI 2010).
    """

    recycle: bool = False
    max_age: int = 1

    def _prepare(self) -> None:
        self.hard_classes = tuple(range(self._index.n_classes))
        self._pools: dict[int, dict[int, np.ndarray]] = {}

    def configure(self, hard: knobs.Hard) -> None:
        """Set which classes have a pool (`shares.named_classes`), whether a used-up pool starts again (or its
        class continues with random draws), and for how many epochs a pool is used.
        """
        names = self._index.class_names
        asked = names if hard.classes is None else hard.classes
        for name in asked:
            if not named_classes(name, names):
                raise UsageError(
                    f"hard.classes: no class '{name}' in the bank; the classes are {', '.join(names)}"
                )
        self.hard_classes = tuple(sorted({k for name in asked for k in named_classes(name, names)}))
        self.recycle, self.max_age = hard.recycle, hard.max_age

    def accept_pools(self, pools: Mapping[int, np.ndarray]) -> None:
        """Set the hard ids of each class, found by the network after the last epoch. They are used from the
        next epoch on.

        Pools of the last `max_age` epochs are joined. Classes that are not given get an empty pool. Raises
        `UsageError` during an epoch, or for a class that is not in `hard_classes`.
        """
        refuse(
            (self.step, f"hard pools are exchanged between epochs, not at step {self.step} of {self.steps}"),
            (
                not set(pools) <= set(self.hard_classes),
                f"hard pools were given for classes {sorted(set(pools) - set(self.hard_classes))}; "
                f"hard.classes are {list(self.hard_classes)}",
            ),
        )
        for k in self.hard_classes:
            alive = {
                born: ids for born, ids in self._pools.get(k, {}).items() if self.epoch - born < self.max_age
            }
            self._pools[k] = alive | {self.epoch: np.unique(np.asarray(pools.get(k, ()), dtype=np.int64))}
        self._loaded = None

    def state_dict(self) -> dict[str, Any]:
        """The position in the stream, including the pools."""
        pools = [
            {"class": k, "epoch": born, "ids": ids.copy()}
            for k, aged in self._pools.items()
            for born, ids in aged.items()
        ]
        return super().state_dict() | {"pools": pools}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved `state`, with exactly the same draws."""
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
                self._pool[k] = self._generator(POOL, k).permutation(np.unique(np.concatenate(alive)))

    def _examples(
        self,
        classes: Int64[np.ndarray, "n b"],
        numbers: Int64[np.ndarray, "n b"],
        *,
        first: int,
        own_draws: tuple[slice, slice],
    ) -> tuple[Int64[np.ndarray, "n r"], Bool[np.ndarray, "n r"]]:
        hard_ids = np.full(classes.shape, -1, dtype=np.int64)
        for k, (places, turns) in self._turns(classes, first).items():
            pool = self._pool.get(k, np.empty(0, np.int64))
            n_hard = len(turns) if self.recycle and len(pool) else int(np.searchsorted(turns, len(pool)))
            hard_ids.ravel()[places[:n_hard]] = pool[turns[:n_hard] % max(1, len(pool))]
        ids, _ = super()._examples(classes, numbers, first=first, own_draws=own_draws)
        hard = hard_ids[own_draws] >= 0
        return np.where(hard, hard_ids[own_draws], ids), hard


SAMPLERS: dict[str, type[Sampler]] = {
    "random": RandomSampler, "balanced": ShareSampler, "ratio": ShareSampler, "hard": HardSampler,
    "oversample": ShareSampler, "undersample": UndersamplingSampler,
}  # fmt: skip


def make_sampler(
    sampler: str | knobs.Sampler,
    index: ClassIndex,
    *,
    batch_size: int,
    steps: int | None,
    seed: int,
    rank: int = 0,
    n_ranks: int = 1,
    hard: knobs.Hard = knobs.Hard(),
) -> Sampler:
    """The sampler with this name, or from a section `sampler` of a training config.

    Args:
        sampler: a key of `SAMPLERS`, or a section such as `Sampler(kind="ratio", healthy_share=0.7)`. The
            section must not have `drift` and `first`; a training uses `build_sampler`.
        index: the examples of the training cases.
        batch_size: number of draws in a batch, over all ranks; a multiple of `n_ranks`.
        steps: number of batches in an epoch; None for as many batches as needed to show every example of the
            largest class at least once.
        seed, rank, n_ranks: all ranks draw the same list; rank r uses positions r, r + n_ranks, ... of it.
        hard: how pools of hard examples are used; only for kind `hard`.

    Raises:
        UsageError: naming the knob, its value and what it may be.
    """
    section = parse_settings(knobs.Sampler, {"kind": sampler}) if isinstance(sampler, str) else sampler
    plan = EpochPlan(batch_size=batch_size, steps=steps, seed=seed, rank=rank, n_ranks=n_ranks)
    return build_sampler(section, index, plan=plan, hard=hard)


def build_sampler(
    section: knobs.Sampler,
    index: ClassIndex,
    *,
    plan: EpochPlan,
    hard: knobs.Hard = knobs.Hard(),
    groups: Groups | None = None,
) -> Sampler:
    """The sampler of a training.

    Args:
        section: section `sampler` of the config; its `drift` needs `plan.drift_epochs`.
        index: the examples of the training cases.
        plan: number of draws, seed and rank.
        hard: how pools of hard examples are used; only for kind `hard`.
        groups: within a class, first a group is drawn and then an example of the group; None draws every
            example of a class with equal probability. The groups do not change the shares of the classes.
            Pools of hard examples are used first and have no groups.

    Raises:
        UsageError: naming the knob, its value and what it may be.
    """
    if (section.drift == "none") != (plan.drift_epochs is None):
        raise UsageError(
            f"sampler.drift '{section.drift}': needs the number of epochs; got {plan.drift_epochs}"
        )
    kind, ratio = section.kind, section.imbalance_ratio
    requested = requested_shares(
        kind, index.class_names, counts=index.counts, shares=section.shares,
        healthy_share=section.healthy_share, imbalance_ratio=ratio,
        allow_absent_class=section.allow_absent_class, power=section.power,
    )  # fmt: skip
    is_smaller = kind == "undersample"
    sizes = resampled_counts(kind, index.counts, imbalance_ratio=ratio) if is_smaller else index.counts
    sampler = SAMPLERS[kind](index, requested=requested, sizes=sizes, plan=plan, groups=groups)
    if isinstance(sampler, HardSampler):
        sampler.configure(hard)
    return sampler
