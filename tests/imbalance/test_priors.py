"""Class weights; prior correction."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_class_weight

from brats_seg.core.errors import UsageError
from brats_seg.imbalance.priors import class_weights, correct_logits, effective_prior, require_prior


def test_balanced_is_that_of_scikit_learn():
    labels = np.repeat([0, 1, 2], [70, 25, 5])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert class_weights("balanced", np.bincount(labels)) == pytest.approx(expected)


def test_effective_number_by_hand_and_at_its_ends():
    one, two = 1 / (1 + 0.9), 1 / 1.0  # beta 0.9: the effective number of 2 examples is 1.9, of 1 it is 1
    assert class_weights("effective_number", np.array([2, 1]), beta=0.9) == pytest.approx(
        [2 * one / (one + two), 2 * two / (one + two)]
    )
    assert class_weights("effective_number", np.array([90, 10]), beta=0.0).tolist() == [1, 1]
    assert class_weights("effective_number", np.array([90, 10]), beta=1 - 1e-9) == pytest.approx(
        [0.2, 1.8], rel=1e-4
    )


def test_effective_number_leaves_the_counts_of_a_bank_almost_unweighted():
    counts = np.array(
        [18_000_000, 30_000, 180_000, 20_000, 62_000]
    )  # as 15 cases of BraTS 2013 have, at 1.2 million healthy voxels each
    assert class_weights("effective_number", counts) == pytest.approx(
        [0.96, 1.01, 0.96, 1.11, 0.96], abs=0.005
    )
    assert class_weights("balanced", counts).max() > 100


def test_median_frequency_looks_at_the_cases_where_a_class_occurs():
    # f of class 0 is 150/200; of class 1 it is 40/100, as case 1 has none of it; of class 2 it is 10/200. The
    # median is 0.4.
    by_case = np.array([[55, 40, 5], [95, 0, 5]])
    assert class_weights("median_frequency", by_case) == pytest.approx([0.4 / 0.75, 1.0, 0.4 / 0.05])


@pytest.mark.parametrize("kind", ["balanced", "effective_number", "median_frequency"])
def test_an_absent_class_weighs_nothing_and_changes_nothing(kind):
    assert class_weights(kind, np.array([90, 0, 10])).tolist() == pytest.approx(
        np.insert(class_weights(kind, np.array([90, 10])), 1, 0)
    )


def test_no_weights():
    assert class_weights("none", np.array([90, 10])).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("kind", "counts", "beta", "said"),
    [
        (
            "inverse",
            [1, 1],
            0.9,
            "'inverse': must be one of none, balanced, effective_number, median_frequency",
        ),
        ("balanced", [0, 0], 0.9, "no examples"),
        ("effective_number", [1, 1], 1.0, r"beta 1: must lie in \[0, 1\)"),
    ],
)
def test_wrong_weights_are_refused(kind, counts, beta, said):
    with pytest.raises(UsageError, match=said):
        class_weights(kind, np.array(counts), beta=beta)


# Two Gaussians at -1 and +1, of unit variance: the true posterior is known, and logistic regression can
# express it.
NATURAL = np.array([0.95, 0.05])
GRID = np.linspace(-3, 3, 61)


def correct(probabilities, *, axis=0, **priors):
    """Probabilities by way of their logits."""
    with np.errstate(divide="ignore"):
        return softmax(correct_logits(np.log(probabilities), axis=axis, **priors), axis=axis)


def bayes_posterior():
    likelihood = np.stack([norm.pdf(GRID, -1), norm.pdf(GRID, 1)])
    joint = likelihood * NATURAL[:, None]
    return joint / joint.sum(axis=0)


def quantiles(mean, n):
    return norm.ppf((np.arange(n) + 0.5) / n, mean)


def trained_posterior(counts, weights):
    """A logistic regression on `counts` examples of each Gaussian, with class weights in its loss."""
    x = np.concatenate([quantiles(-1, counts[0]), quantiles(1, counts[1])])[:, None]
    y = np.repeat([0, 1], counts)
    model = LogisticRegression(C=1e6, tol=1e-8).fit(x, y, sample_weight=np.asarray(weights)[y])
    return model.predict_proba(GRID[:, None]).T


@pytest.mark.parametrize(
    ("counts", "weights"),
    [
        ([10_000, 10_000], [1.0, 1.0]),  # balanced by sampling
        ([19_000, 1000], class_weights("balanced", np.array([19_000, 1000]))),  # balanced by weights
        (
            [10_000, 10_000],
            class_weights("balanced", np.array([19_000, 1000])),
        ),  # by both: trained as if the rare class were the common one
        ([19_000, 1000], [1.0, 1.0]),  # by neither
    ],
)
def test_correction_gives_the_bayes_posterior(counts, weights):
    prior = effective_prior(np.array(counts), class_weights=np.array(weights))
    corrected = correct(trained_posterior(counts, weights), training_prior=prior, target_prior=NATURAL)
    assert np.abs(corrected - bayes_posterior()).max() < 0.01


def test_without_the_correction_the_posterior_is_far_off():
    assert np.abs(trained_posterior([10_000, 10_000], [1.0, 1.0]) - bayes_posterior()).max() > 0.5


def test_sampling_and_weights_multiply():
    assert effective_prior(np.array([500, 500]), class_weights=np.array([1.0, 3.0])).tolist() == [0.25, 0.75]
    with pytest.raises(UsageError, match="leave no class"):
        effective_prior(np.array([0, 5]), class_weights=np.array([1.0, 0.0]))


def test_by_hand():
    even = np.array([0.5, 0.5])
    p = correct(np.array([0.5, 0.5]), training_prior=even, target_prior=np.array([0.8, 0.2]))
    assert p == pytest.approx([0.8, 0.2])
    half = correct(np.array([0.5, 0.5]), training_prior=even, target_prior=np.array([0.8, 0.2]), strength=0.5)
    assert half == pytest.approx([2 / 3, 1 / 3])  # sqrt(0.8 / 0.2) = 2
    thresholding = correct(
        np.array([[0.9, 0.1]]), training_prior=np.array([0.9, 0.1]), target_prior=even, axis=1
    )
    assert thresholding == pytest.approx(np.array([[0.5, 0.5]]))


def test_a_class_of_target_0_is_taken_out():
    prior, target = np.array([0.5, 0.25, 0.25]), np.array([0.5, 0.5, 0.0])
    assert correct(np.array([0.2, 0.2, 0.6]), training_prior=prior, target_prior=target) == pytest.approx(
        [1 / 3, 2 / 3, 0]
    )
    logits = correct_logits(np.zeros(3, np.float32), training_prior=prior, target_prior=target)
    assert logits[2] == -np.inf


def test_a_class_absent_from_training_and_target_stays_at_0():
    training, target = np.array([0.5, 0.5, 0.0]), np.array([0.9, 0.1, 0.0])
    p = correct(np.array([0.45, 0.45, 0.1]), training_prior=training, target_prior=target)
    assert p == pytest.approx([0.9, 0.1, 0.0])


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        (
            {"training_prior": np.array([1.0, 0.0])},
            r"classes \[1\] have a target prior but were never in the training",
        ),
        ({"target_prior": np.array([1.5, -0.5])}, "target prior .* must be 0 or more"),
        (
            {"training_prior": np.full(3, 1 / 3), "target_prior": np.full(3, 1 / 3)},
            "training prior has 3 classes, the logits 2",
        ),
        ({"strength": -0.1}, r"strength -0\.1"),
        ({"strength": float("nan")}, "strength nan"),
        ({"training_prior": np.array([0.5, np.nan])}, "training prior .* must be 0 or more, finite"),
    ],
)
def test_wrong_priors_are_refused(knobs, said):
    even = np.array([0.5, 0.5])
    with pytest.raises(UsageError, match=said):
        correct_logits(even, **({"training_prior": even, "target_prior": even} | knobs))


def test_losses_without_a_prior_are_refused():
    require_prior("cross_entropy")
    for kind in ("focal", "dice_cross_entropy"):
        with pytest.raises(
            UsageError, match=f"loss.kind '{kind}' has no known prior; it takes cross_entropy"
        ):
            require_prior(kind)


PRIORS = arrays(np.float64, 3, elements=st.floats(0.01, 1))
LOGITS = arrays(np.float32, (3, 4, 5), elements=st.floats(-20, 20, width=32))


@given(LOGITS, PRIORS, PRIORS, st.floats(0, 2))
def test_moved_logits_are_probabilities_times_the_ratio_and_the_way_back_is_the_same(
    logits, training, target, strength
):
    moved = correct_logits(logits, training_prior=training, target_prior=target, strength=strength)
    assert moved.dtype == np.float32
    ratio = (target / target.sum()) / (training / training.sum())
    expected = softmax(logits, axis=0) * (ratio**strength)[:, None, None]
    np.testing.assert_allclose(softmax(moved, axis=0), expected / expected.sum(axis=0), atol=1e-5)
    back = correct_logits(moved, training_prior=target, target_prior=training, strength=strength)
    np.testing.assert_allclose(back, logits, atol=1e-4)
    last = correct_logits(
        np.moveaxis(logits, 0, -1), training_prior=training, target_prior=target, strength=strength, axis=-1
    )
    np.testing.assert_array_equal(np.moveaxis(last, -1, 0), moved)
