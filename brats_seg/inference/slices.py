"""Slices of a crop, with the neighboring slices on each side as further channels."""

import numpy as np
from jaxtyping import Float16

from brats_seg.core.shapes import Ids, Image

Stack = Float16[np.ndarray, "b y x c"]
"""Slices for the input of a 2-D network: the channels of slice z - n first, then those of z - n + 1, up to z
+ n.
"""


def stack_slices(image: Image, zs: Ids, *, slices_around: int, out: Stack) -> None:
    """Write slices to the start of `out`, as for training patches: a slice beyond the crop is 0.

    Args:
        image: (Z, Y, X, M) float16; may be a read-only map.
        zs: the slices, at most len(out).
        slices_around: n, the number of neighboring slices on each side.
        out: (B, Y, X, (2 n + 1) M).
    """
    n_slices, n_channels = image.shape[0], image.shape[3]
    for place, z in enumerate(zs):
        for k, neighbor in enumerate(range(z - slices_around, z + slices_around + 1)):
            channels = slice(k * n_channels, (k + 1) * n_channels)
            out[place, :, :, channels] = image[neighbor] if 0 <= neighbor < n_slices else 0
