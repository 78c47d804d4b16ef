"""One joint histogram of two tissue maps -> Dice, IoU, sensitivity, specificity, precision."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8

from brats_seg.core.errors import InputError
from brats_seg.core.kernels import joint_counts
from brats_seg.core.shapes import TissueMap

JointHistogram = Int64[np.ndarray, "k k"]
"""Voxels by reference class (first axis) and predicted class (second axis)."""
Prediction = UInt8[np.ndarray, "pz py px"]
"""A tissue map whose shape was not yet compared with its reference."""


@dataclass(frozen=True)
class Overlap:
    """How a reference and a predicted region overlap, in voxels.

    Every score is NaN where its denominator is 0; only `scores.py` decides the score of an empty region.
    """

    n_reference: int
    n_prediction: int
    n_both: int
    n_voxels: int

    @property
    def dice(self) -> float:
        """2 |P and T| / (|P| + |T|)."""
        return _ratio(2 * self.n_both, self.n_reference + self.n_prediction)

    @property
    def iou(self) -> float:
        """|P and T| / |P or T|."""
        return _ratio(self.n_both, self.n_reference + self.n_prediction - self.n_both)

    @property
    def sensitivity(self) -> float:
        """|P and T| / |T|."""
        return _ratio(self.n_both, self.n_reference)

    @property
    def precision(self) -> float:
        """|P and T| / |P|."""
        return _ratio(self.n_both, self.n_prediction)

    @property
    def specificity(self) -> float:
        """Share of the voxels outside the reference that are outside the prediction too, over the whole
        image, air included.

        The challenge's own code counts the air too, so specificity is near 1 for any prediction.
        """
        n_neither = self.n_voxels - self.n_reference - self.n_prediction + self.n_both
        return _ratio(n_neither, self.n_voxels - self.n_reference)


def joint_histogram(reference: TissueMap, prediction: Prediction, n_classes: int) -> JointHistogram:
    """Count the voxels of each pair (class in the reference, class in the prediction).

    Args:
        reference: (Z, Y, X) class indices below `n_classes`.
        prediction: the same, same shape.
        n_classes: K of the (K, K) result.

    Raises:
        InputError: shapes that differ, or a class index of `n_classes` or more.
    """
    if reference.shape != prediction.shape:
        raise InputError(f"prediction has shape {prediction.shape}; its reference has {reference.shape}")
    a, b = (np.ascontiguousarray(m).reshape(-1) for m in (reference, prediction))
    whole = a.size // 8 * 8
    histogram = joint_counts(a, b, a[:whole].view(np.uint64), b[:whole].view(np.uint64), n_classes)
    if histogram.sum() != a.size:
        raise InputError(
            f"class index {max(int(a.max()), int(b.max()))} found; {n_classes} classes have indices 0 to "
            f"{n_classes - 1}"
        )
    return histogram


def overlap_scores(histogram: JointHistogram, region_classes: Sequence[int]) -> Overlap:
    """The overlap of the region made of these classes."""
    members = list(region_classes)
    return Overlap(
        n_reference=int(histogram[members].sum()),
        n_prediction=int(histogram[:, members].sum()),
        n_both=int(histogram[np.ix_(members, members)].sum()),
        n_voxels=int(histogram.sum()),
    )


def _ratio(numerator: int, denominator: int) -> float:
    return numerator / denominator if denominator else float("nan")
