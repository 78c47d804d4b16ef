"""The settings of a study -> what its networks share, and a seed for each purpose."""

import hashlib
import json
from enum import IntEnum
from typing import Any

import numpy as np

from brats_seg.classification.settings import StudySettings

GRID_SECTIONS = ("distributions", "repeats", "methods", "search", "published")
"""Sections that say which networks there are; the rest is the same for all networks of a store."""


class Purpose(IntEnum):
    """What a seed is for."""

    SET = 0
    HELD_OUT = 1
    NETWORK = 2


def shared_settings(settings: StudySettings) -> dict[str, Any]:
    """What all networks of a store have in common, as plain values; where the images lie is no part of it."""
    tree = settings.model_dump(mode="json")
    shared = {name: value for name, value in tree.items() if name not in (*GRID_SECTIONS, "images")}
    return {"image_set": {name: value for name, value in tree["images"].items() if name != "folder"}, **shared}


def config_digest(settings: StudySettings) -> str:
    """Twelve hexadecimal digits that stand for what all networks of a study share."""
    return hashlib.sha256(json.dumps(shared_settings(settings), sort_keys=True).encode()).hexdigest()[:12]


def study_seed(settings: StudySettings, purpose: Purpose, *numbers: int) -> int:
    """A seed that follows from the study's, what it is for, and numbers."""
    words = np.random.SeedSequence([settings.training.seed, purpose, *numbers]).generate_state(2)
    return int(words[0]) << 31 ^ int(words[1])
