"""Names for the torch tensors of public signatures: axes, in order, and dtype (checked at run time in the
tests).
"""

from jaxtyping import Float, Float32, UInt8
from torch import Tensor

Inputs = Float32[Tensor, "b m *patch"]
"""A batch of patches."""
Targets = UInt8[Tensor, "b *patch"]
"""Tissue class of each voxel of a batch, 255 outside the brain."""
Logits = Float[Tensor, "b k *patch"]
"""A network's output before the softmax."""
PerExample = Float[Tensor, "b"]
"""One number for each example of a batch."""
