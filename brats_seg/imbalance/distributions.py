"""Step, linear, long-tail, natural and given class counts, and the choice of the examples of an imbalanced
set.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int64, Integer

from brats_seg.core.errors import UsageError, refuse
from brats_seg.core.shapes import Counts, Ids

# The purpose of a random stream. It is a word of the generator's counter, so that no two streams of a seed
# overlap.
_CLASSES, _EXAMPLES = range(2)

Kind = Literal["balanced", "step", "linear", "long_tail", "exponential", "natural", "given"]
Minority = Literal["random", "lowest", "highest"]
"""Which classes get few examples: classes drawn with the seed, the classes with the lowest labels, or with
the highest labels.
"""


@dataclass(frozen=True)
class Distribution:
    """How many examples each class gets (Buda et al. 2018, section 3.1).

    Attributes:
        kind: "step", "linear", "given" or "balanced"; "natural" uses all examples. "long_tail" and
            "exponential" have the same profile. "long_tail" rounds the counts; "exponential" rounds them
            down, as in the published long-tailed CIFAR (Cui et al. 2019).
        rho: number of examples of the largest class divided by that of the smallest class.
        mu: share of minority classes; only for "step".
        counts: number of examples of each class, in the order of the classes; only for "given".
    """

    kind: Kind
    rho: float | int = 1
    mu: float | int | None = None
    counts: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        refuse(
            (
                (self.mu is None) != (self.kind != "step"),
                f"distribution '{self.kind}': mu is the share of minority classes, only for 'step', not for "
                "another kind",
            ),
            (
                (self.counts is None) != (self.kind != "given"),
                f"distribution '{self.kind}': counts (one number for each class) are only for 'given', not "
                "for another kind",
            ),
            (
                not 1 <= self.rho < np.inf,
                f"rho {self.rho:g}: largest class divided by smallest class, so a finite number of 1 or more",
            ),
            (
                self.kind in ("balanced", "natural", "given") and self.rho != 1,
                f"distribution '{self.kind}': does not use rho",
            ),
        )


@dataclass(frozen=True)
class Subset:
    """An imbalanced set drawn from a larger one.

    Attributes:
        ids: its examples, as positions in the labels from which it was drawn, in increasing order.
        counts: number of examples of each class.
        minority: the classes with fewer examples than the largest class, smallest label first.
    """

    ids: Ids
    counts: Counts
    minority: tuple[int, ...]


def draw_subset(
    distribution: Distribution,
    labels: Integer[np.ndarray, " examples"],
    *,
    n_classes: int,
    most: int | None,
    minority: Minority,
    seed: int,
) -> Subset:
    """Draw an imbalanced set.

    Args:
        distribution: determines the number of examples of each class.
        labels: class of each example, 0 to K - 1.
        n_classes: K.
        most: number of examples of a majority class; None uses the number of the smallest class. Classes that
            have fewer examples are minority classes.
        minority: whether the classes with fewer examples are drawn with the seed or are the classes with the
            lowest or highest labels (in "linear", "long_tail" and "exponential": the whole order, fewest
            first).
        seed: seed for the choice of classes and examples. With the same seed, the examples of a smaller set
            are a subset of those of a larger set.

    Raises:
        UsageError: the labels have too few examples for the distribution. The message says which values are
            possible.
    """
    available = np.bincount(labels, minlength=n_classes).astype(np.int64)
    order = class_order(available, most=most, minority=minority, seed=seed)
    counts = class_counts(distribution, available=available, most=most, order=order)
    return Subset(
        choose_examples(labels, counts, seed=seed),
        counts,
        tuple(int(c) for c in np.flatnonzero(counts < counts.max())),
    )


def class_order(available: Counts, *, most: int | None, minority: Minority, seed: int) -> Ids:
    """All classes, ordered by the number of examples that they get, fewest first. Classes with fewer than
    `most` examples come before all others.
    """
    names = np.arange(len(available))
    orders = {"lowest": names, "highest": names[::-1]}
    order = orders.get(minority, _generator(seed, _CLASSES).permutation(len(available)))
    short = available < most if most is not None else np.zeros(len(available), dtype=bool)
    return np.concatenate([order[short[order]], order[~short[order]]]).astype(np.int64)


def class_counts(distribution: Distribution, *, available: Counts, most: int | None, order: Ids) -> Counts:
    """The number of examples of each class.

    Args:
        distribution: the distribution.
        available: number of available examples of each class.
        most: number of examples of the largest class; None uses the number of the smallest class.
        order: the classes, fewest examples first.

    Raises:
        UsageError: a class has fewer examples than the distribution needs, or with this mu or rho a class
            would be empty or no majority class would exist.
    """
    k = len(available)
    if distribution.kind == "natural":
        return available.copy()
    if (largest := int(available.min()) if most is None else most) < 1:
        raise UsageError(f"the largest class would have {largest} examples; it needs 1 or more")
    if distribution.kind == "given":
        counts = _given(distribution.counts or (), n_classes=k)
    else:
        counts = np.empty(k, np.int64)
        counts[order] = _by_place(distribution, n_classes=k, most=largest)
    _check_enough(counts, available=available)
    return counts


def choose_examples(labels: Integer[np.ndarray, " examples"], counts: Counts, *, seed: int) -> Ids:
    """Choose `counts[c]` examples of each class c, with equal probability for each choice. Returns positions
    in `labels` in increasing order.
    """
    chosen = [
        _generator(seed, _EXAMPLES, c).permutation(np.flatnonzero(labels == c))[:count]
        for c, count in enumerate(counts.tolist())
        if count
    ]
    return np.sort(np.concatenate([np.empty(0, np.int64), *chosen])).astype(np.int64)


def _by_place(distribution: Distribution, *, n_classes: int, most: int) -> Counts:
    """Counts, fewest first."""
    rho = distribution.rho
    if rho > most:
        raise UsageError(
            f"rho {rho:g} is larger than the class: of {most} examples it leaves none; give rho {most} at "
            "most"
        )
    fewest = _rounded(most / rho)
    if distribution.kind == "balanced":
        return np.full(n_classes, most, np.int64)
    if distribution.kind == "step":
        n_minority = _n_minority(distribution.mu or 0.0, n_classes=n_classes)
        return np.repeat(np.array([fewest, most], np.int64), [n_minority, n_classes - n_minority])
    places = np.arange(n_classes) / max(1, n_classes - 1)
    if distribution.kind == "linear":
        return _linear(fewest, most, places=places)
    # Cui et al. 2019 (long-tailed CIFAR): most * rho ** -(position from 0 to 1). The paper rounds down.
    whole = _cut_off if distribution.kind == "exponential" else _rounded
    return np.array([whole(most * rho ** -(1 - place)) for place in places.tolist()], np.int64)


def _linear(fewest: int, most: int, *, places: np.ndarray) -> Counts:
    """Evenly spaced counts. They are rounded so that two counts at equal distance from both ends always have
    the same sum. The total is the total of a step with mu 0.5.
    """
    lower = np.array([_rounded(fewest + place * (most - fewest)) for place in places.tolist()], np.int64)
    half = len(places) // 2
    return np.concatenate([lower[: len(places) - half], (fewest + most - lower[:half])[::-1]])


def _n_minority(mu: float | int, *, n_classes: int) -> int:
    n_minority = _rounded(mu * n_classes)
    refuse(
        (
            abs(mu * n_classes - n_minority) > 1e-6,
            f"mu {mu:g}: of {n_classes} classes {mu * n_classes:g} would be minority classes; give a "
            f"multiple of 1/{n_classes}",
        ),
        (
            n_minority >= n_classes,
            f"mu {mu:g} leaves no majority class of {n_classes}; give mu "
            f"{(n_classes - 1) / n_classes:g} at most",
        ),
        (
            n_minority < 1,
            f"mu {mu:g} leaves no minority class of {n_classes}; give mu {1 / n_classes:g} at least, or "
            "distribution 'balanced'",
        ),
    )
    return n_minority


def _given(counts: Sequence[int], *, n_classes: int) -> Counts:
    if len(counts) != n_classes:
        raise UsageError(
            f"distribution 'given': {len(counts)} counts for {n_classes} classes; give one number for each "
            "class"
        )
    if min(counts) < 0 or max(counts) < 1:
        raise UsageError(
            f"distribution 'given': counts {list(counts)}; give no count below 0 and at least one above 0"
        )
    return np.array(counts, np.int64)


def _check_enough(counts: Counts, *, available: Counts) -> None:
    lacking: Bool[np.ndarray, " k"] = counts > available
    if lacking.any():
        worst = int(np.argmax(counts - available))
        others = f" ({int(lacking.sum()) - 1} more classes lack examples too)" if lacking.sum() > 1 else ""
        raise UsageError(
            f"class {worst} needs {counts[worst]} examples but has {available[worst]}{others}; lower the "
            "counts"
        )


def _rounded(value: float) -> int:
    """Round to the nearest whole number, halves up."""
    return int(np.floor(value + 0.5))


def _cut_off(value: float) -> int:
    """Round down. A value such as 499.9999999999, which is exactly 500 without rounding errors, gives 500."""
    return int(value + 1e-9)


def _generator(seed: int, purpose: int, number: int = 0) -> np.random.Generator:
    counter: Int64[np.ndarray, " 4"] = np.array([0, 0, number, purpose])
    return np.random.Generator(
        np.random.Philox(key=np.array([seed, 0], np.uint64), counter=counter.astype(np.uint64))
    )
