"""The share of each class among the draws, and its exact count in every batch."""

import warnings
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from jaxtyping import Int64

from brats_seg.core.errors import UsageError, refuse
from brats_seg.core.sections import refused_shares
from brats_seg.core.shapes import Counts, Shares

LONGEST_PERIOD = 4096
"""Largest number of batches after which the rotation of the remainder repeats."""
_GOLDEN = (5**0.5 - 1) / 2


def requested_shares(
    kind: str,
    class_names: tuple[str, ...],
    *,
    counts: Counts,
    shares: Mapping[str, float] | None = None,
    healthy_share: float | None = None,
    imbalance_ratio: float = 1.0,
    allow_absent_class: bool = False,
    power: float = 0.0,
) -> Shares:
    """The requested share of each class among the draws; float64, sums to 1.

    `random`: the natural shares. `oversample`: the shares after each rare class is enlarged to the size of
    the largest class divided by `imbalance_ratio`. `undersample`: the shares after each frequent class is
    reduced to `imbalance_ratio` times the size of the smallest class. `balanced`: n_c^power, scaled to sum to
    1 (Kang et al. 2020, section 3), so 1/K with power 0. `ratio`, `hard`: `shares` by name, or
    `healthy_share` with the rest for the tumor classes in their natural ratio, or (only `hard`) 1/K. A name
    of `shares` can mean several classes (`named_classes`); those of them that are not named themselves get
    equal parts. A class without a share gets 0.

    Raises:
        UsageError: shares do not sum to 1 or are negative, a class is unknown, or a class with a share has no
            example and is not allowed to be absent.
    """
    if not 1 <= imbalance_ratio < np.inf:
        raise UsageError(
            f"sampler.imbalance_ratio {imbalance_ratio:g}: the count of the largest class divided by the "
            "smallest, so a finite number of 1 or more"
        )
    if refused := refused_shares(kind, shares, healthy_share):
        raise UsageError(f"sampler.{refused}")
    if kind in ("random", "oversample", "undersample"):
        asked = resampled_counts(kind, counts, imbalance_ratio=imbalance_ratio) / max(1, counts.sum())
    elif shares is not None:
        asked = _by_name(shares, class_names)
    elif healthy_share is not None:
        asked = _with_healthy(healthy_share, class_names, counts=counts)
    else:
        asked = counts.astype(np.float64) ** power
        asked /= max(asked.sum(), 1e-300)
    wanted = asked > 0 if shares is not None else np.ones(len(class_names), dtype=bool)
    return _without_absent(
        asked, class_names, absent=wanted & (counts == 0), counts=counts, allowed=allow_absent_class
    )


def drifted_shares(
    shares: Shares, *, counts: Counts, epoch: int, n_epochs: int, drift: str = "to_natural"
) -> Shares:
    """Shares that change linearly from `shares` in epoch 1 to the natural shares in epoch `n_epochs` and stay
    constant afterwards. With `drift` "from_natural" they change in the other direction (progressively
    balanced sampling; Kang et al. 2020, section 3).

    With only one epoch the shares do not change, because a line needs two ends. For natural shares from the
    start use sampler.kind 'random'.
    """
    way = min(1.0, (epoch - 1) / (n_epochs - 1)) if n_epochs > 1 else 0.0
    way = 1 - way if drift == "from_natural" and n_epochs > 1 else way
    return (1 - way) * shares + way * counts / counts.sum()


def resampled_counts(kind: str, counts: Counts, *, imbalance_ratio: float = 1.0) -> Counts:
    """The number of examples of each class after over- or undersampling to `imbalance_ratio` (largest class
    divided by smallest class). 0 stays 0. Other kinds do not change the counts.
    """
    present = counts[counts > 0]
    if present.size == 0:
        return counts
    if kind == "oversample":
        return np.where(
            counts > 0, np.maximum(counts, np.ceil(present.max() / imbalance_ratio).astype(np.int64)), 0
        )
    if kind == "undersample":
        return np.minimum(counts, np.floor(present.min() * imbalance_ratio).astype(np.int64))
    return counts


def batch_counts(
    shares: Shares, *, batch_size: int, steps: Int64[np.ndarray, " s"]
) -> Int64[np.ndarray, "s k"]:
    """The number of draws of each class in the batches numbered `steps`. Each row sums to `batch_size`, and
    each entry is share x batch_size rounded down or up.

    The remainder rotates by systematic sampling. Each class has an interval of [0, batch_size) with length
    share x batch_size. A batch has the points i + u, i = 0 .. batch_size - 1, and the count of a class is the
    number of points in its interval. u changes from batch to batch by the golden-ratio sequence. If all
    shares x batch_size are multiples of 1/n with n <= 4096, u cycles through the n odd multiples of 1/2n, so
    any n batches in a row contain exactly the requested counts. The total count of a class never differs from
    its share by more than 4 draws (at most 3.5 in 3,000 random plans of 1,000 batches).
    """
    edges = np.concatenate([[0.0], np.cumsum(shares)])
    edges *= batch_size / edges[-1]
    edges[edges > batch_size - 1e-9] = batch_size
    return np.diff(np.floor(edges[None] - _offsets(edges, steps)[:, None]), axis=1).astype(np.int64)


def _offsets(edges: np.ndarray, steps: np.ndarray) -> np.ndarray:
    turns = _rotation(tuple(edges.tolist()))
    if turns is None:
        return np.clip((steps * _GOLDEN + 0.5) % 1.0, 1e-9, 1 - 1e-9)
    return (turns[steps % len(turns)] + 0.5) / len(turns)


@lru_cache(maxsize=8)  # an epoch of one batch calls it at every step
def _rotation(edges: tuple[float, ...]) -> np.ndarray | None:
    """The order of the offsets in a period; None if there is no short period."""
    periods = np.arange(1, LONGEST_PERIOD + 1)
    scaled = np.array(edges)[None] * periods[:, None]
    whole = np.flatnonzero((np.abs(scaled - np.rint(scaled)) < 1e-7).all(axis=1))
    if whole.size == 0:
        return None
    turns: np.ndarray = np.argsort(np.argsort(np.arange(int(periods[whole[0]])) * _GOLDEN % 1.0))
    return turns


def named_classes(name: str, class_names: tuple[str, ...]) -> tuple[int, ...]:
    """The numbers of the classes that a name means: the class with this name; for `tumor`, if no class has
    this name, all classes except `healthy`; else no class.
    """
    if name == "tumor" and name not in class_names:
        return tuple(k for k, other in enumerate(class_names) if other != "healthy")
    return tuple(k for k, other in enumerate(class_names) if other == name)


def _by_name(shares: Mapping[str, float], class_names: tuple[str, ...]) -> np.ndarray:
    shares_by_class = np.zeros(len(class_names))
    for name, share in shares.items():
        members = [
            k
            for k in named_classes(name, class_names)
            if class_names[k] == name or class_names[k] not in shares
        ]
        if not members:
            raise UsageError(
                f"sampler.shares: no class '{name}' in the bank; the classes are {', '.join(class_names)}"
            )
        if not 0 <= share <= 1:
            raise UsageError(f"sampler.shares.{name} {share:g}: a share lies in 0..1")
        shares_by_class[members] += share / len(members)
    return shares_by_class


def _with_healthy(share: float, class_names: tuple[str, ...], *, counts: np.ndarray) -> np.ndarray:
    refuse(
        (
            "healthy" not in class_names,
            f"sampler.healthy_share: no class 'healthy' in {', '.join(class_names)}; use sampler.shares",
        ),
        (not 0 <= share <= 1, f"sampler.healthy_share {share:g}: a share lies in 0..1"),
    )
    tumor = np.array([name != "healthy" for name in class_names])
    natural = np.where(tumor, counts, 0)
    return np.where(tumor, (1 - share) * natural / max(1, natural.sum()), share)


def _without_absent(
    wanted_shares: np.ndarray,
    class_names: tuple[str, ...],
    *,
    absent: np.ndarray,
    counts: np.ndarray,
    allowed: bool,
) -> np.ndarray:
    names = ", ".join(f"'{name}'" for name, gone in zip(class_names, absent, strict=True) if gone)
    if names and not allowed:
        raise UsageError(
            f"sampler: no training example of class {names}; add cases that have it, or set "
            "sampler.allow_absent_class: true"
        )
    kept = np.where(counts > 0, wanted_shares, 0.0)
    if kept.sum() <= 0:
        counted = ", ".join(
            f"{name} {count}" for name, count in zip(class_names, counts.tolist(), strict=True)
        )
        raise UsageError(f"sampler: no class with a share has a training example; found {counted}")
    if names:
        warnings.warn(
            f"no training example of class {names}: its share of the draws goes to the other classes in "
            "proportion",
            stacklevel=4,
        )
    return kept / kept.sum()
