"""Ids grouped by class over cases."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brats_seg.core.errors import InputError, UsageError
from brats_seg.imbalance.index import ClassIndex

# Two cases of two classes: case 0 has healthy 7 and tumor 3, 5; case 1 has healthy 0, 1 and no tumor.
PARTS = {0: np.array([7, 3, 5], np.uint32), 1: np.array([0, 1], np.uint32)}


def small_index(part=PARTS.__getitem__):
    return ClassIndex(
        ("healthy", "tumor"),
        np.array([[1, 2], [2, 0]]),
        part=part,
        case_ids=np.array([0, 1 << 32]),
        case_names=("a", "b"),
    )


def test_examples_are_counted_over_cases_in_order():
    index = small_index()
    assert index.counts.tolist() == [3, 2]
    assert index.pick(np.array([0, 0, 0, 1, 1]), np.array([0, 1, 2, 0, 1])).tolist() == [
        7,
        1 << 32,
        (1 << 32) + 1,
        3,
        5,
    ]
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


def three_classes():
    """Case 0: classes of 1, 2 and 1 examples; case 1: of 0, 1 and 2."""
    parts = {0: np.array([7, 3, 5, 9]), 1: np.array([4, 0, 1])}
    counts = np.array([[1, 2, 1], [0, 1, 2]])
    return ClassIndex(("a", "b", "c"), counts, part=parts.__getitem__, case_ids=np.array([0, 100]))


def every_id(index, k):
    n = int(index.counts[k])
    return index.pick(np.full(n, k), np.arange(n)).tolist()


def test_classes_are_merged_or_left_out_by_hand():
    index = three_classes()
    merged = index.regroup(("a", "rest"), [[0], [1, 2]])
    assert (merged.class_names, merged.counts.tolist()) == (("a", "rest"), [1, 6])
    assert [every_id(merged, k) for k in (0, 1)] == [[7], [3, 5, 9, 104, 100, 101]]
    without = index.regroup(("b", "c"), [[1], [2]])
    assert without.counts.tolist() == [3, 3]
    assert [every_id(without, k) for k in (0, 1)] == [[3, 5, 104], [9, 100, 101]]
    assert every_id(without.restrict([1]), 1) == [100, 101]
    assert index.counts.tolist() == [1, 3, 3]


def test_a_regrouped_index_can_be_regrouped_restricted_and_pickled():
    index = three_classes().restrict([1]).regroup(("b", "c"), [[1], [2]])
    both = index.regroup(("b or c",), [[0, 1]])
    assert every_id(both, 0) == [104, 100, 101]
    assert both.counts.tolist() == [3]
    assert every_id(three_classes().regroup(("all",), [[0, 1, 2]]).restrict([0]), 0) == [7, 3, 5, 9]


@pytest.mark.parametrize("groups", [[[0, 2]], [[1, 0]], [[0], [0, 1]], [[3]], [[]], [[0], [1], [2]]])
def test_groups_that_are_none_are_refused(groups):
    with pytest.raises(UsageError, match="group"):
        three_classes().regroup(("x",) if len(groups) == 1 else ("x", "y"), groups)


def test_a_gap_left_by_an_earlier_grouping_is_seen():
    outer = three_classes().regroup(("a", "c"), [[0], [2]])
    with pytest.raises(UsageError, match="adjacent and in order"):
        outer.regroup(("a or c",), [[0, 1]])


@given(
    st.lists(st.lists(st.integers(0, 5), min_size=4, max_size=4), min_size=1, max_size=6),
    st.integers(1, 3),
    st.booleans(),
)
def test_a_regrouped_index_holds_the_same_ids(counts, cut, drop_first):
    parts = {i: np.random.default_rng(i).permutation(sum(row)) for i, row in enumerate(counts)}
    case_ids = np.arange(len(counts)) << 32
    index = ClassIndex("abcd", np.array(counts), part=parts.__getitem__, case_ids=case_ids)
    groups = [list(range(int(drop_first), cut)), list(range(cut, 4))]
    groups = [group for group in groups if group]
    grouped = index.regroup([str(g) for g in groups], groups)
    for k, group in enumerate(groups):
        assert sorted(every_id(grouped, k)) == sorted(i for old in group for i in every_id(index, old))


@pytest.mark.parametrize("cases", [[2], [-1], [0, 0]])
def test_wrong_cases_are_refused(cases):
    with pytest.raises(UsageError, match=r"lie in 0\.\.1"):
        small_index().restrict(cases)


def test_a_file_that_does_not_fit_the_counts_is_named():
    with pytest.raises(InputError, match="b: the index holds 3 voxels, but the count in the bank is 2"):
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


def test_the_numbers_of_rising_ids_are_the_way_back_from_pick():
    parts = {0: np.array([7, 3, 5], np.uint32), 1: np.array([0, 1, 4, 9], np.uint32)}
    index = ClassIndex(
        ("healthy", "tumor"),
        np.array([[1, 2], [2, 2]]),
        part=parts.__getitem__,
        case_ids=np.array([0, 1 << 32]),
    )
    for view in (index, index.restrict([1, 0]), index.restrict([1])):
        for k in (0, 1):
            ids = np.sort(np.array(every_id(view, k)))
            numbers = view.numbers_of(k, ids)
            assert view.pick(np.full(len(ids), k), numbers).tolist() == ids.tolist()


def test_numbers_in_a_class_that_is_made_of_several_whose_positions_begin_anew():
    # Edema at 4 and 9, enhancing core at 2 and 7: together as tumor the positions are 4, 9, 2, 7.
    part = np.array([0, 4, 9, 2, 7], np.uint32)
    index = ClassIndex(
        ("healthy", "edema", "enhancing_core"),
        np.array([[1, 2, 2]]),
        part=lambda case: part,
        case_ids=np.zeros(1, np.int64),
    )
    grouped = index.regroup(("healthy", "tumor"), ((0,), (1, 2)))
    assert grouped.numbers_of(1, np.array([2, 4, 7, 9])).tolist() == [2, 0, 3, 1]


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
            expected = [
                (c << 32) + int(p) for c in chosen for p in np.split(parts[c], np.cumsum(counts[c])[:-1])[k]
            ]
            assert view.pick(np.full(n, k), np.arange(n)).tolist() == expected
