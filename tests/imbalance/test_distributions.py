"""Class counts by the published formulas, and which examples are chosen."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brats_seg.core.errors import UsageError
from brats_seg.imbalance.distributions import (
    Distribution,
    choose_examples,
    class_counts,
    class_order,
    draw_subset,
)

FULL = np.full(10, 5000)
MNIST_TRAIN = np.array([5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949])
MNIST_RHO = (10, 25, 50, 100, 250, 500, 1000, 2500, 5000)
LOWEST = np.arange(10)


def counts_of(kind, rho=1.0, mu=None, *, most=5000, available=FULL, order=LOWEST, counts=None):
    distribution = Distribution(kind, rho=rho, mu=mu, counts=counts)
    return class_counts(distribution, available=available, most=most, order=order).tolist()


def test_figure_1_of_the_paper():
    assert counts_of("step", 10, 0.5) == [500] * 5 + [5000] * 5
    assert counts_of("step", 2, 0.9) == [2500] * 9 + [5000]
    assert counts_of("linear", 10) == [500, 1000, 1500, 2000, 2500, 3000, 3500, 4000, 4500, 5000]
    # The paper: a and b hold equally many examples.
    assert sum(counts_of("step", 10, 0.5)) == sum(counts_of("step", 2, 0.9)) == 27_500


def test_every_published_set_has_its_counts():
    for rho in MNIST_RHO:
        for n_minority in range(1, 10):
            counts = counts_of("step", rho, n_minority / 10, available=MNIST_TRAIN)
            assert counts == [5000 // rho] * n_minority + [5000] * (10 - n_minority)
        linear = counts_of("linear", rho, available=MNIST_TRAIN)
        assert (linear[0], linear[-1]) == (5000 // rho, 5000)
        assert np.abs(np.diff(linear) - (5000 - 5000 // rho) / 9).max() <= 1
        assert sum(linear) == sum(counts_of("step", rho, 0.5))
    imagenet = counts_of("step", 100, 0.9, most=1000, available=np.full(1000, 1200), order=np.arange(1000))
    assert imagenet == [10] * 900 + [1000] * 100


def test_long_tail_falls_by_one_factor():
    counts = counts_of("long_tail", 100)
    assert (counts[0], counts[-1]) == (50, 5000)
    assert np.diff(np.log(counts)) == pytest.approx(np.log(100) / 9, rel=0.02)


def test_long_tailed_cifar_has_its_published_counts():
    highest = np.arange(10)[::-1]
    counts = counts_of("exponential", 100, order=highest)
    assert counts == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert sum(counts) == 12_406
    assert class_order(FULL, most=5000, minority="highest", seed=4).tolist() == highest.tolist()
    hundred = {"most": 500, "available": np.full(100, 500), "order": np.arange(100)}
    assert sum(counts_of("exponential", 100, **hundred)) == 10_847
    assert (min(counts_of("exponential", 10, **hundred)), max(counts_of("exponential", 10, **hundred))) == (
        50,
        500,
    )


def test_natural_takes_every_example():
    assert counts_of("natural", available=MNIST_TRAIN) == MNIST_TRAIN.tolist()
    with pytest.raises(UsageError, match="distribution 'natural': does not use rho"):
        Distribution("natural", rho=2)


def test_a_profile_that_empties_a_class_is_one_line():
    said = "rho 501 is larger than the class: of 500 examples it leaves none; give rho 500 at most"
    with pytest.raises(UsageError, match=said):
        counts_of("exponential", 501, most=500)


def test_given_and_balanced():
    assert counts_of("given", counts=(5000, 50), available=np.array([5000, 5000]), order=np.arange(2)) == [
        5000,
        50,
    ]
    assert counts_of("balanced", available=MNIST_TRAIN) == [5000] * 10
    assert counts_of("balanced", most=None, available=MNIST_TRAIN) == [5421] * 10


def test_the_order_says_which_classes_get_fewer():
    assert counts_of("step", 10, 0.2, order=np.array([7, 3, 0, 1, 2, 4, 5, 6, 8, 9]))[3] == 500
    assert class_order(FULL, most=5000, minority="lowest", seed=4).tolist() == list(range(10))
    drawn = [tuple(class_order(FULL, most=5000, minority="random", seed=seed)) for seed in range(60)]
    assert len(set(drawn)) == 60
    assert {d[0] for d in drawn} == set(range(10))
    assert all(sorted(d) == list(range(10)) for d in drawn)


def test_classes_with_fewer_examples_are_always_minority_ones():
    available = np.array([1200, 732, 1200, 900, 1200])
    for seed in range(10):
        order = class_order(available, most=1000, minority="random", seed=seed)
        assert set(order[:2].tolist()) == {1, 3}
        counts = class_counts(
            Distribution("step", rho=10, mu=0.4), available=available, most=1000, order=order
        )
        assert counts.tolist() == [1000, 100, 1000, 100, 1000]


@given(k=st.integers(2, 40), rho=st.floats(1, 2000), most=st.integers(2000, 8000))
def test_linear_and_half_step_hold_equally_many(k, rho, most):
    available = np.full(k, most)
    linear = class_counts(Distribution("linear", rho=rho), available=available, most=most, order=np.arange(k))
    assert (np.diff(linear) >= 0).all()
    spaced = np.linspace(linear[0], most, k)
    assert np.abs(linear - spaced).max() <= 0.5 + 1e-9
    if k % 2 == 0:
        step = class_counts(
            Distribution("step", rho=rho, mu=0.5), available=available, most=most, order=np.arange(k)
        )
        assert linear.sum() == step.sum()


@given(
    seed=st.integers(0, 2**62),
    labels=st.lists(st.integers(0, 4), min_size=30, max_size=80),
    share=st.floats(0, 1),
)
def test_chosen_examples_are_distinct_and_of_their_class(seed, labels, share):
    labels = np.array(labels)
    counts = np.floor(np.bincount(labels, minlength=5) * share).astype(np.int64)
    ids = choose_examples(labels, counts, seed=seed)
    assert np.bincount(labels[ids], minlength=5).tolist() == counts.tolist()
    assert (np.diff(ids) > 0).all()
    assert np.array_equal(ids, choose_examples(labels, counts, seed=seed))
    assert np.isin(choose_examples(labels, counts // 2, seed=seed), ids).all()


def test_each_example_is_equally_likely():
    labels = np.zeros(20, np.int64)
    hits = sum(
        np.bincount(choose_examples(labels, np.array([5]), seed=seed), minlength=20) for seed in range(400)
    )
    assert np.abs(hits - 100).max() < 40  # binomial, sd 8.7


def test_a_drawn_set():
    labels = np.repeat(np.arange(10), 50)
    drawn = draw_subset(
        Distribution("step", rho=10, mu=0.3), labels, n_classes=10, most=50, minority="random", seed=3
    )
    again = draw_subset(
        Distribution("step", rho=10, mu=0.3), labels, n_classes=10, most=50, minority="random", seed=4
    )
    assert len(drawn.minority) == 3
    assert (drawn.counts[list(drawn.minority)] == 5).all()
    assert len(drawn.ids) == 7 * 50 + 3 * 5
    assert np.bincount(labels[drawn.ids]).tolist() == drawn.counts.tolist()
    assert drawn.minority != again.minority


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"kind": "step", "rho": 10, "mu": 1.0}, "mu 1 leaves no majority class of 10; give mu 0.9 at most"),
        ({"kind": "step", "rho": 10, "mu": 0.0}, "mu 0 leaves no minority class of 10; give mu 0.1 at least, "
                                                 "or distribution 'balanced'"),
        ({"kind": "step", "rho": 10, "mu": 0.25}, "mu 0.25: of 10 classes 2.5 would be minority classes; "
                                                  "give a multiple of 1/10"),
        ({"kind": "step", "rho": 5001, "mu": 0.5}, "rho 5001 is larger than the class: of 5000 examples it "
                                                   "leaves none; give rho 5000 at most"),
        ({"kind": "linear", "rho": 20000}, "rho 20000 is larger than the class: of 5000 examples it leaves "
                                           "none; give rho 5000 at most"),
        ({"kind": "linear", "rho": 0.5}, "rho 0.5: largest class divided by smallest class, so a finite "
                                         "number of 1 or more"),
        ({"kind": "linear", "rho": float("nan")}, "rho nan: largest class divided by smallest class, so a "
                                                  "finite number of 1 or more"),
        ({"kind": "linear", "mu": 0.5}, "distribution 'linear': mu is the share of minority classes, only "
                                        "for 'step', not for another kind"),
        ({"kind": "step", "rho": 5}, "distribution 'step': mu is the share of minority classes, only for "
                                     "'step', not for another kind"),
        ({"kind": "balanced", "rho": 5}, "distribution 'balanced': does not use rho"),
        ({"kind": "given"}, "distribution 'given': counts (one number for each class) are only for 'given', "
                            "not for another kind"),
        ({"kind": "given", "counts": (5, 5)}, "distribution 'given': 2 counts for 10 classes; give one "
                                              "number for each class"),
        ({"kind": "given", "counts": (0,) * 10}, f"distribution 'given': counts {[0] * 10}; give no count "
                                                 "below 0 and at least one above 0"),
        ({"kind": "balanced", "most": 0}, "the largest class would have 0 examples; it needs 1 or more"),
        ({"kind": "balanced", "most": 6000}, "class 0 needs 6000 examples but has 5000 (9 more classes "
                                             "lack examples too); "
         "lower the counts"),
    ],
)  # fmt: skip
def test_refusals(knobs, said):
    with pytest.raises(UsageError) as refused:
        counts_of(**knobs)
    assert str(refused.value) == said


def test_more_short_classes_than_minority_ones():
    available = np.array([700, 800, 1200, 1200])
    order = class_order(available, most=1000, minority="lowest", seed=0)
    with pytest.raises(UsageError, match="class 1 needs 1000 examples but has 800; lower the counts"):
        class_counts(Distribution("step", rho=10, mu=0.25), available=available, most=1000, order=order)
