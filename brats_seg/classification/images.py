"""Read an image set from any supported format: IDX, CIFAR binary and python, image folder, lists, Omniglot,
npz.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from brats_seg.classification.cifar import (
    CIFAR10,
    CIFAR10_CLASSES,
    CIFAR100,
    Rows,
    read_binary_batch,
    read_fine_names,
    read_python_batch,
)
from brats_seg.classification.folder import (
    OF_PATIENTS,
    FolderImages,
    list_folder,
    list_image_file,
    read_characters,
    read_patients,
)
from brats_seg.classification.hold_out import hold_out
from brats_seg.classification.idx import read_idx
from brats_seg.classification.image_set import BYTE_SCALE, ImageSet, Splits, keep_classes
from brats_seg.classification.npz import read_npz_set
from brats_seg.classification.whitening import whitened
from brats_seg.core.errors import InputError, UsageError, refuse
from brats_seg.core.files import read_text


def load_images(
    name: str,
    folder: Path,
    *,
    classes: Sequence[str] | None = None,
    preprocessing: Literal["none", "gcn_zca"] = "none",
    cache: Path | None = None,
) -> Splits:
    """Read an image set. Nothing is downloaded.

    Args:
        name: a key of `SETS`.
        folder: folder of the set; for 'npz' the file.
        classes: classes to keep, in the order of their new labels; None keeps all.
        preprocessing: "gcn_zca" whitens the images with all training images of the set; see `whiten_splits`.
        cache: folder for the whitened images; None for no cache.

    Raises:
        UsageError: the name or a class is unknown, or the images cannot be whitened.
        InputError: a file is missing or damaged. The message says which file belongs where.
    """
    if name not in SETS:
        raise UsageError(f"images.name '{name}' is unknown; the names are {', '.join(SETS)}")
    splits = SETS[name](folder)
    _check_parts(splits)
    if preprocessing == "gcn_zca":
        splits = whiten_splits(splits, cache=cache)
    return splits if classes is None else keep_classes(splits, classes)


def check_whitening(splits: Splits, preprocessing: Literal["none", "gcn_zca"]) -> None:
    """Raise `UsageError` if images must be whitened but cannot be: they are not bytes in memory, or have too
    many values for a covariance.
    """
    if preprocessing == "none":
        return
    for images in splits.parts:
        if isinstance(images.images, FolderImages) or images.images.dtype != np.uint8:
            raise UsageError(f"{images.name}: whitening needs a set of bytes in memory (mnist, cifar10, npz)")
    if (n_values := int(np.prod(splits.train.images.shape[1:]))) > _MOST_FEATURES:
        raise UsageError(
            f"{splits.train.name}: {n_values} values for each image; whitening accepts {_MOST_FEATURES} at "
            "most"
        )


def whiten_splits(splits: Splits, *, cache: Path | None) -> Splits:
    """Apply global contrast normalization and ZCA whitening, fitted on the training images (Goodfellow et al.
    2013). The result is kept in the folder `cache`.

    Raises:
        UsageError: the images are not bytes in memory, or have too many values for a covariance.
    """
    check_whitening(splits, "gcn_zca")
    arrays = [np.asarray(images.images) for images in splits.parts]
    done = whitened(arrays[0], tuple(arrays[1:]), cache=cache)
    new = [
        replace(images, images=pixels, scale=1.0) for images, pixels in zip(splits.parts, done, strict=True)
    ]
    return Splits(*new)


def _check_parts(splits: Splits) -> None:
    """Raise `InputError` if the parts do not fit each other, there is only one class, or a patient is in two
    parts.
    """
    if len(splits.train.class_names) < 2:
        raise InputError(f"{splits.train.name}: 1 class; a study needs two classes or more")
    for part in splits.parts[1:]:
        if part.images.shape[1:] != splits.train.images.shape[1:]:
            sizes = (" x ".join(map(str, images.images.shape[1:])) for images in (part, splits.train))
            raise InputError(f"{part.name}: images of {next(sizes)}; the training images are {next(sizes)}")
        if part.patients is not None and splits.train.patients is not None:
            both = np.intersect1d(part.patients, splits.train.patients)
            if len(both):
                raise InputError(
                    f"{part.name}: patient '{both[0]}' also has training images; a patient must be in one "
                    "part"
                )


def _mnist(folder: Path) -> Splits:
    sets = []
    for part in ("train", "t10k"):
        files = [
            _packed_or_not(folder, f"{part}-{what}") for what in ("images-idx3-ubyte", "labels-idx1-ubyte")
        ]
        if files[0] is None or files[1] is None:
            raise InputError(
                f"{folder}: MNIST was not found; put train-images-idx3-ubyte, train-labels-idx1-ubyte, "
                "t10k-images-idx3-ubyte and "
                "t10k-labels-idx1-ubyte (with .gz or without) there"
            )
        images, labels = (
            read_idx(files[0], n_axes=3)[..., None],
            read_idx(files[1], n_axes=1).astype(np.int64),
        )
        if len(images) != len(labels):
            raise InputError(
                f"{files[0]} holds {len(images)} images but {files[1].name} {len(labels)} labels; every "
                "image needs one"
            )
        sets.append(ImageSet(str(files[0]), images, labels, tuple("0123456789"), MNIST_SCALE))
    return Splits(*sets)


def _packed_or_not(folder: Path, name: str) -> Path | None:
    """The file, also under the name of some copies, which have a dot instead of the second to last dash."""
    for plain in (name, name.replace("-idx", ".idx")):
        for path in (folder / plain, folder / f"{plain}.gz"):
            if path.is_file():
                return path
    return None


def _cifar10(folder: Path) -> Splits:
    for home in (folder, folder / "cifar-10-batches-bin", folder / "cifar-10-batches-py"):
        for suffix, read in ((".bin", read_binary_batch), ("", read_python_batch)):
            train = sorted(
                p
                for p in home.glob(f"data_batch_*{suffix}")
                if re.fullmatch(rf"data_batch_\d+{re.escape(suffix)}", p.name)
            )
            test = home / f"test_batch{suffix}"
            if train and test.is_file():
                parts = [_joined(partial(read, kind=CIFAR10), paths) for paths in (train, [test])]
                names = _cifar_names(home / "batches.meta.txt")
                sets = (
                    ImageSet(f"{home} {p}", *rows, names, BYTE_SCALE)
                    for p, rows in zip(("train", "test"), parts, strict=True)
                )
                return Splits(*sets)
    raise InputError(
        f"{folder}: CIFAR-10 was not found; put the folder cifar-10-batches-bin (data_batch_1.bin to "
        "data_batch_5.bin, test_batch.bin) or "
        "cifar-10-batches-py (the same without .bin) there"
    )


def _cifar100(folder: Path) -> Splits:
    for home in (folder, folder / "cifar-100-binary", folder / "cifar-100-python"):
        for suffix, read in ((".bin", read_binary_batch), ("", read_python_batch)):
            paths = [home / f"{part}{suffix}" for part in ("train", "test")]
            if all(path.is_file() for path in paths):
                given = [home / name for name in ("fine_label_names.txt", "meta") if (home / name).is_file()]
                names = read_fine_names(given[0]) if given else tuple(map(str, range(CIFAR100.n_classes)))
                sets = (ImageSet(str(path), *read(path, kind=CIFAR100), names, BYTE_SCALE) for path in paths)
                return Splits(*sets)
    raise InputError(
        f"{folder}: CIFAR-100 was not found; put the folder cifar-100-binary (train.bin, test.bin) or "
        "cifar-100-python (train, test, meta) there"
    )


def _joined(read: Callable[[Path], Rows], paths: Sequence[Path]) -> Rows:
    images, labels = zip(*(read(path) for path in paths), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _cifar_names(path: Path) -> tuple[str, ...]:
    names = tuple(read_text(path).split()) if path.is_file() else CIFAR10_CLASSES
    if len(names) != len(CIFAR10_CLASSES):
        raise InputError(f"{path}: {len(names)} class names; CIFAR-10 has {len(CIFAR10_CLASSES)}")
    return names


def _folder(folder: Path) -> Splits:
    refuse(
        (
            folder.is_file(),
            f"{folder}: is a file; for an .npz give --set images.name=npz, for images give the folder they "
            "lie in",
        ),
        (
            not folder.is_dir(),
            f"{folder}: no such folder; put train/<class>/*.jpg and test/<class>/*.jpg (or val/, or class "
            "folders alone) there",
        ),
        error=InputError,
    )
    if not (folder / "train").is_dir():
        alone = ImageSet(str(folder), *list_folder(folder), BYTE_SCALE)
        return hold_out(_with_patients(alone, folder, prefix=""))
    train = ImageSet(f"{folder}/train", *list_folder(folder / "train"), BYTE_SCALE)
    others = {
        part: _with_patients(_like(train, folder / part), folder, prefix=f"{part}/")
        for part in ("test", "val")
        if (folder / part).is_dir()
    }
    train = _with_patients(train, folder, prefix="train/")
    if not others:
        return hold_out(train)
    # The test images of ImageNet have no labels, so `val` is its test part.
    return Splits(
        train, others.get("test", others.get("val", train)), others["val"] if len(others) == 2 else None
    )


def _with_patients(images: ImageSet, folder: Path, *, prefix: str) -> ImageSet:
    """The images of a folder, with the patient of each image if the folder has a table of patients."""
    assert isinstance(images.images, FolderImages)
    if not (folder / OF_PATIENTS).is_file():
        return images
    return replace(images, patients=read_patients(folder, images.images.paths, prefix=prefix))


def _lists(folder: Path) -> Splits:
    lists = {part: sorted(folder.glob(f"*_LT_{part}.txt")) for part in ("train", "test", "val")}
    if not lists["train"] or not lists["test"]:
        raise InputError(
            f"{folder}: no lists; put ImageNet_LT_train.txt and ImageNet_LT_test.txt (lines of a path and a "
            "number) beside the folders of the images"
        )
    read = {part: list_image_file(paths[0], folder) for part, paths in lists.items() if paths}
    images, labels = read["train"]
    # The folder of a training image is the name of its class. A class without a training image keeps its
    # number as name.
    names = [str(number) for number in range(max(int(of.max()) for _, of in read.values()) + 1)]
    for path, label in zip(images.paths, labels.tolist(), strict=True):
        names[label] = Path(path).parent.name
    sets = [ImageSet(str(lists[part][0]), *of, tuple(names), BYTE_SCALE) for part, of in read.items()]
    return Splits(*sets)


def _omniglot(folder: Path) -> Splits:
    """Every character of every alphabet is a class. A fifth of the images of each class is held out."""
    parts = [part for part in ("images_background", "images_evaluation") if (folder / part).is_dir()]
    if not parts:
        raise InputError(
            f"{folder}: has no images_background or images_evaluation; put them there, a folder for each "
            "alphabet and in it one for each character"
        )
    images, labels, names = read_characters(folder, parts)
    return hold_out(ImageSet(str(folder), images, labels, names, BYTE_SCALE))


def _like(train: ImageSet, folder: Path) -> ImageSet:
    images, labels, names = list_folder(folder)
    if names != train.class_names:
        odd = sorted(set(names) ^ set(train.class_names))[0]
        raise InputError(
            f"{folder}: class '{odd}' is only in one of {folder.name} and train; both need the same class "
            "folders"
        )
    return ImageSet(str(folder), images, labels, names, train.scale)


MNIST_SCALE = 1 / 256
"""Caffe's LeNet example scales bytes by 0.00390625."""
_MOST_FEATURES = 4096

SETS: dict[str, Callable[[Path], Splits]] = {
    "mnist": _mnist,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "imagenet_lt": _lists,
    "omniglot": _omniglot,
    "folder": _folder,
    "npz": read_npz_set,
}
