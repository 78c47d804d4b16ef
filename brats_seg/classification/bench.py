"""The images of a study -> what is trained on, looked at and scored; and whether they are what the settings
ask for.
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
"""Sections that say which networks there are; the rest is the same for all networks of a store."""

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
"""Knobs that were added after the first studies were stored, and their defaults, by section. A new knob gets
its line here.
"""


class Purpose(IntEnum):
    """What a seed is for."""

    SET = 0
    HELD_OUT = 1
    NETWORK = 2


def recorded(name: str, section: Any) -> Any:
    """A section of the settings as plain values, without the knobs that came later (`LATER`) and are at their
    defaults.

    Two versions of the program so give one study one identity, and its cells the digests that its store has.
    """
    if not isinstance(section, dict):
        return section
    later = LATER.get(name, {})
    return {
        key: recorded(key, value) for key, value in section.items() if key not in later or value != later[key]
    }


def shared_settings(settings: StudySettings) -> dict[str, Any]:
    """What all networks of a store have in common, as plain values. Where the images lie and how many
    networks are trained together is no part of it.
    """
    tree = {name: recorded(name, section) for name, section in settings.model_dump(mode="json").items()}
    shared = {name: value for name, value in tree.items() if name not in (*GRID_SECTIONS, "images", "stack")}
    return {
        "image_set": {name: value for name, value in tree["images"].items() if name != "folder"},
        **shared,
    }


def config_digest(settings: StudySettings) -> str:
    """Twelve hexadecimal digits that stand for what all networks of a study share."""
    return hashlib.sha256(json.dumps(shared_settings(settings), sort_keys=True).encode()).hexdigest()[:12]


def study_seed(settings: StudySettings, purpose: Purpose, *numbers: int) -> int:
    """A seed that follows from the study's, what it is for, and numbers."""
    words = np.random.SeedSequence([settings.training.seed, purpose, *numbers]).generate_state(2)
    return int(words[0]) << 31 ^ int(words[1])


DATA_VARIABLE = "BRATS_SEG_DATA"


@dataclass(frozen=True)
class Bench:
    """The images of a study, open.

    Attributes:
        available: training images that a distribution may take.
        parts: what is scored, by name; "test" first.
        validation: what is looked at while training; None for nothing.
    """

    available: ImageSource
    parts: Mapping[str, ImageSource]
    validation: ImageSource | None


def image_folder(images: Images, folder: Path | None) -> Path:
    """Where the images lie: as given, as the settings have it, or under BRATS_SEG_DATA.

    Raises:
        UsageError: none of the three.
    """
    if folder is not None:
        return folder
    if images.folder is not None:
        return Path(images.folder).expanduser()
    root = os.environ.get(DATA_VARIABLE)
    if root is None:
        raise UsageError(
            f"images.folder: not given; say --images PATH, or let {DATA_VARIABLE} name a folder with "
            f"{images.name}/ in it"
        )
    return Path(root) / images.name


def open_images(images: Images, folder: Path, *, cache: Path | None) -> Splits:
    """Read an image set as the settings have it; see `load_images`."""
    return load_images(
        images.name, folder, classes=images.classes, preprocessing=images.preprocessing, cache=cache
    )


def open_bench(settings: StudySettings, splits: Splits, *, runtime: Runtime, decoders: int = 1) -> Bench:
    """Put the images of a study on the device and part them.

    Args:
        settings: of the study, which `check_study` has let through.
        splits: its images.
        runtime: where batches are wanted.
        decoders: threads that decode the images of a folder.
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
    """The training images that are held out, those that validate, and those that a distribution may take.

    Where patients are known, the images of a patient are in one of the three; the others are left out.
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
    """Names of the image sets that every network is scored on: the test set, what was held out, and of halves
    both.
    """
    knobs = settings.validation
    return (
        "test",
        *(["held_out"] if knobs.held_out else []),
        *(["half", "rest"] if knobs.images == "half" else []),
    )


def check_study(settings: StudySettings, splits: Splits) -> None:
    """See that the images are what the settings ask for: before days of training, not in the middle of them.

    Raises:
        InputError: a class without a training image, or all test images of one class.
        UsageError: more images to keep out of training than a class has, no validation images of its own,
            classes that are not there, or a network that cannot take such images.
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
            f"{splits.test.name}: its images are all of one class; a test needs two classes or more"
        )
    refuse(
        (
            knobs.held_out + knobs.per_class >= train.counts.min(),
            f"validation.held_out {knobs.held_out} and per_class {knobs.per_class}: fewer together than the "
            f"{train.counts.min()} training "
            "images of the rarest class",
        ),
        (
            knobs.images == "own" and splits.validation is None,
            f"validation.images 'own': {train.name} comes without validation images; take train, half or "
            "held_out",
        ),
        (
            knobs.images == "half" and splits.test.patients is not None,
            f"validation.images 'half': would part the images of a patient of {splits.test.name}; take "
            "another part",
        ),
        (
            knobs.of is not None and knobs.of not in train.class_names,
            f"validation.of '{knobs.of}': no such class; the classes are {', '.join(train.class_names)}",
        ),
    )
    if settings.decisions.costs is not None:
        weigh_costs(np.full((1, n_classes), 1 / n_classes), np.array(settings.decisions.costs, np.float64))
    build_network(settings, train, seed=0, runtime=Runtime(torch.device("cpu")))


def _every_second(labels: Int64[np.ndarray, " images"], start: int) -> Ids:
    return np.sort(np.concatenate([np.flatnonzero(labels == k)[start::2] for k in np.unique(labels)]))
