"""Image set -> batches: ids in, float32 images, targets and counts out."""

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
"""Where all are looked at."""
MOST_BYTE_CLASSES = 255
"""With more, targets are int64."""


class ImageSource:
    """Some images of a set, on a device. A source never chooses: `index` says which ids there are of each
    class, a sampler draws of them.

    An id is a position in the source: 0 to n - 1. Pixels of a set in memory are held once, as they are
    (bytes, or whitened floats), and shared by all sources made of each other by `restrict`.
    """

    def __init__(
        self,
        images: ImageSet,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        threads: int = 1,
    ) -> None:
        """Place a set on a device.

        Args:
            images: the set.
            seed: of the cuts of a folder's images; they follow from (seed, number of the step).
            device: where batches are wanted; sets in memory are moved there whole.
            threads: that decode the images of a folder.
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
        """(n, y, x, c) of the images as a network sees them."""
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
        """Some of these images, in the order given; pixels are shared. `seed` is of their cuts; None keeps
        it.

        Raises:
            InputError: an id that is none.
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
        """These images with other classes; pixels are shared."""
        every = self.set.labels.copy()
        every[self.rows] = labels
        other = self.restrict(np.arange(len(self)))
        other.set = replace(self.set, labels=every)
        other._targets = torch.from_numpy(every.astype(self._target_type)).to(self.device)
        return other

    def batch(self, ids: Ids, *, number: int | None = None, out: Examples | None = None) -> Examples:
        """Images by their ids.

        Args:
            ids: of whatever classes, repeats allowed.
            number: of the step in the run: images of a folder are then cut at random and mirrored, as they
                are trained on. None cuts them in the middle, as they are tested on. Sets in memory are never
                changed.
            out: a batch of as many images whose tensors are written again; None makes new ones.

        Raises:
            InputError: an id that is none, or a file that cannot be decoded.
            UsageError: `out` is of another size.
        """
        self._check(ids)
        out = out if out is not None else self._empty(len(ids))
        if len(out.targets) != len(ids):
            raise UsageError(f"out holds {len(out.targets)} images; {len(ids)} are asked for")
        rows = self.rows[ids]
        rows_on_device = torch.from_numpy(rows).to(self.device)
        torch.index_select(self._targets, 0, rows_on_device, out=out.targets)
        self._fill(out.inputs.permute(0, 2, 3, 1), rows, rows_on_device, number=number)
        out.counts[:] = np.bincount(self.set.labels[rows], minlength=len(out.counts))
        return out

    @property
    def is_fixed(self) -> bool:
        """Whether an image is the same each time that it is trained on."""
        return self._pixels is not None

    def batches(self) -> Iterator[Tensor]:
        """All images in their order, as they are tested on."""
        for start in range(0, len(self), IMAGES_AT_ONCE):
            yield self.batch(np.arange(start, min(start + IMAGES_AT_ONCE, len(self)))).inputs

    def targets(self, ids: Ids) -> UInt8[Tensor, " b"] | Int64[Tensor, " b"]:
        """Class of each of some images, on the device."""
        return self._targets.index_select(0, torch.from_numpy(self.rows[ids]).to(self.device))

    def values(self, ids: Ids) -> Float32[np.ndarray, "b features"]:
        """What a network is given of some images, one row each, in the order (y, x, c)."""
        inputs = self.batch(ids).inputs.permute(0, 2, 3, 1).reshape(len(ids), -1)
        return inputs.float().cpu().numpy()

    def _fill(self, inputs: Tensor, rows: Ids, there: Tensor, *, number: int | None) -> None:
        """Write float images (B, Y, X, C)."""
        if self._pixels is None:
            inputs.copy_(torch.from_numpy(self._decode(rows, number=number)))
        elif self._pixels.dtype == inputs.dtype:
            torch.index_select(self._pixels, 0, there, out=inputs)
        else:
            # Bytes are gathered first, 4 times less to move, into a buffer that is kept; then made floats and
            # scaled in one place.
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
