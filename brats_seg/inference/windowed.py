"""MONAI's sliding window, for networks whose output depends on how much of the image they are shown."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from monai.inferers.utils import sliding_window_inference
from monai.networks.blocks.crossattention import CrossAttentionBlock
from monai.networks.blocks.selfattention import SABlock
from monai.networks.nets.swin_unetr import WindowAttention
from torch import Tensor, nn

from brats_seg.core.shapes import Image
from brats_seg.models.cascade import crop_sides, margin_of

Inference = Literal["auto", "whole", "windowed"]
"""How a network is led over an image: as `needs_windows` says, in whole slices (or the whole volume), or in windows."""

OVERLAP = 0.5
"""Share of a window that the next one covers too; nnU-Net's default."""
LARGE_3D = 10_000_000
"""Weights from which a 3-D network counts as too large to be shown a whole brain; the residual U-Net of four levels has 4.8 million."""
_SLICES = 8
_WINDOWS = {2: 32, 3: 2}  # in one pass, by axes of the window; never 1: MONAI then multiplies the input itself by the Gaussian
_NORMS_BY_EXTENT = (nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)
_ATTENTION = (nn.MultiheadAttention, SABlock, CrossAttentionBlock, WindowAttention)


def needs_windows(network: nn.Module) -> bool:
    """Whether a network must see windows of the size it was trained on.

    Instance and group norm average over what is shown, attention weighs against all of it: there a voxel's output is another one in a
    whole slice than in a patch. And a large 3-D network does not fit into memory with a whole brain (`LARGE_3D`).
    """
    modules = list(network.modules())
    if any(isinstance(module, (*_NORMS_BY_EXTENT, *_ATTENTION)) for module in modules):
        return True
    is_3d = any(isinstance(module, nn.Conv3d) for module in modules)
    return is_3d and sum(parameter.numel() for parameter in network.parameters()) >= LARGE_3D


def choose_window(network: nn.Module, *, patch_size: Sequence[int], inference: Inference = "auto") -> tuple[int, ...] | None:
    """The window to lead a network over an image with: the patch it was trained on, or None for whole slices (or the whole volume)."""
    windowed = needs_windows(network) if inference == "auto" else inference == "windowed"
    return tuple(patch_size) if windowed else None


def window_logits(
    network: nn.Module, image: Image, *, window: tuple[int, ...], overlap: float = OVERLAP
) -> Iterator[tuple[np.ndarray, Float[Tensor, "n k y x"]]]:
    """Run a network over overlapping windows, which are averaged with Gaussian weights (a standard deviation of an eighth of the window).

    An image smaller than the window is padded with air on both sides. Of a network with a margin the window is what it gives, not what it
    is shown.

    Args:
        network: in evaluation mode, (B, M, *window and margins) -> logits (B, K, *window), on any device, float32 or bfloat16.
        image: (Z, Y, X, M) float16; may be a read-only map.
        window: (Y, X), then every slice is a picture of its own, or (Z, Y, X).
        overlap: 0 to below 1.

    Yields:
        Some slices' numbers, in order, and their logits (n, K, Y, X), float32.
    """
    like = next(network.parameters(), torch.zeros(0))

    margin = margin_of(network)
    sides = [side + 2 * margin for side in window]
    steps = [1 - side * (1 - overlap) / shown for side, shown in zip(window, sides, strict=True)]
    around = (margin, margin) * len(window)

    def run(windows: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        logits = network(windows.to(like.dtype)).float()
        if margin == 0:
            return logits
        # MONAI wants an output as large as the input: beside it goes where it is one, to divide by.
        return F.pad(logits, around), F.pad(torch.ones_like(logits[:, :1]), around)

    def stitch(pictures: Tensor) -> Tensor:
        with torch.inference_mode():
            stitched = sliding_window_inference(F.pad(pictures, around), sides, _WINDOWS[len(window)], run, overlap=steps, mode="gaussian")
        if isinstance(stitched, Tensor):
            return stitched
        assert isinstance(stitched, tuple)  # two outputs in, two outputs back
        logits, shares = (crop_sides(output, margin) for output in stitched)
        return logits / shares

    n_slices = image.shape[0]
    if len(window) == 3:
        volume = torch.from_numpy(np.array(image)).to(like.device, torch.float32).permute(3, 0, 1, 2)
        yield np.arange(n_slices), stitch(volume[None])[0].transpose(0, 1)
        return
    for first in range(0, n_slices, _SLICES):
        zs = np.arange(first, min(first + _SLICES, n_slices))
        slices = torch.from_numpy(np.array(image[first : first + _SLICES])).to(like.device, torch.float32)
        yield zs, stitch(slices.permute(0, 3, 1, 2))
