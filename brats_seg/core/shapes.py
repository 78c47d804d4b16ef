"""Names for the NumPy arrays of public signatures: axes, in order, and dtype (checked at run time in the
tests).
"""

import numpy as np
from jaxtyping import Bool, Float, Float16, Int64, Num, UInt8

Volume = Num[np.ndarray, "z y x"]
"""One scan as stored, in LPS, x fastest, any number type."""
Image = Float16[np.ndarray, "z y x m"]
"""A normalized case: every modality of a voxel side by side, 0 outside the brain."""
TissueMap = UInt8[np.ndarray, "z y x"]
"""Tissue class of every voxel, 255 outside the brain."""
Mask = Bool[np.ndarray, "z y x"]
"""A region or a brain."""
Ids = Int64[np.ndarray, "n"]
"""Example ids, opaque to the samplers."""
Counts = Int64[np.ndarray, "k"]
"""Examples (or voxels) per class."""
Shares = Float[np.ndarray, "k"]
"""A share for each class, summing to 1."""
