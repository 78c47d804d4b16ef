"""Names for the NumPy arrays of public signatures: axes in order, and dtype. The tests check them at run
time.
"""

import numpy as np
from jaxtyping import Bool, Float, Float16, Int64, Num, UInt8

Volume = Num[np.ndarray, "z y x"]
"""One scan as stored: LPS orientation, x is the fastest axis, any number type."""
Image = Float16[np.ndarray, "z y x m"]
"""A normalized case. The modalities of a voxel are adjacent in memory; values outside the brain are 0."""
TissueMap = UInt8[np.ndarray, "z y x"]
"""Tissue class of every voxel, 255 outside the brain."""
Mask = Bool[np.ndarray, "z y x"]
"""A region or a brain."""
Ids = Int64[np.ndarray, "n"]
"""Ids of examples. The samplers do not use their meaning."""
Counts = Int64[np.ndarray, "k"]
"""Examples (or voxels) per class."""
Shares = Float[np.ndarray, "k"]
"""A share for each class, summing to 1."""
