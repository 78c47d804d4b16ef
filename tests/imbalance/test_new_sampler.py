"""A new sampler touches four places at most: its class, a dict line, its name in the config, and a test."""

import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from brats_seg.core.config import Config
from brats_seg.core.runtime import Runtime
from brats_seg.core.sections import Sampler, Training
from brats_seg.imbalance.index import ClassIndex
from brats_seg.imbalance.samplers import SAMPLERS, ShareSampler
from brats_seg.training.phases import Method

ROOT = Path(__file__).parents[2]


class FirstOfItsClass(ShareSampler):
    """Every class as often as the others, and of each class its first example alone."""

    def _numbers(self, *args: Any, **named: Any) -> tuple[np.ndarray, np.ndarray]:
        classes, numbers = super()._numbers(*args, **named)
        return classes, np.zeros_like(numbers)


@pytest.mark.parametrize("targets", ["voxels", "images"])
def test_a_class_and_a_dict_line_are_drawn_from_on_scans_and_on_images(
    targets: Literal["voxels", "images"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SAMPLERS, "first_of_its_class", FirstOfItsClass)
    # The third place is the name in the config, which refuses other names; here it is not checked.
    section = Sampler.model_construct(kind="first_of_its_class")
    budget = Training(epochs=2, steps=3, batch_size=4)
    config = Config().model_copy(update={"sampler": section, "training": budget})
    index = ClassIndex.from_labels(np.array([0, 0, 0, 1, 1]), ("common", "rare"))
    method = Method(config=config, index=index, runtime=Runtime(torch.device("cpu")), targets=targets)
    draw = method.make_sampler(method.first()).next()
    assert sorted(draw.ids.tolist()) == [0, 0, 3, 3]
    assert sorted(draw.classes.tolist()) == [0, 0, 1, 1]


def test_the_contributing_page_names_four_places_at_most() -> None:
    page = (ROOT / "docs/contributing.md").read_text()
    (places,) = re.findall(r"^\| a sampler \| (.*) \|$", page, re.MULTILINE)
    assert 1 < len(re.split(r", | and ", places)) <= 4
