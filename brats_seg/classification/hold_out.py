"""Divide images into training and test parts. The images of a patient stay in one part."""

import warnings
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Int64
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from brats_seg.classification.image_set import ImageSet, Patients, Splits
from brats_seg.core.errors import InputError

TEST_SHARE = 0.2
"""The share of each class that is held out if a set has no test images."""


def hold_out(images: ImageSet) -> Splits:
    """Hold out a fifth of each class for the test, always the same images. If patients are known, the images
    of a patient stay together.
    """
    patients = images.patients
    test = _images_held_out(images) if patients is None else _patients_held_out(images, patients)
    train, held_out = images.take(np.flatnonzero(~test)), images.take(np.flatnonzero(test))
    return Splits(replace(train, name=f"{images.name} train"), replace(held_out, name=f"{images.name} test"))


def _images_held_out(images: ImageSet) -> Bool[np.ndarray, " n"]:
    """Which images are test images: a fifth of each class."""
    test = np.zeros(len(images), dtype=bool)
    for c in range(len(images.class_names)):
        of_class = np.flatnonzero(images.labels == c)
        if len(of_class) == 1:
            raise InputError(
                f"{images.name}: class '{images.class_names[c]}' has 1 image; it needs one for training and "
                "one for the test"
            )
        drawn = np.random.Generator(np.random.Philox(key=np.array([0, c], np.uint64))).permutation(of_class)
        test[drawn[: max(1, round(TEST_SHARE * len(of_class)))]] = bool(len(of_class))
    return test


def _patients_held_out(images: ImageSet, patients: Patients) -> Bool[np.ndarray, " n"]:
    """Which images belong to the test patients: about a fifth of the images of each class."""
    n_folds = round(1 / TEST_SHARE)
    if (n_patients := len(np.unique(patients))) < n_folds:
        raise InputError(f"{images.name}: {n_patients} patients; a fifth is held out, so {n_folds} at least")
    folds = StratifiedGroupKFold(n_folds, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class has few images; this is checked below
        _, chosen = next(folds.split(images.labels, images.labels, patients))
    test = np.isin(np.arange(len(images)), chosen)
    for c, name in enumerate(images.class_names):
        if len(set(test[images.labels == c])) == 1:
            raise InputError(
                f"{images.name}: class '{name}' would be only in training or only in test, because patients "
                "are kept together; give train and test yourself"
            )
    return test


def inner_folds(train: ImageSet, *, most: int) -> Int64[np.ndarray, " n"]:
    """An inner fold for each training image. Each class is distributed evenly over the folds, and each
    patient is in one fold.

    Args:
        train: training images.
        most: number of folds; smaller if a class has fewer images or patients.

    Raises:
        InputError: a class has one image or one patient, or would be missing in the training images of a
            fold.
    """
    units, labels = train.patients, train.labels
    whole = "image" if units is None else "patient"
    of_class = [
        int(n) if units is None else len(np.unique(units[labels == k])) for k, n in enumerate(train.counts)
    ]
    if min(of_class) < 2:
        name = train.class_names[of_class.index(min(of_class))]
        raise InputError(
            f"{train.name}: class '{name}' has {min(of_class)} training {whole}(s); an inner split needs 2"
        )
    folds, n_folds = np.empty(len(train), np.int64), min(most, *of_class)
    kind = StratifiedKFold if units is None else StratifiedGroupKFold
    for fold, (_, members) in enumerate(
        kind(n_folds, shuffle=True, random_state=0).split(folds, labels, units)
    ):
        folds[members] = fold
    for k, name in enumerate(train.class_names):
        if len(set(folds[labels == k])) == 1:
            raise InputError(
                f"{train.name}: class '{name}' would be in only one inner split, because patients are kept "
                "together; add patients with this class"
            )
    return folds
