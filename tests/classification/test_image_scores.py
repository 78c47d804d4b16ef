"""Scores of class probabilities: by hand, and by what each is a share of."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from brats_seg.classification.scores import auc_interval, resampled_aucs, roc_auc, roc_curves, score_outputs
from brats_seg.core.errors import InputError
from brats_seg.core.statistics import stratified_times

# Three classes, five images: one of class 1 is called 2, the rest is right; class 2 has one image.
OUTPUTS = np.array([[0.8, 0.1, 0.1], [0.5, 0.3, 0.2], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7], [0.1, 0.3, 0.6]])
LABELS = np.array([0, 0, 1, 1, 2])


def random_outputs(seed, n, k, *, levels=None):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(k), rng.integers(0, k, n - k)])
    outputs = rng.dirichlet(np.ones(k), n) + 0.4 * np.eye(k)[labels]
    outputs = np.round(outputs * levels) + 1 if levels else outputs
    return outputs / outputs.sum(axis=1, keepdims=True), labels


def test_scores_by_hand():
    scores = score_outputs(OUTPUTS, LABELS)
    assert scores.confusion.tolist() == [[2, 0, 0], [0, 1, 1], [0, 0, 1]]
    assert (scores.n, scores.accuracy, scores.error) == (5, 0.8, pytest.approx(0.2))
    assert scores.recall_per_class.tolist() == [1, 0.5, 1]
    assert scores.precision_per_class.tolist() == [1, 1, 0.5]
    assert scores.f_score_per_class == pytest.approx([1, 2 / 3, 2 / 3])
    assert scores.balanced_accuracy == pytest.approx(2.5 / 3)
    # Class 1: of the 6 pairs with a rest image, 0.7 beats all three and 0.2 beats 0.1 alone. Class 2: 0.6
    # beats all but 0.7.
    assert scores.auc_per_class == pytest.approx([1, 4 / 6, 3 / 4])
    assert scores.auc == pytest.approx(np.mean([1, 4 / 6, 3 / 4]))


def test_equal_outputs_count_half():
    assert roc_auc(np.full((4, 2), 0.5), np.array([0, 0, 1, 1])).tolist() == [0.5, 0.5]
    # Positives 0.9 and 0.5, negatives 0.5 and 0.1: three pairs in order, one tied.
    tied = np.array([0.9, 0.5, 0.5, 0.1])
    assert roc_auc(np.stack([tied, 1 - tied], axis=1), np.array([0, 0, 1, 1]))[0] == pytest.approx(3.5 / 4)


@given(
    seed=st.integers(0, 2**32),
    n=st.integers(6, 200),
    k=st.integers(2, 6),
    levels=st.sampled_from([None, 3, 10]),
)
def test_scores_are_shares_of_pairs_and_of_counts(seed, n, k, levels):
    outputs, labels = random_outputs(seed, n, k, levels=levels)
    decided, scores = outputs.argmax(axis=1), score_outputs(outputs, labels)
    for c in range(k):
        ours, rest = outputs[labels == c, c][:, None], outputs[labels != c, c]
        assert scores.auc_per_class[c] == pytest.approx(np.mean((ours > rest) + 0.5 * (ours == rest)))
        right, of_class, called = (
            np.sum(found) for found in ((labels == c) & (decided == c), labels == c, decided == c)
        )
        assert scores.recall_per_class[c] == pytest.approx(right / of_class)
        assert scores.precision_per_class[c] == pytest.approx(
            right / called if called else np.nan, nan_ok=True
        )
        assert scores.f_score_per_class[c] == pytest.approx(2 * right / (of_class + called))
        assert scores.confusion[c].tolist() == [np.sum((labels == c) & (decided == d)) for d in range(k)]
    assert scores.auc == pytest.approx(np.mean(scores.auc_per_class))
    assert scores.accuracy == np.mean(labels == decided)


@given(seed=st.integers(0, 2**32), n=st.integers(4, 150), levels=st.sampled_from([None, 2, 8]))
def test_the_area_under_the_curve_is_the_auc(seed, n, levels):
    outputs, labels = random_outputs(seed, n, 2, levels=levels)
    for (alarms, hits), area in zip(roc_curves(outputs, labels), roc_auc(outputs, labels), strict=True):
        assert np.trapezoid(hits, alarms) == pytest.approx(area, abs=1e-3)


def test_a_curve_has_corners_only_and_a_class_alone_has_none():
    # Two positives on top, then three negatives, then a tie of one and one.
    outputs = np.array([9.0, 8, 7, 6, 5, 1, 1]) / 10
    labels = np.array([1, 1, 0, 0, 0, 1, 0])
    _, (alarms, hits) = roc_curves(np.stack([1 - outputs, outputs], axis=1), labels)
    assert list(zip(alarms, hits, strict=True)) == [
        (0, 0),
        (0, 0.33333),  # scikit-learn keeps the first point after the start
        (0, 0.66667),
        (0.75, 0.66667),
        (1, 1),
    ]
    assert roc_curves(np.ones((3, 2)), np.ones(3, np.int64)) == [[[], []], [[], []]]


@given(seed=st.integers(0, 2**32), factors=st.lists(st.floats(1e-3, 1e3), min_size=4, max_size=4))
def test_dividing_each_class_by_a_number_keeps_the_auc(seed, factors):
    outputs, labels = random_outputs(seed, 400, 4)
    assert roc_auc(outputs * np.array(factors), labels) == pytest.approx(roc_auc(outputs, labels), abs=1e-9)


def test_classes_without_images_are_left_out_of_the_means():
    scores = score_outputs(np.array([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1]]), np.array([0, 1]))
    assert scores.auc_per_class.tolist()[:2] == [1, 1]
    assert np.isnan(
        [
            scores.auc_per_class[2],
            scores.recall_per_class[2],
            scores.precision_per_class[2],
            scores.f_score_per_class[2],
        ]
    ).all()
    assert (scores.auc, scores.balanced_accuracy, scores.f_score) == (1, 1, 1)
    assert np.isnan(score_outputs(np.array([[0.7, 0.3]]), np.array([0])).auc)


def test_another_decision_keeps_the_auc():
    scores = score_outputs(OUTPUTS, LABELS, decided=np.array([0, 0, 1, 1, 2]))
    assert (scores.accuracy, scores.auc) == (1, score_outputs(OUTPUTS, LABELS).auc)


def test_a_row_is_json():
    row = score_outputs(np.array([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1]]), np.array([0, 1])).row()
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert row["recall_per_class"] == [1, 1, None]
    assert row["confusion"] == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert row["n_test"] == 2


def test_confusion_of_small_integers_does_not_overflow():
    labels = np.full(3, 99, np.uint8)
    assert score_outputs(np.eye(100)[labels], labels).confusion[99, 99] == 3


@pytest.mark.parametrize(
    ("outputs", "labels", "said"),
    [
        (
            np.zeros((0, 2)),
            np.zeros(0, np.int64),
            "0 outputs and 0 labels; give equally many of both, at least one",
        ),
        (
            np.array([[np.nan, 1], [0.5, np.inf]]),
            np.array([0, 1]),
            "2 of 2 images have an output that is not a number",
        ),
        (np.ones((2, 2)), np.array([0, 2]), "labels lie in 0..2; 2 outputs need 0..1"),
    ],
)
def test_refusals(outputs, labels, said):
    with pytest.raises(InputError) as refused:
        score_outputs(outputs, labels)
    assert str(refused.value) == said


def test_the_auc_of_a_resample_by_hand():
    """Class 0 at 0.9 and 0.3, class 1 at 0.5: one of two pairs is in order. With the first image twice both
    pairs are, with the second twice none.
    """
    first = np.array([0.9, 0.3, 0.5])
    outputs, labels = np.stack([first, 1 - first], axis=1), np.array([0, 0, 1])
    times = np.array([[1, 2, 0], [1, 0, 2], [1, 1, 1]], np.uint16)
    assert resampled_aucs(outputs, labels, times).tolist() == [0.5, 1, 0]
    assert auc_interval(outputs, labels, n_resamples=500) == (0, 1)


@given(
    seed=st.integers(0, 2**32), n=st.integers(8, 60), k=st.integers(2, 5), levels=st.sampled_from([None, 4])
)
def test_resampled_aucs_are_those_of_scikit_learn_on_the_resampled_images(seed, n, k, levels):
    outputs, labels = random_outputs(seed, n, k, levels=levels)
    times = stratified_times(labels, n_resamples=5, seed=seed)
    drawn = [np.repeat(np.arange(n), counts) for counts in times.T]
    by_sklearn = [
        np.mean([roc_auc_score(labels[ids] == c, outputs[ids, c]) for c in range(k)]) for ids in drawn
    ]
    assert resampled_aucs(outputs, labels, times) == pytest.approx(by_sklearn)


def test_a_resample_keeps_the_size_of_each_class_and_draws_each_image_once_on_average():
    labels = np.repeat([0, 1, 2], [1, 4, 95])
    times = stratified_times(labels, n_resamples=2000)
    assert (times[0] == 1).all()
    assert (times[1:5].sum(0) == 4).all()
    assert (times[5:].sum(0) == 95).all()
    assert times[1:].mean(1) == pytest.approx(np.ones(99), abs=0.12)


def test_an_interval_of_the_auc_holds_it_and_needs_two_classes():
    outputs, labels = random_outputs(0, 300, 3)
    low, high = auc_interval(outputs, labels, n_resamples=200)
    assert low < score_outputs(outputs, labels).auc < high
    assert auc_interval(outputs, np.zeros(300, np.int64), n_resamples=10) is None
