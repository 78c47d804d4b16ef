"""The images of a study -> the parts for training, validation and scores; and the check that the images fit
the settings.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from brats_seg.classification.decisions import weigh_costs
from brats_seg.classification.fitting import build_network
from brats_seg.classification.image_set import ImageSet, Splits
from brats_seg.classification.images import load_images
from brats_seg.classification.settings import Images, StudySettings
from brats_seg.classification.source import ImageSource
from brats_seg.core.errors import InputError, UsageError, refuse
from brats_seg.core.runtime import Runtime
from brats_seg.core.shapes import Ids
from brats_seg.imbalance.distributions import choose_examples

GRID_SECTIONS = ("distributions", "repeats", "methods", "search", "published")
"""Sections that determine which networks exist. The other sections are the same for all networks of a
store.
"""

LATER: dict[str, dict[str, Any]] = {
    "augment": {
        "contrast": [1.0, 1.0],
        "gamma_inverted": 0.0,
        "bias_field": [0.0, 0.0],
        "low_resolution": [1.0, 1.0],
    },
    "optimizer": {"bias_lr_factor": 1.0},
    "network": {"output_weights": "scaled"},
    "record": {"auc_resamples": 200},
}
"""Knobs that were added after the first studies were stored, with their defaults, by section. Add a line here
for each new knob.
"""


class Purpose(IntEnum):
    """The purpose of a seed."""

    SET = 0
    HELD_OUT = 1
    NETWORK = 2


def recorded(name: str, section: Any) -> Any:
    """A section of the settings as plain values, without later knobs (`LATER`) that have their defaults.

    Therefore a study keeps its identity and the digests of its cells in a newer version of the program.
    """
    if not isinstance(section, dict):
        return section
    later = LATER.get(name, {})
    return {
        key: recorded(key, value) for key, value in section.items() if key not in later or value != later[key]
    }


def shared_settings(settings: StudySettings) -> dict[str, Any]:
    """The values that all networks of a store share, as plain values. The folder of the images and the number
    of networks that are trained together are not included.
    """
    tree = {name: recorded(name, section) for name, section in settings.model_dump(mode="json").items()}
    shared = {name: value for name, value in tree.items() if name not in (*GRID_SECTIONS, "images", "stack")}
    return {
        "image_set": {name: value for name, value in tree["images"].items() if name != "folder"},
        **shared,
    }


def config_digest(settings: StudySettings) -> str:
    """Twelve hexadecimal digits of a hash of the values that all networks of a study share."""
    return hashlib.sha256(json.dumps(shared_settings(settings), sort_keys=True).encode()).hexdigest()[:12]


def study_seed(settings: StudySettings, purpose: Purpose, *numbers: int) -> int:
    """A seed computed from the seed of the study, its purpose and numbers."""
    words = np.random.SeedSequence([settings.training.seed, purpose, *numbers]).generate_state(2)
    return int(words[0]) << 31 ^ int(words[1])


DATA_VARIABLE = "BRATS_SEG_DATA"


@dataclass(frozen=True)
class Bench:
    """The opened images of a study.

    Attributes:
        available: training images from which a distribution draws.
        parts: the scored images by name; "test" is first.
        validation: the validation images; None for no validation.
    """

    available: ImageSource
    parts: Mapping[str, ImageSource]
    validation: ImageSource | None


def image_folder(images: Images, folder: Path | None) -> Path:
    """The folder of the images: the given folder, the folder in the settings, or a folder under
    BRATS_SEG_DATA.

    Raises:
        UsageError: none of the three folders is given.
    """
    if folder is not None:
        return folder
    if images.folder is not None:
        return Path(images.folder).expanduser()
    root = os.environ.get(DATA_VARIABLE)
    if root is None:
        raise UsageError(
            f"images.folder: not given; give --images PATH, or set {DATA_VARIABLE} to a folder with "
            f"{images.name}/ in it"
        )
    return Path(root) / images.name


def open_images(images: Images, folder: Path, *, cache: Path | None) -> Splits:
    """Read the image set of the settings; see `load_images`."""
    return load_images(
        images.name, folder, classes=images.classes, preprocessing=images.preprocessing, cache=cache
    )


def open_bench(settings: StudySettings, splits: Splits, *, runtime: Runtime, decoders: int = 1) -> Bench:
    """Move the images of a study to the device and split them into parts.

    Args:
        settings: settings of the study, already checked by `check_study`.
        splits: images of the study.
        runtime: device of the batches.
        decoders: number of threads that decode the images of a folder.
    """
    make = partial(ImageSource, device=runtime.device, threads=decoders)
    knobs = settings.validation
    train, test = make(splits.train), make(splits.test)
    held_out, validating, left = part_training(settings, splits.train)
    first, second = (_every_second(test.labels, start) for start in (0, 1))
    pools = {
        "test": test,
        "held_out": train.restrict(held_out),
        "half": test.restrict(first),
        "rest": test.restrict(second),
    }
    pools["train"] = train.restrict(validating)
    if knobs.images == "own":
        assert splits.validation is not None
        pools["own"] = make(splits.validation)
    return Bench(
        train.restrict(left), {name: pools[name] for name in scored_parts(settings)}, pools.get(knobs.images)
    )


def part_training(
    settings: StudySettings, train: ImageSet
) -> tuple[Int64[np.ndarray, " h"], Int64[np.ndarray, " v"], Int64[np.ndarray, " l"]]:
    """The ids of three groups of training images: held-out images, validation images, and images from which a
    distribution draws.

    If patients are known, all images of a patient are in the same group or are left out.
    """
    knobs, n_classes = settings.validation, len(train.class_names)
    seed = study_seed(settings, Purpose.HELD_OUT)
    held_out, kept = (
        choose_examples(train.labels, np.full(n_classes, n), seed=seed)
        for n in (knobs.held_out, knobs.held_out + knobs.per_class)
    )
    validating, left = np.setdiff1d(kept, held_out), np.setdiff1d(np.arange(len(train)), kept)
    if train.patients is not None:
        of = train.patients
        validating = validating[~np.isin(of[validating], of[held_out])]
        left = left[~np.isin(of[left], of[kept])]
    return held_out, validating, left


def scored_parts(settings: StudySettings) -> tuple[str, ...]:
    """Names of the image sets on which every network is scored: the test set, the held-out images, and both
    halves of a divided test set.
    """
    knobs = settings.validation
    return (
        "test",
        *(["held_out"] if knobs.held_out else []),
        *(["half", "rest"] if knobs.images == "half" else []),
    )


def check_study(settings: StudySettings, splits: Splits) -> None:
    """Check before the training that the images fit the settings.

    Raises:
        InputError: a class has no training image, or all test images have the same class.
        UsageError: more images must be kept out of the training than a class has, the set has no validation
            images, a class does not exist, or the network does not accept such images.
    """
    knobs, train = settings.validation, splits.train
    n_classes = len(train.class_names)
    absent = [name for name, n in zip(train.class_names, train.counts, strict=True) if n == 0]
    if absent:
        raise InputError(
            f"{train.name}: no image of class '{absent[0]}'; classes are numbered from 0 without gaps, each "
            "with an image"
        )
    if (splits.test.counts > 0).sum() < min(2, n_classes):
        raise InputError(
            f"{splits.test.name}: all its images have the same class; a test needs two classes or more"
        )
    refuse(
        (
            knobs.held_out + knobs.per_class >= train.counts.min(),
            f"validation.held_out {knobs.held_out} and per_class {knobs.per_class}: their sum must be below "
            f"the {train.counts.min()} training "
            "images of the rarest class",
        ),
        (
            knobs.images == "own" and splits.validation is None,
            f"validation.images 'own': {train.name} has no validation images; use train, half or held_out",
        ),
        (
            knobs.images == "half" and splits.test.patients is not None,
            f"validation.images 'half': would separate the images of a patient of {splits.test.name}; use "
            "another part",
        ),
        (
            knobs.of is not None and knobs.of not in train.class_names,
            f"validation.of '{knobs.of}': is not a class; the classes are {', '.join(train.class_names)}",
        ),
    )
    if settings.decisions.costs is not None:
        weigh_costs(np.full((1, n_classes), 1 / n_classes), np.array(settings.decisions.costs, np.float64))
    build_network(settings, train, seed=0, runtime=Runtime(torch.device("cpu")))


def _every_second(labels: Int64[np.ndarray, " images"], start: int) -> Ids:
    return np.sort(np.concatenate([np.flatnonzero(labels == k)[start::2] for k in np.unique(labels)]))
