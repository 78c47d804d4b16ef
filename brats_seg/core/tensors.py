"""Names for the torch tensors of public signatures: axes in order, and dtype. The tests check them at run
time.
"""

from jaxtyping import Float, Float32, UInt8
from torch import Tensor

Inputs = Float32[Tensor, "b m *patch"]
"""A batch of patches."""
Targets = UInt8[Tensor, "b *patch"]
"""Tissue class of each voxel of a batch, 255 outside the brain."""
Logits = Float[Tensor, "b k *patch"]
"""The output of a network before the softmax."""
PerExample = Float[Tensor, "b"]
"""One number for each example of a batch."""
