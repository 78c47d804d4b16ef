"""Folds never split a patient, and share out the cases with enhancing tumor."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brats_seg.bank.folds import inner_split, make_folds
from brats_seg.core.errors import InputError, UsageError

cohorts = st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=40).map(
    lambda rows: (
        {f"c{i}": f"p{patient}" for i, (patient, _) in enumerate(rows)},
        {f"c{i}": has for i, (_, has) in enumerate(rows)},
    )
)


@given(cohorts, st.integers(1, 6), st.integers(0, 100))
@settings(deadline=None)
def test_each_case_once_each_patient_in_one_fold(
    cohort: tuple[dict[str, str], dict[str, bool]], n_folds: int, seed: int
) -> None:
    patient_of, has = cohort
    folds = make_folds(patient_of, has, n_folds=n_folds, seed=seed)
    assert sorted(case for fold in folds for case in fold) == sorted(patient_of)
    assert len(folds) == min(n_folds, len(set(patient_of.values())))
    patients = [{patient_of[case] for case in fold} for fold in folds]
    assert sum(len(p) for p in patients) == len(set.union(*patients))
    enhancing = {patient_of[case] for case in patient_of if has[case]}
    for kind in (enhancing, set(patient_of.values()) - enhancing):
        n = [len(p & kind) for p in patients]
        assert max(n) - min(n) <= 1


def test_the_order_of_the_cases_does_not_matter() -> None:
    patient_of = {f"c{i}": f"p{i // 2}" for i in range(20)}
    has = {case: int(case[1:]) % 3 == 0 for case in patient_of}
    turned = dict(reversed(list(patient_of.items())))
    assert make_folds(patient_of, has, n_folds=4, seed=1) == make_folds(turned, has, n_folds=4, seed=1)
    assert make_folds(patient_of, has, n_folds=4, seed=1) != make_folds(patient_of, has, n_folds=4, seed=2)


def test_eight_patients_two_without_enhancing_in_two_folds() -> None:
    patient_of = {f"c{i}": f"p{i}" for i in range(8)}
    folds = make_folds(patient_of, {c: c not in ("c0", "c1") for c in patient_of}, n_folds=2, seed=0)
    assert Counter("c0" in fold or "c1" in fold for fold in folds) == {True: 2}
    assert [len(fold) for fold in folds] == [4, 4]


def test_no_fold_is_a_wrong_number() -> None:
    with pytest.raises(UsageError, match="n_folds is 0"):
        make_folds({"a": "a"}, {"a": True}, n_folds=0, seed=0)


@given(cohorts, st.floats(0.01, 0.99), st.integers(0, 100))
@settings(deadline=None)
def test_the_inner_split_parts_patients(
    cohort: tuple[dict[str, str], dict[str, bool]], fraction: float, seed: int
) -> None:
    patient_of, has = cohort
    n_patients = len(set(patient_of.values()))
    if n_patients < 2:
        with pytest.raises(InputError, match="have 1 patient"):
            inner_split(patient_of, has, fraction=fraction, seed=seed)
        return
    train, inner = inner_split(patient_of, has, fraction=fraction, seed=seed)
    assert sorted(train + inner) == sorted(patient_of)
    trained, validated = ({patient_of[case] for case in cases} for cases in (train, inner))
    assert not trained & validated
    assert len(validated) == min(max(1, round(fraction * n_patients)), n_patients - 1)
    enhancing = {patient_of[case] for case in patient_of if has[case]}
    if len(enhancing) > 1:
        assert validated & enhancing


def test_one_patient_in_five() -> None:
    patient_of = {f"c{i}": f"p{i}" for i in range(10)}
    _, inner = inner_split(patient_of, dict.fromkeys(patient_of, True), fraction=0.2, seed=0)
    assert len(inner) == 2
    chosen = {
        inner_split(patient_of, dict.fromkeys(patient_of, True), fraction=0.2, seed=s)[1] for s in range(20)
    }
    assert len(chosen) > 10
    assert np.unique([case for cases in chosen for case in cases]).size == 10
