"""Remedies against class imbalance by name: settings for a training on scans or on images."""

from functools import cache
from typing import Any, Literal

from brats_seg.core.augmentation import Augment
from brats_seg.core.errors import UsageError
from brats_seg.core.loss import Loss
from brats_seg.core.sections import Hard, Mix, Phases, Sampler
from brats_seg.core.settings import Section, config_names, load_settings

SHELF = "remedies"
"""Folder in `configs/` with one file for each remedy."""
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
"""Parts of a recipe that are only for images."""


class Recipe(Section):
    """The recipe of a remedy: sections of a training config, and for images the names of methods that are
    code.

    Attributes:
        sampler, hard, loss, augment, mix, phases: as in a training config; None if the remedy does not change
            the section. In a study of images `augment` changes only the images of the rare classes.
        synthesizer: method that resamples the training images: a class of imbalanced-learn, or generalized
            editing.
        committee: several networks with averaged probabilities, trained on undersampled sets ("easy",
            "cascade") or by boosting with undersampling, oversampling or new images. With "meta_cost" their
            probabilities give new labels to the images, and one last network is trained on these.
        classifier: replacement of the trained output layer.
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
    """The names of the remedies in the package."""
    return config_names(SHELF)


@cache
def load_recipe(name: str) -> Recipe:
    """A remedy by its name, or from a YAML file. Raises `UsageError` if neither exists, or if a knob does not
    exist.
    """
    return load_settings(Recipe, name, shelf=SHELF)


def knobs_of(name: str) -> dict[str, Any]:
    """The knobs that a remedy changes in a training config for scans. Raises `UsageError` for a remedy that
    is only for images.
    """
    knobs = load_recipe(name).model_dump(mode="json", exclude_unset=True)
    only_images = [key for key in IMAGE_CODE if key in knobs]
    if only_images:
        raise UsageError(f"remedy '{name}': its {only_images[0]} is only for images; choose another remedy")
    return knobs
