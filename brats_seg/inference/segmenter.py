"""Trained networks + brain crop -> label map of the crop."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import nn

from brats_seg.core.errors import UsageError
from brats_seg.core.shapes import Image
from brats_seg.inference.dense import (
    Feed,
    SliceLabels,
    SliceProbabilities,
    brain_mask,
    class_probabilities,
    label_map,
    most_likely,
)
from brats_seg.inference.options import Mirroring
from brats_seg.inference.windowed import choose_window
from brats_seg.models.readout import Readout


@dataclass(frozen=True)
class Segmenter:
    """A network, and how to prepare its input and read its output.

    Attributes:
        network: ready for inference (`dense.ready_for_inference`).
        modalities: names of its input channels, in order.
        classes: names of its output classes, in order, healthy first.
        spacing_mm: voxel size (Z, Y, X) of its training scans.
        percentiles: of the brain's intensities, at which each modality is clipped.
        n4: whether it was trained on scans corrected by N4.
        n_dims: 2 for slices, 3 for volumes.
        divisor: what its input sides must be a multiple of.
        window: of a sliding window; None passes whole slices (or volumes).
        inference: "windowed" uses the window for every image, "auto" only if the network does not see the
            whole image (`windowed.choose_window`).
        slices_around: number of neighboring slices on each side that a 2-D network sees too.
        class_shift: added to the logits of each class: the logarithm of a prior correction; None for none.
        readout: how class probabilities are computed from its logits.
        checkpoint: SHA-256 of the file of its weights; "" without a file.
    """

    network: nn.Module
    modalities: tuple[str, ...]
    classes: tuple[str, ...]
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    percentiles: tuple[float, float] = (0.5, 99.5)
    n4: bool = False
    n_dims: Literal[2, 3] = 2
    divisor: int = 16
    window: tuple[int, ...] | None = None
    inference: Literal["auto", "windowed"] = "windowed"
    slices_around: int = 0
    class_shift: tuple[float, ...] | None = None
    readout: Readout = "softmax"
    checkpoint: str = ""

    def feed_for(self, image: Image) -> Feed:
        """How this crop (Z, Y, X, M) is passed to the network."""
        window = self.window
        if window is not None and self.inference == "auto":
            window = choose_window(
                self.network, patch_size=window, image_shape=image.shape, divisor=self.divisor
            )
        return Feed(self.n_dims, self.divisor, window, self.slices_around)


def fitting(segmenters: Sequence[Segmenter]) -> tuple[Segmenter, ...]:
    """Segmenters whose probabilities can be averaged, with their networks in evaluation mode. Raises
    `UsageError` if there is none, or if they cannot be averaged.
    """
    if not segmenters:
        raise UsageError("no network to segment with; give at least one run")
    first = segmenters[0]
    for name in ("modalities", "classes", "spacing_mm", "percentiles", "n4"):
        for other in segmenters[1:]:
            if getattr(other, name) != getattr(first, name):
                raise UsageError(
                    f"runs of different {name} cannot be averaged: {getattr(first, name)} and "
                    f"{getattr(other, name)}"
                )
    for s in segmenters:
        s.network.eval()  # in one thread, before several threads use the network
    return tuple(segmenters)


def goes_by_slices(segmenters: Sequence[Segmenter]) -> bool:
    """Whether slices may be computed separately: only by 2-D networks that see whole slices, on the CPU."""
    on_cpu = all(parameter.device.type == "cpu" for s in segmenters for parameter in s.network.parameters())
    return on_cpu and all(s.n_dims == 2 and s.window is None for s in segmenters)


def segment_crop(
    segmenters: Sequence[Segmenter],
    image: Image,
    *,
    slices: slice | None = None,
    mirroring: Mirroring = "none",
    with_probabilities: bool = False,
) -> tuple[SliceLabels, SliceProbabilities | None]:
    """The likeliest class of every voxel of a crop, 0 outside the brain; and the mean of all class
    probabilities if wanted.

    `slices` are the slices to segment, only for networks that work slice by slice; None for all. A 2-D
    network is mirrored in plane only. If all networks predict regions, the mean is decided region by region;
    else the likeliest class counts.

    Raises:
        InputError: a network's output is not a number.
    """
    first = segmenters[0]
    if len(segmenters) == 1 and mirroring == "none" and not with_probabilities:
        labels = label_map(
            first.network,
            image,
            feed=first.feed_for(image),
            slices=slices,
            class_shift=first.class_shift,
        )
        return labels, None
    probabilities = _mean_probabilities(segmenters, image, slices=slices, mirroring=mirroring)
    brain = brain_mask(image if slices is None else image[slices])
    readout: Readout = "regions" if all(s.readout == "regions" for s in segmenters) else "softmax"
    return most_likely(probabilities, brain, readout=readout), probabilities if with_probabilities else None


def _mean_probabilities(
    segmenters: Sequence[Segmenter], image: Image, *, slices: slice | None, mirroring: Mirroring
) -> SliceProbabilities:
    total: np.ndarray | float = 0.0
    for s in segmenters:
        total = total + class_probabilities(
            s.network,
            image,
            feed=s.feed_for(image),
            slices=slices,
            mirroring="in_plane" if s.n_dims == 2 and mirroring == "all_axes" else mirroring,
            class_shift=s.class_shift,
            readout=s.readout,
        )
    return np.asarray(total / len(segmenters), np.float32)
