"""Image set -> batches: the ids of examples -> float32 images, targets and counts."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from brats_seg.classification.folder import FolderImages, center_crops, random_crops
from brats_seg.classification.image_set import ImageSet
from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.shapes import Ids
from brats_seg.imbalance.index import ClassIndex
from brats_seg.training.steps import Examples

IMAGES_AT_ONCE = 250
"""Batch size for a pass over all images."""
MOST_BYTE_CLASSES = 255
"""With more classes, targets are int64."""


class ImageSource:
    """Some images of a set, on a device. `index` holds the ids of each class, from which a sampler draws.

    An id is a position in the source: 0 to n - 1. The pixels of a set in memory are stored once (as bytes or
    whitened floats). All sources that `restrict` makes from each other share these pixels.
    """

    def __init__(
        self,
        images: ImageSet,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        threads: int = 1,
    ) -> None:
        """Move a set to a device.

        Args:
            images: the set.
            seed: seed of the crops of the images of a folder; (seed, number of the step) determines the
                crops.
            device: device of the batches; sets in memory are moved there completely.
            threads: number of threads that decode the images of a folder.
        """
        self.set = images
        self.class_names = images.class_names
        self.rows: Ids = np.arange(len(images))
        self.device = torch.device(device)
        self._seed = seed
        self._target_type = np.int64 if len(images.class_names) > MOST_BYTE_CLASSES else np.uint8
        self._targets = torch.from_numpy(images.labels.astype(self._target_type)).to(self.device)
        self._pixels: Tensor | None = None
        self._threads: ThreadPoolExecutor | None = None
        if isinstance(images.images, FolderImages):
            self._threads = ThreadPoolExecutor(threads) if threads > 1 else None
        else:
            self._pixels = torch.from_numpy(images.images).to(self.device)
        self._gathered: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, y, x, c) of the images in the form of a network's input."""
        return len(self.rows), *self.set.image_size, self.set.n_channels

    @cached_property
    def labels(self) -> Int64[np.ndarray, " n"]:
        """Class of each image."""
        return self.set.labels[self.rows]

    @cached_property
    def index(self) -> ClassIndex:
        """The images by class."""
        return ClassIndex.from_labels(self.labels, self.class_names)

    def restrict(self, ids: Ids, *, seed: int | None = None) -> "ImageSource":
        """Some of these images, in the given order. The pixels are shared. `seed` is the seed of their crops;
        None keeps the present seed.

        Raises:
            InputError: an id does not exist.
        """
        self._check(ids)
        other = object.__new__(ImageSource)
        other.__dict__ = {
            name: value for name, value in self.__dict__.items() if name not in ("labels", "index")
        }
        other.rows = self.rows[ids]
        other._seed = self._seed if seed is None else seed
        return other

    def relabel(self, labels: Int64[np.ndarray, " n"]) -> "ImageSource":
        """These images with other classes. The pixels are shared."""
        every = self.set.labels.copy()
        every[self.rows] = labels
        other = self.restrict(np.arange(len(self)))
        other.set = replace(self.set, labels=every)
        other._targets = torch.from_numpy(every.astype(self._target_type)).to(self.device)
        return other

    def batch(self, ids: Ids, *, number: int | None = None, out: Examples | None = None) -> Examples:
        """Images by their ids.

        Args:
            ids: ids of any classes; repeats are allowed.
            number: number of the step in the run. Images of a folder are then cropped at random and mirrored,
                as in training. None crops them in the middle, as in a test. Sets in memory are never changed.
            out: a batch of equally many images whose tensors are overwritten; None creates new tensors.

        Raises:
            InputError: an id does not exist, or a file cannot be decoded.
            UsageError: `out` has another size.
        """
        self._check(ids)
        out = out if out is not None else self._empty(len(ids))
        if len(out.targets) != len(ids):
            raise UsageError(f"out holds {len(out.targets)} images, but {len(ids)} ids were given")
        rows = self.rows[ids]
        rows_on_device = torch.from_numpy(rows).to(self.device)
        torch.index_select(self._targets, 0, rows_on_device, out=out.targets)
        self._fill(out.inputs.permute(0, 2, 3, 1), rows, rows_on_device, number=number)
        out.counts[:] = np.bincount(self.set.labels[rows], minlength=len(out.counts))
        return out

    @property
    def is_fixed(self) -> bool:
        """Whether an image is the same in each training step."""
        return self._pixels is not None

    def batches(self) -> Iterator[Tensor]:
        """All images in their order, as in a test."""
        for start in range(0, len(self), IMAGES_AT_ONCE):
            yield self.batch(np.arange(start, min(start + IMAGES_AT_ONCE, len(self)))).inputs

    def targets(self, ids: Ids) -> UInt8[Tensor, " b"] | Int64[Tensor, " b"]:
        """The class of each of some images, on the device."""
        return self._targets.index_select(0, torch.from_numpy(self.rows[ids]).to(self.device))

    def values(self, ids: Ids) -> Float32[np.ndarray, "b features"]:
        """The input of a network for some images, one row for each image, in the order (y, x, c)."""
        inputs = self.batch(ids).inputs.permute(0, 2, 3, 1).reshape(len(ids), -1)
        return inputs.float().cpu().numpy()

    def _fill(self, inputs: Tensor, rows: Ids, there: Tensor, *, number: int | None) -> None:
        """Write float images (B, Y, X, C)."""
        if self._pixels is None:
            inputs.copy_(torch.from_numpy(self._decode(rows, number=number)))
        elif self._pixels.dtype == inputs.dtype:
            torch.index_select(self._pixels, 0, there, out=inputs)
        else:
            # Bytes are gathered first into a buffer that is kept, because they are 4 times smaller than
            # floats. Then they are converted to floats and scaled in place.
            if self._gathered is None or self._gathered.shape != inputs.shape:
                self._gathered = torch.empty(inputs.shape, dtype=self._pixels.dtype, device=self.device)
            inputs.copy_(torch.index_select(self._pixels, 0, there, out=self._gathered))
        if self.set.scale != 1:
            inputs.mul_(self.set.scale)

    def _decode(self, rows: Ids, *, number: int | None) -> UInt8[np.ndarray, "b y x c"]:
        assert isinstance(self.set.images, FolderImages)
        crops = (
            random_crops(len(rows), seed=self._seed, step=number)
            if number is not None
            else center_crops(len(rows))
        )
        return self.set.images.decode(rows, crops=crops, threads=self._threads)

    def _empty(self, n: int) -> Examples:
        _, y, x, channels = self.shape
        inputs = torch.empty((n, y, x, channels), device=self.device).permute(0, 3, 1, 2)
        targets = torch.empty(n, dtype=self._targets.dtype, device=self.device)
        return Examples(inputs, targets, np.empty(len(self.class_names) + 1, np.int64))

    def _check(self, ids: Ids) -> None:
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < len(self):
            raise InputError(
                f"{self.set.name}: ids lie in {ids.min()}..{ids.max()}; there are 0..{len(self) - 1}"
            )
