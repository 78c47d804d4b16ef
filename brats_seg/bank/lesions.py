"""Which lesion each tumor voxel of a case belongs to."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Integer, UInt32
from scipy import ndimage

from brats_seg.bank.listing import BankCase

_ALL_NEIGHBORS = np.ones((3, 3, 3), bool)


@dataclass(frozen=True)
class LesionNumberer:
    """Numbers the lesions of a case of a bank. A lesion is a connected set of tumor voxels; voxels that share
    a corner are connected.
    """

    cases: tuple[BankCase, ...]

    def __call__(self, case: int, positions: UInt32[np.ndarray, " n"]) -> Integer[np.ndarray, " n"]:
        """The number of the lesion of each tumor voxel, from 0 on; `positions` are flat positions in the crop
        of the case.
        """
        return number_lesions(positions, shape=self.cases[case].shape)


def number_lesions(
    positions: UInt32[np.ndarray, " n"], *, shape: tuple[int, int, int]
) -> Integer[np.ndarray, " n"]:
    """The number (0, 1, ...) of the 26-connected component of each of the voxels at flat positions in a
    volume of a shape (Z, Y, X).
    """
    if positions.size == 0:
        return np.zeros(0, np.int32)
    places = np.stack(np.unravel_index(positions, shape))
    places -= places.min(axis=1, keepdims=True)
    mask = np.zeros(places.max(axis=1) + 1, bool)  # the tumor's bounding box: a fraction of the crop
    mask[tuple(places)] = True
    labels, _ = ndimage.label(mask, _ALL_NEIGHBORS)
    return labels[tuple(places)] - 1
