"""An .npz file of labeled images -> image set."""

from pathlib import Path

import numpy as np

from brats_seg.classification.hold_out import hold_out
from brats_seg.classification.image_set import BYTE_SCALE, ImageSet, Splits
from brats_seg.core.arrays import read_npz
from brats_seg.core.errors import InputError

_MOST_CLASSES = 1 << 16


def read_npz_set(path: Path) -> Splits:
    """Read `train_images`, `train_labels`, `test_images` and `test_labels`, and `val_images` and `val_labels`
    if the file has them. Or read `images` and `labels`, of which a fifth is held out.

    Raises:
        InputError: the file is missing or damaged, or an array has another type or shape.
    """
    try:
        arrays = read_npz(path)
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file; give an .npz with train_images, train_labels, test_images, test_labels"
        ) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read as .npz: {error.strerror or error}") from None
    if "images" in arrays and "labels" in arrays:
        return hold_out(_npz_part(path, arrays, "", names=None))
    for key in ("train_images", "train_labels", "test_images", "test_labels"):
        if key not in arrays:
            arrays_found = ", ".join(arrays) or "nothing"
            raise InputError(
                f"{path}: no '{key}' in it (found {arrays_found}); give train_ and test_images and _labels, "
                "or images and labels"
            )
    train = _npz_part(path, arrays, "train_", names=None)
    test = _npz_part(path, arrays, "test_", names=train.class_names)
    has_validation = "val_images" in arrays and "val_labels" in arrays
    return Splits(
        train, test, _npz_part(path, arrays, "val_", names=train.class_names) if has_validation else None
    )


def _npz_part(
    path: Path, arrays: dict[str, np.ndarray], prefix: str, *, names: tuple[str, ...] | None
) -> ImageSet:
    images, labels = arrays[f"{prefix}images"], arrays[f"{prefix}labels"]
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not images.size:
        shown = " x ".join(map(str, images.shape))
        raise InputError(
            f"{path}: {prefix}images is {images.dtype} of {shown}; uint8 of n x y x x, or n x y x x x "
            "channels"
        )
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        shown = " x ".join(map(str, labels.shape))
        raise InputError(f"{path}: {prefix}labels is {labels.dtype} of {shown}; one whole number an image")
    if int(labels.max(initial=0)) >= _MOST_CLASSES:
        raise InputError(
            f"{path}: {prefix}labels go up to {labels.max()}; labels are numbers of classes, "
            f"{_MOST_CLASSES - 1} at most"
        )
    patients = arrays.get(f"{prefix}patients")
    if patients is not None and (patients.shape != labels.shape or patients.dtype.kind not in "iuU"):
        shown = " x ".join(map(str, patients.shape))
        raise InputError(
            f"{path}: {prefix}patients is {patients.dtype} of {shown}; one number or text an image"
        )
    given = arrays.get("class_names")
    names = names or (
        tuple(map(str, range(int(labels.max(initial=0)) + 1))) if given is None else _texts(path, given)
    )
    return ImageSet(
        f"{path} {prefix}images",
        images if images.ndim == 4 else images[..., None],
        labels.astype(np.int64),
        names,
        BYTE_SCALE,
        None if patients is None else patients.astype(np.str_),
    )


def _texts(path: Path, names: np.ndarray) -> tuple[str, ...]:
    if len(names.ravel()) > _MOST_CLASSES or names.dtype.kind not in "US":
        raise InputError(f"{path}: class_names is {names.dtype} of {names.size}; a text for each class")
    try:
        return tuple(map(str, names.ravel()))
    except ValueError:  # bytes that are not characters
        raise InputError(f"{path}: class_names is not text") from None
