"""Whole slices (2-D) or the whole volume (3-D) through a fully convolutional network, without windows and
without seams.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8
from torch import Tensor, nn

from brats_seg.core.errors import InputError
from brats_seg.core.kernels import largest_class
from brats_seg.core.runtime import evaluating
from brats_seg.core.shapes import Ids, Image, Mask, TissueMap
from brats_seg.inference.options import Mirroring
from brats_seg.inference.slices import stack_slices
from brats_seg.inference.windowed import window_logits
from brats_seg.models import readout as reading
from brats_seg.models.builders import margin_of
from brats_seg.models.readout import Readout

SLICES = 8
"""Slices per forward pass: the fastest of 1, 2, 4, 8, 16 and 33 on two cores."""
Probabilities = Float32[np.ndarray, "k z y x"]
"""Class probabilities of every voxel of a crop, summing to 1."""
SliceLogits = Float[Tensor, "n k y x"]
"""Logits of n slices."""
SliceLabels = UInt8[np.ndarray, "n y x"]
"""Classes of n slices: of those wanted, or of all."""
SliceProbabilities = Float32[np.ndarray, "k n y x"]
"""Class probabilities of n slices, summing to 1."""
Shifts = Float32[np.ndarray, "s k"]
"""Numbers to add to the logits of each class; each row gives its own label map."""

_NOT_A_NUMBER = (
    "the network's output is not a number: its weights or the image contain NaN; use another checkpoint or "
    "float32"
)
_MIRRORED: dict[str, tuple[int, ...]] = {"none": (), "in_plane": (1, 2), "all_axes": (0, 1, 2)}


def brain_mask(image: Image) -> Mask:
    """Voxels (Z, Y, X) with any modality that is not 0."""
    bits = np.ascontiguousarray(image).view(
        np.uint16
    )  # NumPy's comparison of float16 with 0 takes ten times as long
    if bits.shape[-1] == 4:
        return bits.view(np.uint64)[..., 0] != 0  # all four at once: a quarter of the time
    brain = bits[..., 0] != 0
    for channel in range(1, bits.shape[-1]):
        brain |= bits[..., channel] != 0
    return brain


def slice_logits(
    network: nn.Module,
    image: Image,
    zs: Ids,
    *,
    batch_size: int = SLICES,
    divisor: int = 16,
    slices_around: int = 0,
) -> Iterator[tuple[Ids, SliceLogits]]:
    """Run whole slices through a 2-D network, in evaluation mode, without gradients.

    Every pass has the same shape. Slices are padded with zeros: at the end to a multiple of `divisor`, and on
    all sides by the network's margin. The last batch is padded too. Afterwards the network returns to its
    earlier mode.

    Args:
        network: (B, C, Y, X) -> logits (B, K, Y, X), smaller by the network's margin on each side; on any
            device, float32 or bfloat16. C is (2 n + 1) M; n is `slices_around`.
        image: (Z, Y, X, M) float16; may be a read-only map.
        zs: the slices wanted, in any order.
        batch_size: slices per pass.
        divisor: what the network's input sides must be a multiple of.
        slices_around: n, the number of neighboring slices on each side that are further input channels
            (`stack_slices`).

    Yields:
        The next slices' numbers, and their logits (n, K, Y, X), in the order of `zs`.
    """
    n_y, n_x, n_channels = *image.shape[1:3], image.shape[3] * (2 * slices_around + 1)
    like = next(network.parameters(), torch.zeros(0))
    staged = np.zeros((batch_size, n_y, n_x, n_channels), np.float16)
    shape, inside = _fitting((n_y, n_x), margin=margin_of(network), divisor=divisor)
    inputs = torch.zeros((batch_size, *shape, n_channels), dtype=like.dtype, device=like.device)
    with evaluating(network):
        for first in range(0, len(zs), batch_size):
            part = zs[first : first + batch_size]
            stack_slices(image, part, slices_around=slices_around, out=staged)
            with torch.inference_mode():
                inputs[:, *inside].copy_(torch.from_numpy(staged))
                logits = network(inputs.permute(0, 3, 1, 2))
            yield part, logits[: len(part), :, :n_y, :n_x]


def volume_logits(network: nn.Module, image: Image, *, divisor: int = 16) -> Float[Tensor, "k z y x"]:
    """Run a whole crop (Z, Y, X, M) float16 through a 3-D network in one pass, padded as `slice_logits`
    does.
    """
    n_z, n_y, n_x = image.shape[:3]
    like = next(network.parameters(), torch.zeros(0))
    shape, inside = _fitting(image.shape[:3], margin=margin_of(network), divisor=divisor)
    inputs = torch.zeros((1, *shape, image.shape[3]), dtype=like.dtype, device=like.device)
    inputs[:, *inside].copy_(torch.from_numpy(np.array(image)))
    with evaluating(network), torch.inference_mode():
        return network(inputs.permute(0, 4, 1, 2, 3))[0, :, :n_z, :n_y, :n_x]


@dataclass(frozen=True)
class Feed:
    """How an image is passed to a network.

    Attributes:
        n_dims: axes of its input: 2 for slices (B, M, Y, X), 3 for volumes (B, M, Z, Y, X).
        divisor: what the sides of its input must be a multiple of.
        window: (Y, X) or (Z, Y, X) of a sliding window (`windowed.choose_window`); None passes the whole
            slice or volume.
        slices_around: number of neighboring slices on each side that a 2-D network sees too (`stack_slices`).
    """

    n_dims: Literal[2, 3] = 2
    divisor: int = 16
    window: tuple[int, ...] | None = None
    slices_around: int = 0


def label_map(
    network: nn.Module,
    image: Image,
    *,
    feed: Feed = Feed(),
    slices: slice | None = None,
    class_shift: Sequence[float] | None = None,
) -> SliceLabels:
    """The likeliest class of every voxel of a crop; 0 (healthy) outside the brain.

    Args:
        network: in any mode, on any device.
        image: (Z, Y, X, M) float16.
        feed: how the image is passed to the network.
        slices: slices to segment, only for a 2-D network that sees whole slices; None for all. The result has
            only these slices.
        class_shift: added to the logits of each class: the logarithm of a prior correction.

    Raises:
        InputError: the network's output is not a number.
    """
    (labels,) = label_maps(network, image, feed=feed, slices=slices, class_shifts=(class_shift,))
    return labels


def label_maps(
    network: nn.Module,
    image: Image,
    *,
    class_shifts: Sequence[Sequence[float] | None],
    feed: Feed = Feed(),
    slices: slice | None = None,
) -> list[SliceLabels]:
    """`label_map` for each of several class shifts; the network runs over the image once."""
    brain = brain_mask(image if slices is None else image[slices])
    maps = [np.zeros(brain.shape, np.uint8) for _ in class_shifts]
    sound = True
    for rows, logits in _passes(network, image, feed=feed, slices=slices):
        find = _largest_on_cpu if logits.device.type == "cpu" else _largest_on_device
        shifts = [np.zeros(logits.shape[1]) if shift is None else shift for shift in class_shifts]
        blocks, are_sound = find(logits, brain[rows], np.asarray(shifts, np.float32))
        sound &= are_sound
        for labels, block in zip(maps, blocks, strict=True):
            labels[rows] = block
    if not sound:
        raise InputError(_NOT_A_NUMBER)
    return maps


def _largest_on_cpu(
    logits: SliceLogits, brain: Bool[np.ndarray, "n y x"], shifts: Shifts
) -> tuple[list[SliceLabels], bool]:
    """The class of the largest shifted logit of every voxel of the brain, for each shift; whether no logit is
    NaN.
    """
    values = logits.permute(0, 2, 3, 1).float().contiguous().numpy()
    blocks = [np.empty(brain.shape, np.uint8) for _ in shifts]
    sound = [
        bool(largest_class(values, brain, shift, block)) for shift, block in zip(shifts, blocks, strict=True)
    ]
    return blocks, all(sound)


def _largest_on_device(
    logits: SliceLogits, brain: Bool[np.ndarray, "n y x"], shifts: Shifts
) -> tuple[list[SliceLabels], bool]:
    """`_largest_on_cpu` by torch on the device of the logits: only the labels are copied to the CPU, one byte
    for each voxel. Of equal logits torch takes the first.
    """
    values, is_brain = logits.float(), torch.from_numpy(brain).to(logits.device)
    factors = torch.from_numpy(shifts).to(logits.device)
    blocks = [(values + shift[:, None, None]).argmax(1).to(torch.uint8) * is_brain for shift in factors]
    is_sound = not (values.isnan().any() | factors.isnan().any()).item()
    return [block.cpu().numpy() for block in blocks], is_sound


def class_probabilities(
    network: nn.Module,
    image: Image,
    *,
    feed: Feed = Feed(),
    slices: slice | None = None,
    mirroring: Mirroring = "none",
    class_shift: Sequence[float] | None = None,
    readout: Readout = "softmax",
) -> SliceProbabilities:
    """Class probabilities (K, Z, Y, X) of every voxel of a crop, the mean over mirrored passes. Other
    arguments as `label_map`.

    With `slices`, `mirroring` must not be "all_axes". `readout` says how probabilities are computed from the
    logits (`models.readout`).

    Memory: one sum for all passes, 4 bytes for each voxel and class.

    Raises:
        InputError: an image without slices, or the network's output is not a number.
    """
    mirrored = _MIRRORED[mirroring]
    flips = [axes for n in range(len(mirrored) + 1) for axes in combinations(mirrored, n)]
    n_slices = len(image) if slices is None else len(image[slices])
    total: np.ndarray | None = None
    for axes in flips:
        for rows, logits in _passes(network, np.flip(image, axes), feed=feed, slices=slices):
            shift = (
                torch.zeros(logits.shape[1])
                if class_shift is None
                else torch.tensor(class_shift, dtype=torch.float32)
            )
            shifted = logits.float() + shift.to(logits.device)[:, None, None]
            part = reading.class_probabilities(shifted, readout=readout).cpu().numpy()
            if total is None:
                total = np.zeros((part.shape[1], n_slices, *image.shape[1:3]), np.float32)
            np.flip(total, tuple(axis + 1 for axis in axes))[:, rows] += part.swapaxes(0, 1)
    if total is None:
        raise InputError("an image without slices has no class probabilities")
    if np.isnan(
        total[0]
    ).any():  # a softmax with one NaN is NaN in every class, and the largest of NaNs would be healthy
        raise InputError(_NOT_A_NUMBER)
    return total / np.float32(len(flips))


def most_likely(probabilities: Probabilities, brain: Mask, *, readout: Readout = "softmax") -> TissueMap:
    """The class of every voxel (`models.readout.decide`), 0 outside the brain."""
    return np.where(brain, reading.decide(probabilities, readout=readout), np.uint8(0))


def _passes(
    network: nn.Module, image: Image, *, feed: Feed, slices: slice | None
) -> Iterator[tuple[slice, SliceLogits]]:
    """Logits of the wanted slices, in order, and their positions among the wanted slices."""
    if feed.window is None and feed.n_dims == 3:
        yield slice(0, len(image)), volume_logits(network, image, divisor=feed.divisor).transpose(0, 1)
        return
    with evaluating(network):
        if feed.window is not None:
            parts = window_logits(network, image, window=feed.window, slices_around=feed.slices_around)
        else:
            zs = np.arange(len(image))[slices or slice(None)]
            parts = slice_logits(network, image, zs, divisor=feed.divisor, slices_around=feed.slices_around)
        first = 0
        for part, logits in parts:
            yield slice(first, first + len(part)), logits
            first += len(part)


def _fitting(
    sides: tuple[int, ...], *, margin: int, divisor: int
) -> tuple[tuple[int, ...], tuple[slice, ...]]:
    """Sides of the padded input, and the position of the image in the input."""
    inside: tuple[slice, ...] = tuple(slice(margin, margin + n) for n in sides)
    return tuple(-(-n // divisor) * divisor + 2 * margin for n in sides), inside
