"""Whole slices (2-D) or the whole volume (3-D) through a fully convolutional network, without windows and without seams."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations, pairwise
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32
from monai.networks.blocks.convolutions import Convolution
from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetResBlock
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from brats_seg.core.kernels import largest_class
from brats_seg.core.runtime import Runtime
from brats_seg.core.shapes import Ids, Image, Mask, TissueMap
from brats_seg.errors import InputError
from brats_seg.inference.windowed import window_logits
from brats_seg.models import readout as reading
from brats_seg.models.cascade import margin_of
from brats_seg.models.readout import Readout

SLICES = 8
"""Slices per forward pass: the fastest of 1, 2, 4, 8, 16 and 33 on two cores."""
Mirroring = Literal["none", "in_plane"]
"""Test-time augmentation: one pass, or the mean over all flips of the in-plane axes (four passes)."""
Probabilities = Float32[np.ndarray, "k z y x"]
"""Class probabilities of every voxel of a crop, summing to 1."""
SliceLogits = Float[Tensor, "n k y x"]
"""Logits of n slices."""

_NOT_A_NUMBER = "the network's output is not a number: its weights or the image hold NaN; use another checkpoint or float32"
_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def ready_for_inference(network: nn.Module, *, runtime: Runtime) -> nn.Module:
    """A copy of the network in evaluation mode on the runtime's device, its weights in the runtime's precision, channels last.

    bfloat16 weights are faster than automatic casting, which rounds the same float32 weights again in every pass. Batch norms are
    folded into the convolutions before them (in float32): 9 % of the time in bfloat16, 5 % in float32.
    """
    ready = copy.deepcopy(network).to(runtime.device).eval()
    _fold_batch_norms(ready)
    if runtime.dtype_autocast is not None:
        ready = ready.to(runtime.dtype_autocast)
    for parameter in ready.parameters():
        if parameter.dim() in _CHANNELS_LAST:
            parameter.data = parameter.data.contiguous(memory_format=_CHANNELS_LAST[parameter.dim()])
    return ready


def brain_mask(image: Image) -> Mask:
    """Voxels (Z, Y, X) with any modality that is not 0."""
    bits = np.ascontiguousarray(image).view(np.uint16)  # NumPy's own test of a half float against 0 takes ten times as long
    if bits.shape[-1] == 4:
        return bits.view(np.uint64)[..., 0] != 0  # all four at once: a quarter of the time
    brain = bits[..., 0] != 0
    for channel in range(1, bits.shape[-1]):
        brain |= bits[..., channel] != 0
    return brain


def slice_logits(
    network: nn.Module, image: Image, zs: Ids, *, batch_size: int = SLICES, divisor: int = 16
) -> Iterator[tuple[Ids, SliceLogits]]:
    """Run whole slices through a 2-D network, in evaluation mode, without gradients.

    Every pass has the same shape: slices are padded with air, behind to a multiple of `divisor` and on all sides by the network's margin,
    and the last batch is filled up. The network's mode is put back afterwards.

    Args:
        network: (B, M, Y, X) -> logits (B, K, Y, X), a margin smaller on each side where it has one; on any device, float32 or bfloat16.
        image: (Z, Y, X, M) float16; may be a read-only map.
        zs: the slices wanted, in any order.
        batch_size: slices per pass.
        divisor: what the network's input sides must be a multiple of.

    Yields:
        The next slices' numbers, and their logits (n, K, Y, X), in the order of `zs`.
    """
    n_y, n_x, n_channels = image.shape[1:]
    like = next(network.parameters(), torch.zeros(0))
    staged = np.zeros((batch_size, n_y, n_x, n_channels), np.float16)
    shape, inside = _fitting((n_y, n_x), margin=margin_of(network), divisor=divisor)
    inputs = torch.zeros((batch_size, *shape, n_channels), dtype=like.dtype, device=like.device)
    with _evaluating(network):
        for first in range(0, len(zs), batch_size):
            part = zs[first : first + batch_size]
            for i, z in enumerate(part):
                staged[i] = image[z]
            with torch.inference_mode():
                inputs[:, *inside].copy_(torch.from_numpy(staged))
                logits = network(inputs.permute(0, 3, 1, 2))
            yield part, logits[: len(part), :, :n_y, :n_x]


def volume_logits(network: nn.Module, image: Image, *, divisor: int = 16) -> Float[Tensor, "k z y x"]:
    """Run a whole crop (Z, Y, X, M) float16 through a 3-D network in one pass, padded as `slice_logits` does."""
    n_z, n_y, n_x = image.shape[:3]
    like = next(network.parameters(), torch.zeros(0))
    shape, inside = _fitting(image.shape[:3], margin=margin_of(network), divisor=divisor)
    inputs = torch.zeros((1, *shape, image.shape[3]), dtype=like.dtype, device=like.device)
    inputs[:, *inside].copy_(torch.from_numpy(np.array(image)))
    with _evaluating(network), torch.inference_mode():
        return network(inputs.permute(0, 4, 1, 2, 3))[0, :, :n_z, :n_y, :n_x]


def label_map(
    network: nn.Module,
    image: Image,
    *,
    n_dims: Literal[2, 3] = 2,
    divisor: int = 16,
    batch_size: int = SLICES,
    window: tuple[int, ...] | None = None,
    class_shift: Sequence[float] | None = None,
) -> TissueMap:
    """The likeliest class of every voxel of a crop; 0 (healthy) outside the brain.

    Args:
        network: takes slices (B, M, Y, X) or, with `n_dims` 3, volumes (B, M, Z, Y, X).
        image: (Z, Y, X, M) float16.
        n_dims: axes of the network's input.
        divisor: what the network's input sides must be a multiple of.
        batch_size: slices per pass of a 2-D network.
        window: (Y, X) or (Z, Y, X) to lead the network over the image with (`windowed.choose_window`); None shows it whole.
        class_shift: added to the logits of each class: the logarithm of a prior correction.

    Raises:
        InputError: the network's output is not a number.
    """
    (labels,) = label_maps(
        network, image, n_dims=n_dims, divisor=divisor, batch_size=batch_size, window=window, class_shifts=(class_shift,)
    )
    return labels


def label_maps(
    network: nn.Module,
    image: Image,
    *,
    class_shifts: Sequence[Sequence[float] | None],
    n_dims: Literal[2, 3] = 2,
    divisor: int = 16,
    batch_size: int = SLICES,
    window: tuple[int, ...] | None = None,
) -> list[TissueMap]:
    """`label_map` for each of several class shifts; the network is led over the image once."""
    brain = brain_mask(image)
    maps = [np.zeros(image.shape[:3], np.uint8) for _ in class_shifts]
    sound = True
    for zs, logits in _passes(network, image, n_dims=n_dims, divisor=divisor, batch_size=batch_size, window=window):
        values = logits.permute(0, 2, 3, 1).float().cpu().contiguous().numpy()
        for labels, class_shift in zip(maps, class_shifts, strict=True):
            shift = np.zeros(values.shape[3], np.float32) if class_shift is None else np.asarray(class_shift, np.float32)
            block = np.empty(values.shape[:3], np.uint8)
            sound &= bool(largest_class(values, brain[zs], shift, block))
            labels[zs] = block
    if not sound:
        raise InputError(_NOT_A_NUMBER)
    return maps


def class_probabilities(
    network: nn.Module,
    image: Image,
    *,
    n_dims: Literal[2, 3] = 2,
    divisor: int = 16,
    batch_size: int = SLICES,
    window: tuple[int, ...] | None = None,
    mirroring: Mirroring = "none",
    class_shift: Sequence[float] | None = None,
    readout: Readout = "softmax",
) -> Probabilities:
    """Class probabilities (K, Z, Y, X) of every voxel of a crop, the mean over mirrored passes. Other arguments as `label_map`.

    `readout` says how probabilities follow from the logits (`models.readout`).

    One sum is kept, whatever the number of passes: 4 bytes a voxel and class.

    Raises:
        InputError: an image without slices, or the network's output is not a number.
    """
    flips = [()] if mirroring == "none" else [axes for n in range(3) for axes in combinations((1, 2), n)]
    total: np.ndarray | None = None
    for axes in flips:
        flipped = np.flip(image, axes)
        for zs, logits in _passes(network, flipped, n_dims=n_dims, divisor=divisor, batch_size=batch_size, window=window):
            shift = torch.zeros(logits.shape[1]) if class_shift is None else torch.tensor(class_shift, dtype=torch.float32)
            shifted = logits.float() + shift.to(logits.device)[:, None, None]
            part = reading.class_probabilities(shifted, readout=readout).cpu().numpy()
            if total is None:
                total = np.zeros((part.shape[1], *image.shape[:3]), np.float32)
            total[:, zs] += np.flip(part, tuple(axis + 1 for axis in axes)).swapaxes(0, 1)
    if total is None:
        raise InputError("an image without slices has no class probabilities")
    if np.isnan(total[0]).any():  # a softmax with one NaN is NaN in every class, and the largest of NaNs would be healthy
        raise InputError(_NOT_A_NUMBER)
    return total / np.float32(len(flips))


def most_likely(probabilities: Probabilities, brain: Mask, *, readout: Readout = "softmax") -> TissueMap:
    """The class of every voxel (`models.readout.decide`), 0 outside the brain."""
    return np.where(brain, reading.decide(probabilities, readout=readout), np.uint8(0))


def _fold_batch_norms(network: nn.Module) -> None:
    """Where one follows a convolution directly; those that go before one, as in SegResNet, are left as they are."""
    for block in list(network.modules()):
        for before, holder, name in _norms_after_convolutions(block):
            convolution, norm = before.get_submodule("conv"), holder.get_submodule(name)
            if not isinstance(convolution, _CONVOLUTIONS) or not isinstance(norm, nn.modules.batchnorm._BatchNorm):
                continue
            if norm.track_running_stats:
                transposed = isinstance(convolution, nn.ConvTranspose2d | nn.ConvTranspose3d)
                before.conv = fuse_conv_bn_eval(convolution, norm, transpose=transposed)
                setattr(holder, name, nn.Identity())


def _norms_after_convolutions(block: nn.Module) -> Iterator[tuple[nn.Module, nn.Module, str]]:
    """The places in MONAI's blocks: a `Convolution`, and by whom and by what name the norm of its output is held."""
    after = getattr(block, "adn", None)  # norm, dropout and activation, in any order
    if isinstance(block, Convolution) and isinstance(after, nn.Sequential) and next(iter(dict(after.named_children())), "") == "N":
        yield block, after, "N"
    if isinstance(block, UnetBasicBlock | UnetResBlock):
        for number in (1, 2, 3):
            if hasattr(block, f"conv{number}"):
                yield getattr(block, f"conv{number}"), block, f"norm{number}"
    if type(block) is nn.Sequential:  # the gates of AttentionUnet
        children = list(block.named_children())
        for (_, before), (name, _) in pairwise(children):
            if isinstance(before, Convolution) and not hasattr(before, "adn"):
                yield before, block, name


def _passes(
    network: nn.Module, image: Image, *, n_dims: int, divisor: int, batch_size: int, window: tuple[int, ...] | None
) -> Iterator[tuple[Ids, SliceLogits]]:
    zs = np.arange(image.shape[0])
    if window is not None:
        with _evaluating(network):
            yield from window_logits(network, image, window=window)
    elif n_dims == 2:
        yield from slice_logits(network, image, zs, batch_size=batch_size, divisor=divisor)
    else:
        yield zs, volume_logits(network, image, divisor=divisor).transpose(0, 1)


def _fitting(sides: tuple[int, ...], *, margin: int, divisor: int) -> tuple[tuple[int, ...], tuple[slice, ...]]:
    """Sides of the input that an image is put into, and where in it."""
    inside: tuple[slice, ...] = tuple(slice(margin, margin + n) for n in sides)
    return tuple(-(-n // divisor) * divisor + 2 * margin for n in sides), inside


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)
