"""Class probabilities -> a label map: regions cut by thresholds, small components, little enhancing core."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float32, Integer
from skimage.measure import label as number_components

from brats_seg.core.errors import UsageError
from brats_seg.core.shapes import Mask, TissueMap
from brats_seg.scans.labels import MERGED, REGIONS, region_classes

Components = Integer[np.ndarray, "z y x"]
"""Number of the component a voxel belongs to, from 1; 0 outside of all."""


@dataclass(frozen=True)
class Cleanup:
    """Thresholds of the clean-up of a label map; 0 turns a rule off.

    Attributes:
        min_component_mm3: volume below which a connected part of the tumor (all classes together,
            26-connected) becomes healthy.
        min_enhancing_mm3: total volume of enhancing core below which all enhancing core of a case becomes
            necrotic core (or the class merged with it). In BraTS 2017-2021 a case without enhancing core has
            a Dice of 0 if one voxel is false, and 1 if none is. The winners used this rule (Isensee et al.,
            "nnU-Net for Brain Tumor Segmentation", 2020).
        min_core_component_mm3: volume below which a connected part of the core becomes edema.
        min_active_component_mm3: volume below which a connected part of the enhancing core becomes necrotic
            core (or the class merged with it).
        min_component_share: share (0 to 1) of the volume of the case's largest connected tumor, below which a
            connected tumor becomes healthy. This rule never removes the largest tumor; `min_component_mm3`
            can.
    """

    min_component_mm3: float = 0.0
    min_enhancing_mm3: float = 0.0
    min_core_component_mm3: float = 0.0
    min_active_component_mm3: float = 0.0
    min_component_share: float = 0.0

    def __post_init__(self) -> None:
        """Raises `UsageError` for a negative or infinite volume, or a share outside 0 to 1."""
        for name, value in asdict(self).items():
            if name.endswith("_mm3") and not 0 <= value < np.inf:
                raise UsageError(f"{name} {value:g}: a volume in mm3, 0 for none")
        if not 0 <= self.min_component_share <= 1:
            raise UsageError(f"min_component_share {self.min_component_share:g}: from 0 to 1, 0 for none")


def clean_up(
    labels: TissueMap, *, classes: Sequence[str], spacing_mm: Sequence[float], cleanup: Cleanup
) -> TissueMap:
    """Remove small parts of whole, core and active from a label map (class indices, healthy 0), then a small
    total of enhancing core.
    """
    voxel_mm3 = float(np.prod(spacing_mm))
    if cleanup.min_component_mm3 > 0 or cleanup.min_component_share > 0:
        labels = without_small(
            labels,
            "whole",
            to=0,
            classes=classes,
            min_voxels=cleanup.min_component_mm3 / voxel_mm3,
            min_share=cleanup.min_component_share,
        )
    if cleanup.min_core_component_mm3 > 0:
        if "edema" not in classes:
            raise UsageError(
                f"clean-up of the core: needs the class edema; the network has {', '.join(classes)}"
            )
        edema = list(classes).index("edema")
        labels = without_small(
            labels, "core", to=edema, classes=classes, min_voxels=cleanup.min_core_component_mm3 / voxel_mm3
        )
    if cleanup.min_active_component_mm3 > 0:
        _, core = enhancing_and_core(classes)
        labels = without_small(
            labels,
            "active",
            to=core,
            classes=classes,
            min_voxels=cleanup.min_active_component_mm3 / voxel_mm3,
        )
    if cleanup.min_enhancing_mm3 > 0:
        enhancing, core = enhancing_and_core(classes)
        is_enhancing = labels == enhancing
        if np.count_nonzero(is_enhancing) * voxel_mm3 < cleanup.min_enhancing_mm3:
            labels = np.where(is_enhancing, np.uint8(core), labels)
    return labels


def without_small(
    labels: TissueMap,
    region: str,
    *,
    to: int,
    classes: Sequence[str],
    min_voxels: float,
    min_share: float = 0.0,
) -> TissueMap:
    """Give the class `to` to each connected part of a region that is smaller than `min_voxels`, or than
    `min_share` of the largest part. Voxels that share a corner are connected.
    """
    parts: Components = number_components(np.isin(labels, region_classes(region, classes)), connectivity=3)
    sizes = np.bincount(parts.ravel(), minlength=1)
    sizes[0] = 0
    small = sizes < max(min_voxels, min_share * sizes.max())
    small[0] = False
    return np.where(small[parts], np.uint8(to), labels)


def enhancing_and_core(classes: Sequence[str]) -> tuple[int, int]:
    """Indices of the enhancing core and of the class that replaces a too small enhancing core. Raises
    `UsageError` if the network lacks one of them.
    """
    core = MERGED if MERGED in classes else "necrotic_core"
    if "enhancing_core" not in classes or core not in classes:
        raise UsageError(
            f"clean-up of enhancing core: needs the classes enhancing_core and {core}; the network has "
            f"{', '.join(classes)}"
        )
    return list(classes).index("enhancing_core"), list(classes).index(core)


@dataclass(frozen=True)
class RegionThresholds:
    """The smallest probability at which a voxel belongs to a region; None keeps the likeliest class of the
    network.

    Attributes:
        whole: P(whole) = 1 - P(healthy), in a network without a resection cavity.
        core: applied inside the whole tumor only.
        active: applied inside the core only.
    """

    whole: float | None = None
    core: float | None = None
    active: float | None = None

    def __post_init__(self) -> None:
        """Raises `UsageError` for a threshold that is not above 0 and at most 1."""
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

    A voxel that a threshold moves into a region gets the likeliest class of this region. A voxel that a
    threshold moves out gets the likeliest class of the next larger region without this one; out of the whole
    tumor, healthy.

    Args:
        labels: indices into `classes`, decided without thresholds.
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
            in_region = inside & (probabilities[list(members)].sum(axis=0) >= np.float32(threshold))
            rest = tuple(i for i in outer if i not in members) if region != REGIONS[0] else (0,)
            result = _moved(result, in_region & ~np.isin(result, members), members, probabilities)
            result = _moved(result, inside & ~in_region & np.isin(result, members), rest, probabilities)
        inside = inside & np.isin(result, members)
        outer = members
    return result


def _moved(
    labels: TissueMap, where: Mask, to: Sequence[int], probabilities: Float32[np.ndarray, "k z y x"]
) -> TissueMap:
    """The labels, with the likeliest of the classes `to` at each voxel of the mask."""
    moved = labels.copy()
    moved[where] = np.asarray(to, np.uint8)[probabilities[list(to)][:, where].argmax(axis=0)]
    return moved
