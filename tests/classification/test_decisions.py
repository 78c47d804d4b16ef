"""Decisions: what a prior, a threshold and a cost change, and what they do not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brats_seg.classification.decisions import SCORES, divide_by_prior, tune_factors, weigh_costs
from brats_seg.classification.scores import score_outputs
from brats_seg.core.errors import UsageError


def some_probabilities(seed: int, n: int = 300, k: int = 5) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(k, size=n)
    logits = generator.normal(size=(n, k)) + 2.0 * np.eye(k)[labels]
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True), labels


@given(st.integers(0, 1000), st.lists(st.integers(1, 5000), min_size=5, max_size=5))
def test_thresholding_leaves_the_auc_where_it_was(seed: int, counts: list[int]):
    probabilities, labels = some_probabilities(seed)
    prior = np.array(counts) / sum(counts)
    before, after = (
        score_outputs(outputs, labels) for outputs in (probabilities, divide_by_prior(probabilities, prior))
    )
    assert after.auc == pytest.approx(before.auc, abs=1e-9)
    assert after.auc_per_class == pytest.approx(before.auc_per_class, abs=1e-9)


def test_thresholding_by_hand():
    outputs = divide_by_prior(np.array([[0.8, 0.2]]), np.array([0.9, 0.1]))
    assert outputs[0].tolist() == pytest.approx([0.8 / 0.9, 2.0])  # decided for the rare class
    assert divide_by_prior(np.array([[0.8, 0.2]]), np.array([1.0, 0.0])).tolist() == [
        [0.8, 0.2]
    ]  # an absent class stays


def test_tuned_factors_never_lower_their_score():
    for seed in range(3):
        probabilities, labels = some_probabilities(seed)
        skewed = probabilities * np.array([8.0, 1, 1, 1, 0.1])
        for name, score in SCORES.items():
            factors = tune_factors(skewed, labels, score=name)
            assert score(labels, (skewed * factors).argmax(1), 5) >= score(labels, skewed.argmax(1), 5)
        assert SCORES["accuracy"](labels, (skewed * factors).argmax(1), 5) > 0.9 * SCORES["accuracy"](
            labels, probabilities.argmax(1), 5
        )


def test_costs_by_hand():
    dear_miss = np.array([[0.0, 1.0], [10.0, 0.0]])  # to miss class 1 costs ten times a false alarm
    assert weigh_costs(np.array([[0.85, 0.15], [0.95, 0.05]]), dear_miss).argmax(1).tolist() == [1, 0]
    equal = 1 - np.eye(5)
    probabilities, _ = some_probabilities(0)
    assert (weigh_costs(probabilities, equal).argmax(1) == probabilities.argmax(1)).all()
    with pytest.raises(UsageError, match="costs"):
        weigh_costs(probabilities, dear_miss)
