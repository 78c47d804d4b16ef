"""MONAI's sliding window, for networks whose output depends on how much of the image they see."""

import os
from collections.abc import Iterator, Sequence
from math import prod

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
from brats_seg.inference.options import Inference
from brats_seg.inference.slices import stack_slices
from brats_seg.models.builders import crop_sides, margin_of

OVERLAP = 0.5
"""Share of a window that the next window overlaps; nnU-Net's default."""
WHOLE_SHARE = 0.5
"""If the training patch covers at least this share of a crop, a 3-D network with instance or group norm sees
the whole crop.

These norms average over the whole input. From one half on, a training patch held the larger part of the crop.
No other value was tried.
"""
MEMORY_SHARE = 0.5
"""Share of a device's memory that a whole volume may use. It is a share of all memory, not of the free
memory, so that the same command always gives the same label map.
"""
LAYERS_ALIVE = 12
"""Memory of a whole pass, in outputs of the widest layer: 10 (bfloat16) and 9 (float32) were measured for a
residual dynunet of 16, 32, 64, 128, 128 channels.
"""
_SLICES = 8
_WINDOWS = {
    2: 32,
    3: 2,
}  # in one pass, by axes of the window; never 1: MONAI then multiplies the input itself by the Gaussian
_NORMS_BY_EXTENT = (nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)
_ATTENTION = (nn.MultiheadAttention, SABlock, CrossAttentionBlock, WindowAttention)


def needs_windows(network: nn.Module) -> bool:
    """Whether a voxel's output depends on how much of the image the network sees.

    Instance and group norm average over the whole input, and attention compares all of it. Such a network
    gives a voxel another output in a whole slice than in a patch.
    """
    return any(isinstance(module, (*_NORMS_BY_EXTENT, *_ATTENTION)) for module in network.modules())


def choose_window(
    network: nn.Module,
    *,
    patch_size: Sequence[int],
    inference: Inference = "auto",
    image_shape: Sequence[int] | None = None,
    divisor: int = 16,
) -> tuple[int, ...] | None:
    """The size of the sliding window over an image: the training patch, or None for whole slices (or the
    whole volume).

    "auto" gives a 2-D network whole slices unless it `needs_windows`. It gives a 3-D network the whole volume
    if that fits into memory (`whole_volume_bytes`), except if the network has attention, or has instance or
    group norm and a patch that covers less than `WHOLE_SHARE` of the crop.

    Args:
        network: ready for inference.
        patch_size: (Y, X) or (Z, Y, X), voxels.
        inference: "whole" and "windowed" are always followed.
        image_shape: (Z, Y, X, M) of the crop; None gives the window that a 3-D network uses for crops too
            large to see whole.
        divisor: what the sides of the network's input must be a multiple of.
    """
    window = tuple(patch_size)
    if inference != "auto":
        return window if inference == "windowed" else None
    if len(window) == 2:
        return window if needs_windows(network) else None
    return (
        None
        if image_shape is not None and _sees_whole(network, window, tuple(image_shape), divisor)
        else window
    )


def whole_volume_bytes(network: nn.Module, image_shape: Sequence[int], *, divisor: int = 16) -> int:
    """Approximate memory, in bytes, that a 3-D network needs for a whole crop (Z, Y, X, M).

    Padded voxels x bytes of a number x values of the widest layer for each voxel of the input x
    `LAYERS_ALIVE`. The widest layer is found by a pass over a cube of twice the divisor.
    """
    *sides, n_channels = image_shape
    like = next(network.parameters(), torch.zeros(0))
    widest = 0

    def note(module: nn.Module, inputs: object, output: object) -> None:
        nonlocal widest
        if isinstance(output, Tensor):
            widest = max(widest, output.numel())

    hooks = [module.register_forward_hook(note) for module in network.modules()]
    cube = torch.zeros((1, n_channels, *(2 * divisor,) * 3), dtype=like.dtype, device=like.device)
    try:
        with torch.inference_mode():
            network(cube)
    finally:
        for hook in hooks:
            hook.remove()
    n_voxels = prod(-(-side // divisor) * divisor for side in sides)
    return n_voxels * like.element_size() * LAYERS_ALIVE * widest // (2 * divisor) ** 3


def _sees_whole(
    network: nn.Module, patch_size: tuple[int, ...], image_shape: tuple[int, ...], divisor: int
) -> bool:
    if any(isinstance(module, _ATTENTION) for module in network.modules()):
        return False
    share = prod(min(side, of) / of for side, of in zip(patch_size, image_shape[:3], strict=True))
    if needs_windows(network) and share < WHOLE_SHARE:
        return False
    device = next(network.parameters(), torch.zeros(0)).device
    return whole_volume_bytes(network, image_shape, divisor=divisor) <= MEMORY_SHARE * _memory_bytes(device)


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def window_logits(
    network: nn.Module,
    image: Image,
    *,
    window: tuple[int, ...],
    overlap: float = OVERLAP,
    slices_around: int = 0,
) -> Iterator[tuple[np.ndarray, Float[Tensor, "n k y x"]]]:
    """Run a network over overlapping windows and average their outputs with Gaussian weights (standard
    deviation: an eighth of the window).

    An image smaller than the window is padded with zeros on both sides. For a network with a margin the
    window is the size of its output, not of its input.

    Args:
        network: in evaluation mode, (B, M, *window and margins) -> logits (B, K, *window), on any device,
            float32 or bfloat16.
        image: (Z, Y, X, M) float16; may be a read-only map.
        window: (Y, X), which treats every slice as a separate image, or (Z, Y, X).
        overlap: share of a window that the next overlaps, 0 to below 1.
        slices_around: see `stack_slices`; 0 for a window of three axes.

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
        # MONAI needs an output as large as the input. The second output is 1 where it is valid.
        return F.pad(logits, around), F.pad(torch.ones_like(logits[:, :1]), around)

    def stitch(pictures: Tensor) -> Tensor:
        with torch.inference_mode():
            stitched = sliding_window_inference(
                F.pad(pictures, around), sides, _WINDOWS[len(window)], run, overlap=steps, mode="gaussian"
            )
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
        stack = np.empty((len(zs), *image.shape[1:3], image.shape[3] * (2 * slices_around + 1)), np.float16)
        stack_slices(image, zs, slices_around=slices_around, out=stack)
        yield zs, stitch(torch.from_numpy(stack).to(like.device, torch.float32).permute(0, 3, 1, 2))
