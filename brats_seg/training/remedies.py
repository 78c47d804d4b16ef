"""Remedies against class imbalance by name: settings that a training on scans and one on images are given."""

from functools import cache
from typing import Any, Literal

from brats_seg.core.augmentation import Augment
from brats_seg.core.errors import UsageError
from brats_seg.core.loss import Loss
from brats_seg.core.sections import Hard, Mix, Phases, Sampler
from brats_seg.core.settings import Section, config_names, load_settings

SHELF = "remedies"
"""Folder of `configs/` with a file for each remedy."""
Synthesizer = Literal[
    "SMOTE",
    "BorderlineSMOTE",
    "KMeansSMOTE",
    "OneSidedSelection",
    "EditedNearestNeighbours",
    "GeneralizedEditing",
]
Committee = Literal["easy", "cascade", "rus_boost", "smote_boost", "databoost_im", "meta_cost"]
IMAGE_CODE = ("synthesizer", "committee", "classifier")
"""Parts of a recipe that are for images alone."""


class Recipe(Section):
    """How a remedy trains: sections of a training config, and for images what must be code.

    Attributes:
        sampler, hard, loss, augment, mix, phases: as in a training config; None where the remedy says
            nothing. In a study of images `augment` changes the images of the rare classes alone.
        synthesizer: what makes the training images anew: a class of imbalanced-learn, or generalized editing.
        committee: several networks, their probabilities averaged: on undersampled sets ("easy", "cascade"),
            or boosted with under- or oversampling or with new images; "meta_cost": their probabilities give
            new labels to the images that one last network is trained on.
        classifier: what takes the place of the trained output layer.
    """

    sampler: Sampler = Sampler(kind="random")
    hard: Hard | None = None
    loss: Loss = Loss()
    augment: Augment | None = None
    mix: Mix | None = None
    phases: Phases | None = None
    synthesizer: Synthesizer | None = None
    committee: Committee | None = None
    classifier: Literal["nearest_mean"] | None = None


def remedy_names() -> tuple[str, ...]:
    """The remedies that come with the package."""
    return config_names(SHELF)


@cache
def load_recipe(name: str) -> Recipe:
    """A remedy by its name, or a YAML file of one. Raises `UsageError` where it is neither, or a knob of it
    does not exist.
    """
    return load_settings(Recipe, name, shelf=SHELF)


def knobs_of(name: str) -> dict[str, Any]:
    """What a remedy changes in a training config of scans. Raises `UsageError` for one of images alone."""
    knobs = load_recipe(name).model_dump(mode="json", exclude_unset=True)
    only_images = [key for key in IMAGE_CODE if key in knobs]
    if only_images:
        raise UsageError(f"remedy '{name}': its {only_images[0]} is for images alone; choose another remedy")
    return knobs
