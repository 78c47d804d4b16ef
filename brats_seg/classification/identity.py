"""The settings of a study -> what its networks share, and a seed for each purpose."""

import hashlib
import json
from enum import IntEnum
from typing import Any

import numpy as np

from brats_seg.classification.settings import StudySettings

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
    """What all networks of a store have in common, as plain values; where the images lie is no part of it."""
    tree = {name: recorded(name, section) for name, section in settings.model_dump(mode="json").items()}
    shared = {name: value for name, value in tree.items() if name not in (*GRID_SECTIONS, "images")}
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
