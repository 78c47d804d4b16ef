import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from brats_seg.core.statistics import bootstrap_interval, describe, paired_difference


def test_describe_by_hand():
    assert describe([1.0, 3.0], ["a", "b"]) == {
        "mean": 2.0,
        "sd": pytest.approx(2**0.5),
        "n": 2,
        "n_patients": 2,
        "interval95": [1.0, 3.0],
    }
    assert describe([0.5], ["a"]) == {"mean": 0.5, "sd": None, "n": 1, "n_patients": 1, "interval95": None}
    assert describe([], []) == {"mean": None, "sd": None, "n": 0, "n_patients": 0, "interval95": None}


def test_scans_of_one_patient_are_drawn_together():
    assert bootstrap_interval([0.0, 1.0, 0.5], ["a", "a", "a"]) is None
    low, high = bootstrap_interval([0.0, 1.0, 0.5, 0.5], ["a", "a", "b", "b"])
    assert (low, high) == (0.5, 0.5)  # each patient's mean is 0.5, so every resample's is


def test_interval_of_many_is_that_of_the_normal_law():
    values = np.random.default_rng(0).normal(10, 2, 400)
    low, high = bootstrap_interval(list(values), [str(i) for i in range(400)])
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12))
def test_interval_lies_within_the_values(values):
    low, high = bootstrap_interval(values, [str(i) for i in range(len(values))], n_resamples=200)
    assert min(values) - 1e-12 <= low <= high <= max(values) + 1e-12


def test_paired_difference_by_hand():
    patients = {p: p for p in "abcdefg"}
    first = {p: 0.9 for p in "abcdef"}
    second = {p: 0.9 - 0.01 * (i + 1) for i, p in enumerate("abcdef")} | {"g": 0.1}
    found = paired_difference(first, second, patient_of=patients)
    assert (found["mean"], found["n"], found["n_patients"], found["p"]) == (
        pytest.approx(-0.035),
        6,
        6,
        pytest.approx(2 / 64),
    )
    same = paired_difference(first, first, patient_of=patients)
    assert (same["mean"], same["n"], same["p"]) == (0.0, 6, 1.0)
    none = paired_difference(first, {"g": 1.0}, patient_of=patients)
    assert (none["mean"], none["n"], none["p"]) == (None, 0, 1.0)


def test_further_scans_of_a_patient_add_no_evidence():
    patients = [f"p{i}" for i in range(6)]
    gains = {p: 0.01 * (i + 1) for i, p in enumerate(patients)}
    once = paired_difference(
        dict.fromkeys(gains, 0.5), {p: 0.5 + g for p, g in gains.items()}, patient_of={p: p for p in patients}
    )
    scans = {f"{p}-{k}": p for p in patients for k in range(5)}
    often = paired_difference(
        dict.fromkeys(scans, 0.5), {s: 0.5 + gains[p] for s, p in scans.items()}, patient_of=scans
    )
    assert (once["n"], often["n"], often["n_patients"]) == (6, 30, 6)
    assert once["p"] == often["p"] == pytest.approx(2 / 64)  # all six patients gain
    assert often["interval95"] == pytest.approx(once["interval95"])


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=9).filter(any))
def test_p_of_few_equal_differences_is_that_of_scipy(tenths):
    second = {f"p{i}": n / 10 for i, n in enumerate(tenths)}
    found = paired_difference(dict.fromkeys(second, 0.0), second, patient_of={p: p for p in second})
    assert found["p"] == stats.wilcoxon(list(second.values())).pvalue
