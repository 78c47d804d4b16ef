"""Episodes: different classes, different examples, in their order."""

import numpy as np
import pytest

from brats_seg.core.errors import UsageError
from brats_seg.imbalance.episodes import EpisodeSampler
from brats_seg.imbalance.index import ClassIndex

INDEX = ClassIndex.from_labels(np.repeat(np.arange(6), [9, 8, 7, 9, 9, 9]), tuple("abcdef"))


def sampler(**changes):
    knobs = {"ways": 3, "examples": 4, "episodes": 2, "steps": 50, "seed": 7}
    return EpisodeSampler(INDEX, **knobs | changes)


def test_an_episode_is_different_classes_each_with_different_examples():
    draws = sampler()
    seen = set()
    for _ in range(50):
        draw = draws.next()
        classes = draw.classes.reshape(2, 3, 4)
        assert (classes == classes[:, :, :1]).all()
        assert all(len(set(episode)) == 3 for episode in classes[:, :, 0])
        ids = draw.ids.reshape(2, 12)
        assert all(len(set(episode)) == 12 for episode in ids)
        seen |= set(draw.ids.tolist())
    assert seen == set(range(51))


def test_one_seed_one_stream_of_episodes():
    first, again, other = sampler(), sampler(), sampler(seed=8)
    assert first.next().ids.tolist() == again.next().ids.tolist() != other.next().ids.tolist()


def test_more_shots_than_a_class_has_examples_is_one_line():
    said = "class 'c' has 7 examples, but an episode needs 8; use fewer shots or queries"
    with pytest.raises(UsageError, match=said):
        sampler(examples=8)
    with pytest.raises(UsageError, match=r"7 ways, but there are 6 classes \(a, b, c, d, e\)"):
        sampler(ways=7)
