"""Ids grouped by class over cases."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brats_seg.errors import InputError, UsageError
from brats_seg.imbalance.index import ClassIndex

# Two cases of two classes: case 0 has healthy 7 and tumor 3, 5; case 1 has healthy 0, 1 and no tumor.
PARTS = {0: np.array([7, 3, 5], np.uint32), 1: np.array([0, 1], np.uint32)}


def small_index(part=PARTS.__getitem__):
    return ClassIndex(("healthy", "tumor"), np.array([[1, 2], [2, 0]]), part=part, case_ids=np.array([0, 1 << 32]), case_names=("a", "b"))


def test_examples_are_counted_over_cases_in_order():
    index = small_index()
    assert index.counts.tolist() == [3, 2]
    assert index.pick(np.array([0, 0, 0, 1, 1]), np.array([0, 1, 2, 0, 1])).tolist() == [7, 1 << 32, (1 << 32) + 1, 3, 5]
    assert index.pick(np.array([1, 0, 1]), np.array([1, 2, 0])).tolist() == [5, (1 << 32) + 1, 3]


def test_a_case_is_mapped_at_first_use_and_once():
    asked = []
    index = small_index(lambda case: asked.append(case) or PARTS[case])
    assert asked == []
    index.pick(np.array([1]), np.array([0]))
    assert asked == [0]
    index.restrict([0]).pick(np.array([0]), np.array([0]))
    index.pick(np.array([0, 0]), np.array([0, 2]))
    assert asked == [0, 1]


def test_a_restricted_index_knows_its_cases_only():
    index = small_index().restrict([1])
    assert index.counts.tolist() == [2, 0]
    assert index.case_counts.tolist() == [[2, 0]]
    assert index.pick(np.array([0, 0]), np.array([0, 1])).tolist() == [1 << 32, (1 << 32) + 1]
    with pytest.raises(UsageError, match="class 'tumor' is out of range; it has 0"):
        index.pick(np.array([1]), np.array([0]))


@pytest.mark.parametrize("cases", [[2], [-1], [0, 0]])
def test_wrong_cases_are_refused(cases):
    with pytest.raises(UsageError, match=r"lie in 0\.\.1"):
        small_index().restrict(cases)


def test_a_file_that_does_not_fit_the_counts_is_named():
    with pytest.raises(InputError, match="b: the index holds 3 voxels; the bank counts 2"):
        small_index(lambda case: PARTS[0]).pick(np.array([0]), np.array([2]))


def test_an_image_set_is_an_index_of_its_labels():
    index = ClassIndex.from_labels(np.array([1, 0, 1, 2]), ("zero", "one", "two"))
    assert index.counts.tolist() == [1, 2, 1]
    assert index.pick(np.array([0, 1, 1, 2]), np.array([0, 0, 1, 0])).tolist() == [1, 0, 2, 3]
    with pytest.raises(InputError, match=r"labels lie in 0\.\.3"):
        ClassIndex.from_labels(np.array([0, 3]), ("zero", "one", "two"))


@pytest.mark.parametrize("cls", [-1, 2])
def test_a_class_there_is_not_is_refused(cls):
    with pytest.raises(UsageError, match="out of range; there are 2 classes"):
        small_index().pick(np.array([0, cls]), np.array([0, 0]))


def test_random_ids_are_different_and_all_where_there_are_no_more():
    index = ClassIndex.from_labels(np.zeros(50, np.int64), ("only",))
    generator = np.random.default_rng(0)
    assert len(set(index.random_ids(0, 20, generator=generator).tolist())) == 20
    assert index.random_ids(0, 80, generator=generator).tolist() == list(range(50))
    assert small_index().restrict([1]).random_ids(1, 5, generator=generator).size == 0


def test_a_copy_for_a_worker_leaves_the_mapped_positions_behind():
    index = small_index()
    index.pick(np.array([1]), np.array([0]))
    copy = pickle.loads(pickle.dumps(index))
    assert copy._parts == {}
    assert copy.pick(np.array([1]), np.array([1])).tolist() == [5]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.integers(0, 6), min_size=3, max_size=3), min_size=1, max_size=6), st.data())
def test_every_id_is_listed_once_and_under_its_class(counts, data):
    counts = np.array(counts)
    rng = np.random.default_rng(0)
    parts = [rng.permutation(1000)[: row.sum()].astype(np.uint32) for row in counts]
    index = ClassIndex("abc", counts, part=parts.__getitem__, case_ids=np.arange(len(counts)) << 32)
    cases = data.draw(st.permutations(range(len(counts))).map(lambda p: p[: 1 + len(p) // 2]))
    for chosen, view in ((range(len(counts)), index), (cases, index.restrict(cases))):
        for k in range(3):
            n = int(view.counts[k])
            expected = [(c << 32) + int(p) for c in chosen for p in np.split(parts[c], np.cumsum(counts[c])[:-1])[k]]
            assert view.pick(np.full(n, k), np.arange(n)).tolist() == expected
