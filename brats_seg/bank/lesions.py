"""Which lesion each tumor voxel of a case belongs to."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Integer, UInt32
from scipy import ndimage

from brats_seg.bank.records import BankCase

_ALL_NEIGHBORS = np.ones((3, 3, 3), bool)


def lesions_of_case(
    cases: Sequence[BankCase], case: int, positions: UInt32[np.ndarray, " n"]
) -> Integer[np.ndarray, " n"]:
    """The number (0, 1, ...) of the lesion of each tumor voxel of a case. A lesion is a connected set of
    tumor voxels; voxels that share a corner are connected.

    Args:
        cases: all cases of the bank.
        case: number of the case.
        positions: flat positions in the crop of the case.
    """
    return number_lesions(positions, shape=cases[case].shape)


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
    mask = np.zeros(places.max(axis=1) + 1, bool)  # only the tumor's bounding box, smaller than the crop
    mask[tuple(places)] = True
    labels, _ = ndimage.label(mask, _ALL_NEIGHBORS)
    return labels[tuple(places)] - 1
