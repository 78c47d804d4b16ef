"""The tissue classes of a bank taken together or left out: what a stage of a cascade is trained on."""

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
        classes: their names.
        groups: old classes of each, by number; an old class in none of them counts as outside.
    """

    classes: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]

    @property
    def table(self) -> UInt8[np.ndarray, "256"]:
        """New class by old class; 255 for what is in no group, 255 itself included."""
        table = np.full(256, OUTSIDE, np.uint8)
        for number, group in enumerate(self.groups):
            table[list(group)] = number
        return table


def group_classes(kind: GroupKind, classes: Sequence[str]) -> Grouping:
    """How the tissue classes of a bank are grouped.

    `all`: each by itself. `healthy_or_tumor`: healthy, and all others as one `tumor`; a resection cavity
    among them, or the second stage of a cascade could not find it. `tumor`: each by itself but healthy, which
    is left out.

    Args:
        kind: one of the three.
        classes: of the bank, healthy first.

    Raises:
        UsageError: an unknown kind, or fewer than two tumor classes to tell apart.
    """
    rest = tuple(range(1, len(classes)))
    if kind == "all":
        return Grouping(tuple(classes), tuple((k,) for k in range(len(classes))))
    if kind == "healthy_or_tumor":
        return Grouping((HEALTHY, TUMOR), ((0,), rest))
    if kind == "tumor":
        if len(rest) < 2:
            raise UsageError(
                f"task.classes 'tumor': the bank has {', '.join(classes)}; it takes two tumor classes to "
                "tell apart"
            )
        return Grouping(tuple(classes[1:]), tuple((k,) for k in rest))
    raise UsageError(f"task.classes '{kind}': must be one of all, healthy_or_tumor, tumor")
