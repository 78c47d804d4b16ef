"""Class probabilities -> classes, region by region: a threshold for each of whole, core and active."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from brats_seg.core.errors import UsageError
from brats_seg.core.shapes import Mask, TissueMap
from brats_seg.scans.labels import REGIONS, region_classes


@dataclass(frozen=True)
class RegionThresholds:
    """The probability from which a voxel belongs to a region; None keeps the decision that the network's own
    classes make.

    Attributes:
        whole: P(whole) = 1 - P(healthy), in a network without a resection cavity.
        core: asked inside the whole tumor alone.
        active: asked inside the core alone.
    """

    whole: float | None = None
    core: float | None = None
    active: float | None = None

    def __post_init__(self) -> None:
        """Raises `UsageError` for a threshold that is no probability above 0."""
        for region in REGIONS:
            threshold = getattr(self, region)
            if threshold is not None and not 0 < threshold <= 1:
                raise UsageError(f"threshold of {region} {threshold:g}: a probability above 0, up to 1")


def cut_regions(
    labels: TissueMap,
    probabilities: Float32[np.ndarray, "k z y x"],
    *,
    classes: Sequence[str],
    thresholds: RegionThresholds,
) -> TissueMap:
    """The class of every voxel after the thresholds: nested, first whole, then core inside it, then active
    inside that.

    A voxel that a threshold moves gets the likeliest class of the part of the tumor it now belongs to.

    Args:
        labels: indices into `classes` as decided without thresholds.
        probabilities: of the classes, summing to 1.
        classes: names, healthy first.
        thresholds: of the three regions.
    """
    inside: Mask = np.ones(labels.shape, bool)
    outer = tuple(range(len(classes)))
    result = labels
    for region in REGIONS:
        members = region_classes(region, classes)
        threshold = getattr(thresholds, region)
        if threshold is not None:
            found = inside & (probabilities[list(members)].sum(axis=0) >= np.float32(threshold))
            rest = tuple(i for i in outer if i not in members) if region != REGIONS[0] else (0,)
            result = _moved(result, found & ~np.isin(result, members), members, probabilities)
            result = _moved(result, inside & ~found & np.isin(result, members), rest, probabilities)
        inside = inside & np.isin(result, members)
        outer = members
    return result


def _moved(
    labels: TissueMap, where: Mask, to: Sequence[int], probabilities: Float32[np.ndarray, "k z y x"]
) -> TissueMap:
    """The labels, of which those of the mask become the likeliest of the classes `to`."""
    moved = labels.copy()
    moved[where] = np.asarray(to, np.uint8)[probabilities[list(to)][:, where].argmax(axis=0)]
    return moved
