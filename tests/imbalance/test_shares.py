"""Shares asked for, and exact counts of every batch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brats_seg.core.errors import UsageError
from brats_seg.imbalance.shares import batch_counts, requested_shares, resampled_counts

NAMES = ("healthy", "edema", "core")
COUNTS = np.array([900, 60, 40])


def asked(kind, *, counts=COUNTS, **knobs):
    return requested_shares(kind, NAMES, counts=counts, **knobs).tolist()


def test_shares_of_each_strategy():
    assert asked("random") == pytest.approx([0.9, 0.06, 0.04])
    assert asked("balanced") == pytest.approx([1 / 3] * 3)
    assert asked("ratio", shares={"core": 0.75, "healthy": 0.25}) == [0.25, 0, 0.75]
    assert asked("ratio", healthy_share=0.5) == pytest.approx([0.5, 0.3, 0.2])
    assert asked("hard") == pytest.approx([1 / 3] * 3)
    assert asked("hard", healthy_share=0.5) == pytest.approx([0.5, 0.3, 0.2])


def test_tumor_stands_for_the_classes_but_healthy_that_are_not_named():
    assert asked("ratio", shares={"healthy": 0.2, "tumor": 0.8}) == pytest.approx([0.2, 0.4, 0.4])
    assert asked("hard", shares={"healthy": 0.2, "tumor": 0.5, "core": 0.3}) == pytest.approx([0.2, 0.5, 0.3])
    two = requested_shares(
        "ratio", ("healthy", "tumor"), counts=np.array([9, 1]), shares={"healthy": 0.3, "tumor": 0.7}
    )
    assert two.tolist() == [0.3, 0.7]
    with pytest.raises(UsageError, match="no class 'tumor'"):
        asked("ratio", shares={"edema": 0.5, "core": 0.3, "tumor": 0.2})


def test_over_and_undersampling_reach_the_ratio_in_full_or_in_part():
    assert resampled_counts("oversample", COUNTS).tolist() == [900, 900, 900]
    assert resampled_counts("oversample", COUNTS, imbalance_ratio=18.0).tolist() == [900, 60, 50]
    assert resampled_counts("undersample", COUNTS).tolist() == [40, 40, 40]
    assert resampled_counts("undersample", COUNTS, imbalance_ratio=2.0).tolist() == [80, 60, 40]
    assert asked("oversample", imbalance_ratio=3.0) == pytest.approx([0.6, 0.2, 0.2])
    assert asked("undersample", imbalance_ratio=2.0) == pytest.approx([80 / 180, 60 / 180, 40 / 180])


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        (
            {"shares": {"healthy": 1.2, "core": -0.2}},
            r"sampler\.shares\.healthy 1\.2: a share lies in 0\.\.1",
        ),
        ({"shares": {"healthy": 0.5, "core": 0.4}}, r"sampler\.shares sum to 0\.9; they must sum to 1"),
        (
            {"shares": {"necrosis": 1.0}},
            "no class 'necrosis' in the bank; the classes are healthy, edema, core",
        ),
        ({"healthy_share": -0.1}, r"sampler\.healthy_share -0\.1"),
        ({"healthy_share": 0.1, "shares": {"core": 1.0}}, "give one of the two"),
        ({"imbalance_ratio": 0.5}, r"sampler\.imbalance_ratio 0\.5"),
        ({"imbalance_ratio": float("nan")}, r"sampler\.imbalance_ratio nan"),
        ({"imbalance_ratio": float("inf")}, r"sampler\.imbalance_ratio inf"),
        ({}, "kind 'ratio' needs shares"),
        (
            {"healthy_share": 0.5, "counts": np.array([9, 0, 1])},
            "no training example of class 'edema'; add cases",
        ),
    ],
)
def test_wrong_settings_name_the_knob_and_the_value(knobs, said):
    with pytest.raises(UsageError, match=said):
        asked("ratio", **knobs)


def test_healthy_share_needs_a_healthy_class():
    with pytest.raises(UsageError, match="no class 'healthy' in cat, dog"):
        requested_shares("ratio", ("cat", "dog"), counts=np.array([1, 1]), healthy_share=0.5)


@pytest.mark.parametrize("kind", ["random", "balanced", "hard", "oversample", "undersample"])
def test_an_absent_class_is_refused_by_name(kind):
    with pytest.raises(UsageError, match=r"no training example of class 'core'; .*allow_absent_class"):
        asked(kind, counts=np.array([900, 60, 0]))


def test_an_absent_class_that_is_allowed_gives_its_share_to_the_others():
    counts, shares = np.array([900, 60, 0]), {"healthy": 0.2, "edema": 0.6, "core": 0.2}
    with pytest.warns(UserWarning, match="class 'core': its share"):
        assert asked("ratio", counts=counts, allow_absent_class=True, shares=shares) == pytest.approx(
            [0.25, 0.75, 0]
        )
    with pytest.warns(UserWarning, match="class 'core'"):
        assert asked("balanced", counts=counts, allow_absent_class=True) == [0.5, 0.5, 0]


def test_an_absent_class_with_a_share_of_0_is_nobodys_concern():
    assert asked("ratio", counts=np.array([900, 60, 0]), shares={"healthy": 0.5, "edema": 0.5}) == [
        0.5,
        0.5,
        0,
    ]


def test_no_example_at_all_is_refused():
    with pytest.raises(UsageError, match="found healthy 0, edema 0, core 0"):
        asked("balanced", counts=np.zeros(3, np.int64), allow_absent_class=True)


def test_24_of_120_for_each_of_five():
    counts = batch_counts(np.full(5, 0.2), batch_size=120, steps=np.arange(50))
    assert (counts == 24).all()


def test_a_remainder_rotates():
    counts = batch_counts(np.full(3, 1 / 3), batch_size=7, steps=np.arange(6))
    assert (counts.sum(axis=1) == 7).all()
    assert set(counts.ravel().tolist()) == {2, 3}
    assert (
        counts[:3].sum(axis=0).tolist()
        == counts[3:].sum(axis=0).tolist()
        == counts[2:5].sum(axis=0).tolist()
        == [7, 7, 7]
    )


def test_a_share_too_small_for_a_slot_in_each_batch_gets_one_in_some():
    counts = batch_counts(np.array([0.99, 0.01]), batch_size=10, steps=np.arange(100))
    assert counts[:, 1].sum() == 10
    assert counts[:, 1].max() == 1


@given(
    st.lists(st.integers(0, 10_000), min_size=1, max_size=7).filter(any),
    st.integers(1, 200),
    st.integers(0, 10**6),
)
def test_every_batch_is_exact_and_no_class_falls_behind(weights, batch_size, first):
    shares = np.array(weights) / sum(weights)
    counts = batch_counts(shares, batch_size=batch_size, steps=np.arange(first, first + 300))
    exact = shares * batch_size
    assert (counts.sum(axis=1) == batch_size).all()
    assert (counts >= np.floor(exact - 1e-9)).all()
    assert (counts <= np.ceil(exact + 1e-9)).all()
    assert np.abs(np.cumsum(counts, axis=0) - exact * np.arange(1, 301)[:, None]).max() < 5
    assert (counts[:, shares == 0] == 0).all()
