"""Labeled images in memory or in a folder, and the parts of a published set."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Float32, Int64, Shaped, UInt8

from brats_seg.classification.folder import FolderImages
from brats_seg.core.errors import InputError, UsageError

Pixels = UInt8[np.ndarray, "n y x c"] | Float32[np.ndarray, "n y x c"]
"""Images in memory: 0..255, or whitened."""
Patients = Shaped[np.ndarray, " images"]
"""The patient of each image, as text."""


BYTE_SCALE = 1 / 255
"""The factor of a byte of an image."""


@dataclass(frozen=True)
class ImageSet:
    """Labeled images.

    Attributes:
        name: name of the set in error messages.
        images: (n, y, x, c) in memory, or the files of a folder, which are decoded when drawn.
        labels: class of each image, 0 to K - 1.
        class_names: K names.
        scale: factor of the pixel values for the input of a network.
        patients: patient of each image; None if unknown. Images of a patient stay in one part.
    """

    name: str
    images: Pixels | FolderImages
    labels: Int64[np.ndarray, " labels"]
    class_names: tuple[str, ...]
    scale: float
    patients: Patients | None = None

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise InputError(
                f"{self.name}: {len(self.images)} images but {len(self.labels)} labels; every image needs one"
            )
        k = len(self.class_names)
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < k:
            raise InputError(
                f"{self.name}: labels lie in {self.labels.min()}..{self.labels.max()}; {k} classes need "
                f"0..{k - 1}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_size(self) -> tuple[int, int]:
        """(Y, X) in pixels of the input of a network."""
        return self.images.shape[1], self.images.shape[2]

    @property
    def n_channels(self) -> int:
        """Number of channels of the input of a network, 1 or 3."""
        return self.images.shape[3]

    @property
    def counts(self) -> Int64[np.ndarray, " k"]:
        """Number of images of each class."""
        return np.bincount(self.labels, minlength=len(self.class_names)).astype(np.int64)

    def take(self, ids: Int64[np.ndarray, " m"]) -> "ImageSet":
        """A copy of some of the images (for a folder: of their paths)."""
        if isinstance(self.images, FolderImages):
            chosen: Pixels | FolderImages = replace(
                self.images, paths=tuple(self.images.paths[i] for i in ids)
            )
        else:
            chosen = self.images[ids]
        patients = None if self.patients is None else self.patients[ids]
        return replace(self, images=chosen, labels=self.labels[ids], patients=patients)


@dataclass(frozen=True)
class Splits:
    """A published set: its training images, its test images, and its validation images if it has them."""

    train: ImageSet
    test: ImageSet
    validation: ImageSet | None = None

    @property
    def parts(self) -> tuple[ImageSet, ...]:
        """The training part, the test part and, if there is one, the validation part."""
        return (
            (self.train, self.test) if self.validation is None else (self.train, self.test, self.validation)
        )

    @property
    def n_bytes(self) -> int:
        """Memory of the images in bytes; 0 for images of a folder."""
        return sum(0 if isinstance(part.images, FolderImages) else part.images.nbytes for part in self.parts)

    @cached_property
    def digest(self) -> str:
        """Twelve hexadecimal digits of a hash of images, labels and class names. For a folder the hash uses
        the paths and sizes of its files.
        """
        digest = hashlib.sha256()
        for part in self.parts:
            digest.update(f"{part.images.shape} {part.class_names}".encode())
            digest.update(part.labels.tobytes())
            if part.patients is not None:
                digest.update("\n".join(part.patients.tolist()).encode())
            if isinstance(part.images, FolderImages):
                digest.update("\n".join(part.images.describe()).encode())
            else:
                digest.update(np.ascontiguousarray(part.images).data)
        return digest.hexdigest()[:12]


def keep_classes(splits: Splits, classes: Sequence[str]) -> Splits:
    """The images of some classes. The classes get the labels 0, 1, ... in the given order.

    Raises:
        UsageError: a class does not exist or is given twice, or fewer than two classes are given.
    """
    names = splits.train.class_names
    if unknown := [c for c in classes if c not in names]:
        raise UsageError(
            f"images.classes '{unknown[0]}' is unknown; {splits.train.name} has {', '.join(names)}"
        )
    if len(set(classes)) != len(classes) or len(classes) < 2:
        raise UsageError(f"images.classes {', '.join(classes)}: give two classes or more, each once")
    new = np.full(len(names), -1, np.int64)
    new[[names.index(c) for c in classes]] = np.arange(len(classes))

    def kept(images: ImageSet) -> ImageSet:
        some = images.take(np.flatnonzero(new[images.labels] >= 0))
        return replace(some, labels=new[some.labels], class_names=tuple(classes))

    return Splits(*(kept(part) for part in splits.parts))
