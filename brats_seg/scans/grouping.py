"""The tissue classes of a bank, joined or left out for the training of a stage of a cascade."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from brats_seg.core.errors import UsageError
from brats_seg.scans.labels import OUTSIDE

GroupKind = Literal["all", "healthy_or_tumor", "tumor"]
HEALTHY, TUMOR = "healthy", "tumor"


@dataclass(frozen=True)
class Grouping:
    """New classes, each made of neighboring old ones.

    Attributes:
        classes: names of the new classes.
        groups: numbers of the old classes of each new class; an old class in no group counts as outside the
            brain.
    """

    classes: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]

    @property
    def table(self) -> UInt8[np.ndarray, "256"]:
        """New class of each old class; 255 for an old class in no group, and for 255."""
        table = np.full(256, OUTSIDE, np.uint8)
        for number, group in enumerate(self.groups):
            table[list(group)] = number
        return table


def group_classes(kind: GroupKind, classes: Sequence[str]) -> Grouping:
    """How the tissue classes of a bank are grouped.

    `all`: each class separately. `healthy_or_tumor`: healthy, and all other classes as one `tumor`; this
    includes a resection cavity, because otherwise the second stage of a cascade could not find it. `tumor`:
    each class separately, without healthy.

    Args:
        kind: one of the three kinds.
        classes: tissue classes of the bank, healthy first.

    Raises:
        UsageError: an unknown kind, or fewer than two tumor classes.
    """
    rest = tuple(range(1, len(classes)))
    if kind == "all":
        return Grouping(tuple(classes), tuple((k,) for k in range(len(classes))))
    if kind == "healthy_or_tumor":
        return Grouping((HEALTHY, TUMOR), ((0,), rest))
    if kind == "tumor":
        if len(rest) < 2:
            raise UsageError(
                f"task.classes 'tumor': the bank has {', '.join(classes)}; it needs at least two tumor "
                "classes"
            )
        return Grouping(tuple(classes[1:]), tuple((k,) for k in rest))
    raise UsageError(f"task.classes '{kind}': must be one of all, healthy_or_tumor, tumor")
