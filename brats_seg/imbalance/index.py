"""ClassIndex: the ids of the examples of each class."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Int64, Integer

from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.shapes import Counts, Ids


class ClassIndex:
    """Example ids grouped by class over many cases, as compressed rows.

    At first only counts are in memory. The positions of a case are loaded at first use and kept (mapped files
    stay mapped). An image set is an index of one case. The id of a position is `case_ids[case] + position`.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        counts: Integer[np.ndarray, "cases k"],
        *,
        part: Callable[[int], np.ndarray],
        case_ids: Integer[np.ndarray, " cases"],
        case_names: Sequence[str] | None = None,
    ) -> None:
        """Store the counts. No file is mapped yet.

        Args:
            class_names: names of the K classes.
            counts: number of examples of each class in each case.
            part: case number (row of `counts`) -> 1-D whole-number array of the positions of that case,
                grouped by class in the order of `class_names`, of length `counts[case].sum()`. It is called
                once for each case, when an example of the case is drawn for the first time.
            case_ids: number that is added to a position to make an id (in a bank `case << 32`).
            case_names: names of the cases in error messages.
        """
        self.class_names = tuple(class_names)
        self._every_count = np.ascontiguousarray(counts, dtype=np.int64)
        self._every_start = np.cumsum(self._every_count, axis=1) - self._every_count
        self._part_sizes = self._every_count.sum(axis=1)
        self._part = part
        self._case_ids = np.asarray(case_ids, dtype=np.int64)
        self._case_names = (
            tuple(case_names)
            if case_names is not None
            else tuple(f"case {i}" for i in range(len(self._every_count)))
        )
        self._rows = np.arange(len(self._every_count))
        self._parts: dict[int, np.ndarray] = {}
        self._set_ends()

    @classmethod
    def from_labels(cls, labels: Integer[np.ndarray, " n"], class_names: Sequence[str]) -> "ClassIndex":
        """The index of an image set. `labels` holds the class of each example, and the id of an example is
        its position in `labels`.
        """
        if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < len(class_names):
            raise InputError(
                f"labels lie in {labels.min()}..{labels.max()}; {len(class_names)} classes need labels "
                f"0..{len(class_names) - 1}"
            )
        return cls(
            class_names,
            np.bincount(labels, minlength=len(class_names))[None],
            part=(np.argsort(labels, kind="stable"),).__getitem__,
            case_ids=np.zeros(1, np.int64),
            case_names=("the image set",),
        )

    @property
    def n_classes(self) -> int:
        """The number of classes K, including absent classes."""
        return len(self.class_names)

    @property
    def counts(self) -> Counts:
        """The number of examples of each class over the cases of this index."""
        return self.case_counts.sum(axis=0)

    @property
    def case_counts(self) -> Int64[np.ndarray, "cases k"]:
        """The number of examples of each class in each case of this index."""
        return self._every_count[self._rows]

    def restrict(self, cases: Sequence[int]) -> "ClassIndex":
        """The same index over some of its cases (rows of the full index, each once). Mapped files are
        shared.
        """
        rows = np.asarray(cases, dtype=np.int64)
        if len(np.unique(rows)) != len(rows) or (
            rows.size and not 0 <= rows.min() <= rows.max() < len(self._every_count)
        ):
            raise UsageError(
                f"cases {list(cases)}: each must be given once and lie in 0..{len(self._every_count) - 1}"
            )
        other = self._copy()
        other._rows = rows
        other._set_ends()
        return other

    def regroup(self, class_names: Sequence[str], groups: Sequence[Sequence[int]]) -> "ClassIndex":
        """The same examples with other classes. No position is copied, and mapped files are shared.

        Args:
            class_names: name of each new class.
            groups: the old classes of each new class. The old classes of a group must be adjacent, because
                the positions of a case are sorted by class. A class in no group is left out.

        Raises:
            UsageError: a group is empty, has a gap, or shares a class with another group.
        """
        members = [number for group in groups for number in group]
        if (
            len(set(members)) != len(members)
            or not set(members) <= set(range(self.n_classes))
            or len(groups) != len(class_names)
        ):
            raise UsageError(
                f"groups {groups}: a class of 0..{self.n_classes - 1} may occur once at most, and each group "
                "a name"
            )
        start, stop = self._every_start, self._every_start + self._every_count
        for group in groups:
            if len(group) == 0 or any(
                (stop[:, one] != start[:, other]).any() for one, other in pairwise(group)
            ):
                raise UsageError(
                    f"group {list(group)}: a group must have one or more classes, adjacent and in order"
                )
        other = self._copy()
        other.class_names = tuple(class_names)
        other._every_count = np.stack(
            [self._every_count[:, list(group)].sum(axis=1) for group in groups], axis=1
        )
        other._every_start = start[:, [group[0] for group in groups]]
        other._set_ends()
        return other

    def pick(self, classes: Ids, numbers: Ids) -> Ids:
        """The id of example number `numbers[i]` of class `classes[i]`, counted over all cases in order; O(log
        cases) for each example.

        One call for many examples is much faster than many calls, because the positions of a case are read at
        once.

        Raises:
            UsageError: a class or a number is out of range.
        """
        if classes.size and not 0 <= classes.min() <= classes.max() < self.n_classes:
            raise UsageError(
                f"class number {classes.min()} or {classes.max()} is out of range; there are "
                f"{self.n_classes} classes"
            )
        rows = np.empty_like(numbers)
        for k in range(self.n_classes):
            of_class = np.flatnonzero(classes == k)
            if (
                of_class.size
                and not 0 <= numbers[of_class].min() <= numbers[of_class].max() < self._ends[k, -1]
            ):
                raise UsageError(
                    f"an example of class '{self.class_names[k]}' is out of range; it has {self._ends[k, -1]}"
                )
            rows[of_class] = np.searchsorted(self._ends[k], numbers[of_class], side="right")
        order = np.argsort(
            rows.astype(np.uint16 if len(self._rows) < 65536 else np.int64), kind="stable"
        )  # 16 bits: a radix sort
        rows = rows[order]
        places = numbers[order] + self._shifts[rows, classes[order]]
        positions = np.empty_like(numbers)
        for start, stop in pairwise([*np.flatnonzero(np.diff(rows, prepend=-1)).tolist(), len(rows)]):
            positions[start:stop] = self._positions(int(self._rows[rows[start]]))[places[start:stop]]
        ids = np.empty_like(numbers)
        ids[order] = positions + self._case_ids[self._rows[rows]]
        return ids

    def numbers_of(self, cls: int, ids: Ids) -> Ids:
        """The number of each example of one class, the inverse of `pick`.

        The ids must belong to this class and increase, and positions must be below 2^32, as in a bank.
        """
        numbers = np.empty_like(ids)
        for row, first in enumerate(self._case_ids[self._rows].tolist()):
            of_case = slice(*np.searchsorted(ids, (first, first + (1 << 32))).tolist())
            if of_case.start < of_case.stop:
                own = self.positions(row)[cls]
                # a class that joins several old classes has the positions of one old class after the other
                order = np.argsort(own, kind="stable")
                places = np.searchsorted(own, (ids[of_case] - first).astype(own.dtype), sorter=order)
                numbers[of_case] = order[places] + self._ends[cls, row] - len(own)
        return numbers

    def positions(self, row: int) -> list[np.ndarray]:
        """The positions of the examples of each class in case number `row` of this index. The positions are
        not copied.
        """
        case = int(self._rows[row])
        every, starts, counts = self._positions(case), self._every_start[case], self._every_count[case]
        return [every[start : start + n] for start, n in zip(starts, counts, strict=True)]

    def case_number(self, row: int) -> int:
        """The number in the whole index of case number `row` of this index."""
        return int(self._rows[row])

    def random_ids(self, cls: int, n: int, *, generator: np.random.Generator) -> Ids:
        """`n` different ids of one class, drawn uniformly; all ids if the class has `n` or fewer examples."""
        count = int(self._ends[cls, -1]) if len(self._rows) else 0
        numbers = np.arange(count) if n >= count else generator.choice(count, n, replace=False)
        return self.pick(np.full(len(numbers), cls, np.int64), numbers.astype(np.int64))

    def _copy(self) -> "ClassIndex":
        other = object.__new__(ClassIndex)
        other.__dict__ = dict(self.__dict__)
        return other

    def _set_ends(self) -> None:
        counts = self.case_counts
        self._ends = np.ascontiguousarray(np.cumsum(counts, axis=0).T)
        before_in_class = np.cumsum(counts, axis=0) - counts
        self._shifts = self._every_start[self._rows] - before_in_class

    def _positions(self, case: int) -> np.ndarray:
        positions = self._parts.get(case)
        if positions is None:
            positions = np.asarray(self._part(case))
            if len(positions) != self._part_sizes[case]:
                name = self._case_names[case]
                raise InputError(
                    f"{name}: the index holds {len(positions)} voxels, but the count in the bank is "
                    f"{self._part_sizes[case]}"
                )
            self._parts[case] = positions
        return positions

    def __getstate__(self) -> dict[str, Any]:
        """The state without mapped positions, because pickling them would copy the bank. A worker process
        maps the files itself.
        """
        return self.__dict__ | {"_parts": {}}
