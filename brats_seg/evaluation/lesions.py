"""Lesion by lesion, as BraTS 2023 compares them."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int
from scipy import ndimage

from brats_seg.core.shapes import Mask
from brats_seg.evaluation.surface import Spacing, hd95_mm, joint_crop

DILATIONS = 3
"""How often a reference lesion is grown to find its neighbors and its predictions (adult glioma)."""
SMALLEST_MM3 = 50.0
"""Reference lesions of this volume or less are not scored."""

_FACES_AND_EDGES = ndimage.generate_binary_structure(3, 2)
_ALL_NEIGHBORS = np.ones((3, 3, 3), bool)


@dataclass(frozen=True)
class Lesions:
    """What became of the lesions of one region.

    Attributes:
        dice: one Dice for every reference lesion that a predicted lesion touches.
        hd95_mm: its surface-weighted HD95; none where distances were left out.
        n_missed: reference lesions that none touches.
        n_false: predicted lesions that touch no reference lesion, small ones included.
    """

    dice: tuple[float, ...]
    hd95_mm: tuple[float, ...]
    n_missed: int
    n_false: int

    @property
    def n_counted(self) -> int:
        """What a lesion-wise mean divides by."""
        return len(self.dice) + self.n_missed + self.n_false


def match_lesions(
    reference: Mask,
    prediction: Mask,
    *,
    spacing_mm: Spacing,
    dilations: int = DILATIONS,
    smallest_mm3: float = SMALLEST_MM3,
    distances: Literal["measured", "left_out"] = "measured",
) -> Lesions:
    """Compare every reference lesion with the predicted lesions that touch it (Saluja et al., BraTS 2023
    lesion-wise metrics).

    Lesions are 26-connected. Reference lesions whose `dilations`-fold growth (faces and edges) meets are one.
    A reference lesion is compared with all predicted lesions that its growth touches, taken whole. Reference
    lesions of `smallest_mm3` or less are left out, but what touches them is no false positive.

    Args:
        reference: (Z, Y, X).
        prediction: the same, same shape.
        spacing_mm: voxel size along (Z, Y, X).
        dilations: how often a reference lesion grows.
        smallest_mm3: volume up to which a reference lesion is left out.
        distances: "left_out" gives no HD95, which takes most of the time.
    """
    box = _grown(
        joint_crop(reference.view(np.uint8), prediction.view(np.uint8)), reference.shape, dilations + 1
    )
    reference, prediction = reference[box], prediction[box]
    lesions = _merged_lesions(reference, dilations)
    predicted, n_predicted = ndimage.label(prediction, _ALL_NEIGHBORS)
    voxel_mm3 = float(np.prod(np.asarray(spacing_mm, np.float64)))
    touched: set[int] = set()
    dice: list[float] = []
    hd95: list[float] = []
    n_missed = 0
    for lesion, found_in in enumerate(ndimage.find_objects(lesions), start=1):
        if found_in is None:
            continue
        near = _grown(found_in, lesions.shape, dilations + 1)
        own = lesions[near] == lesion
        hits = _touching(own, predicted[near], dilations)
        touched.update(hits)
        if own.sum() * voxel_mm3 <= smallest_mm3:
            continue
        if not hits:
            n_missed += 1
            continue
        truth, answer = lesions == lesion, np.isin(predicted, hits)
        dice.append(2.0 * float((truth & answer).sum()) / float(truth.sum() + answer.sum()))
        if distances == "measured":
            hd95.append(hd95_mm(truth, answer, spacing_mm=spacing_mm, definition="surface_weighted"))
    return Lesions(tuple(dice), tuple(hd95), n_missed, n_predicted - len(touched))


def _merged_lesions(reference: Mask, dilations: int) -> Int[np.ndarray, "z y x"]:
    """Number of the lesion at each voxel of the reference, lesions that meet when grown sharing one; 0
    elsewhere.
    """
    grown = (
        ndimage.binary_dilation(reference, _FACES_AND_EDGES, iterations=dilations) if dilations else reference
    )
    labels, _ = ndimage.label(grown, _ALL_NEIGHBORS)
    return np.where(reference, labels, 0)


def _touching(
    lesion: Bool[np.ndarray, "z y x"], predicted: Int[np.ndarray, "z y x"], dilations: int
) -> list[int]:
    grown = ndimage.binary_dilation(lesion, _FACES_AND_EDGES, iterations=dilations) if dilations else lesion
    return [int(i) for i in np.unique(predicted[grown]) if i != 0]


def _grown(box: tuple[slice, ...], shape: tuple[int, ...], by: int) -> tuple[slice, ...]:
    return tuple(slice(max(0, s.start - by), min(n, s.stop + by)) for s, n in zip(box, shape, strict=True))
