"""Groups of examples: a case or a lesion is drawn first, and then an example of it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, Integer

from brats_seg.core.progress import track
from brats_seg.core.shapes import Ids
from brats_seg.imbalance.index import ClassIndex
from brats_seg.imbalance.shares import named_classes

NumberLesions = Callable[[int, np.ndarray], np.ndarray]
"""Number of a case (row of the whole index) and positions of its tumor voxels (n,) -> number of the lesion of
each voxel (n,), from 0 on.
"""
SIZE_STEPS = (1, 100, 1_000, 10_000)
"""Smallest number of voxels of a lesion in each bin of lesion sizes."""


@dataclass(frozen=True)
class Groups:
    """The examples of each class in groups. First a group is drawn, with equal probability for every group,
    and then an example of this group.

    Attributes:
        ends: for each class, the position in `order` at which each of its groups ends (int64, increasing). No
            group is empty.
        order: for each class, the number (see `ClassIndex.pick`) of each example, group after group; None if
            the numbers are 0, 1, 2, ...
    """

    ends: tuple[Int64[np.ndarray, " _"], ...]
    order: tuple[Integer[np.ndarray, " _"] | None, ...]

    def numbers(
        self, classes: Int64[np.ndarray, "*draws"], uniform: Float64[np.ndarray, "*draws"]
    ) -> Int64[np.ndarray, "*draws"]:
        """The number of each drawn example within its class, from one random number in [0, 1) for each draw.

        The random number is multiplied by the number of groups. The whole part of the product is the group,
        and the fraction is the position in the group. The random number has 53 bits: with 2^17 groups, 36
        bits remain for the position.
        """
        numbers = np.empty(classes.shape, np.int64)
        for k, ends in enumerate(self.ends):
            at = classes == k
            if not at.any():
                continue
            scaled = uniform[at] * len(ends)
            groups = scaled.astype(np.int64)
            sizes = np.diff(ends, prepend=0)[groups]
            places = ends[groups] - sizes + ((scaled - groups) * sizes).astype(np.int64)
            order = self.order[k]
            numbers[at] = places if order is None else order[places]
        return numbers

    def keep(self, k: int, numbers: Ids) -> "Groups":
        """The same groups with only the given examples of class `k`. Groups without these examples are left
        out.
        """
        order = self.order[k]
        places = np.sort(numbers if order is None else np.argsort(order)[numbers])
        n_left = np.bincount(np.searchsorted(self.ends[k], places, side="right"))
        ends, orders = list(self.ends), list(self.order)
        ends[k], orders[k] = np.cumsum(n_left[n_left > 0]), places if order is None else order[places]
        return replace(self, ends=tuple(ends), order=tuple(orders))


@dataclass(frozen=True)
class Lesions:
    """The lesions of an index: the groups for drawing, and the size of the lesion of each example.

    Attributes:
        groups: for a tumor class, one group for its voxels in each lesion; for another class, one group for
            its examples in each case.
        size_bins: for each class, the bin in `SIZE_STEPS` of the lesion of each example, by number (uint8);
            None for a class that is not in a lesion.
    """

    groups: Groups
    size_bins: tuple[Integer[np.ndarray, " _"] | None, ...]


def group_by_case(index: ClassIndex) -> Groups:
    """Group the examples of each class by case."""
    ends = tuple(np.cumsum(counts[counts > 0]) for counts in index.case_counts.T)
    return Groups(ends, (None,) * index.n_classes)


def group_by_lesion(index: ClassIndex, number_lesions: NumberLesions) -> Lesions:
    """Group the examples of a tumor class by lesion, and the examples of the other classes by case.

    Every case is read once. The result uses 5 bytes for each tumor voxel.
    """
    by_case, tumor = group_by_case(index), named_classes("tumor", index.class_names)
    lesions_of_class: dict[int, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {k: [] for k in tumor}
    n_before = np.zeros(index.n_classes, np.int64)
    n_cases = len(index.case_counts)
    for row in track(range(n_cases), total=n_cases, label="finding lesions"):
        parts = index.positions(row)
        numbers = number_lesions(index.case_number(row), np.concatenate([parts[k] for k in tumor]))
        size_bins = np.searchsorted(SIZE_STEPS, np.bincount(numbers), side="right") - 1
        starts = np.cumsum([len(parts[k]) for k in tumor])[:-1]
        for k, own in zip(tumor, np.split(numbers, starts), strict=True):
            n_of_each = np.bincount(own)
            order = (n_before[k] + np.argsort(own, kind="stable")).astype(np.int32)
            lesions_of_class[k].append((n_of_each[n_of_each > 0], order, size_bins[own].astype(np.uint8)))
            n_before[k] += len(own)
    ends, orders = list(by_case.ends), list(by_case.order)
    bins: list[Any] = [None] * index.n_classes
    for k, cases in lesions_of_class.items():
        sizes, orders[k], bins[k] = (np.concatenate(arrays) for arrays in zip(*cases, strict=True))
        ends[k] = np.cumsum(sizes)
    return Lesions(Groups(tuple(ends), tuple(orders)), tuple(bins))
