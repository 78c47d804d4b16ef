"""A case or a lesion is drawn first, and then a voxel of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brats_seg.core.errors import UsageError
from brats_seg.core.sections import Sampler
from brats_seg.imbalance.groups import Groups, group_by_case, group_by_lesion
from brats_seg.imbalance.index import ClassIndex
from brats_seg.imbalance.sampler import EpochPlan
from brats_seg.imbalance.samplers import SAMPLERS, build_sampler, make_sampler

NAMES = ("healthy", "edema", "core")
# Case 0: healthy 0-99, edema 100-149 and 200-219, core 150-154. Case 1: healthy 0-9, edema 10-14. Case 2:
# healthy 0-29 alone.
PARTS = (np.r_[0:100, 100:150, 200:220, 150:155], np.r_[0:10, 10:15], np.r_[0:30])
COUNTS = np.array([[100, 70, 5], [10, 5, 0], [30, 0, 0]])
LESIONS = {
    0: lambda p: (p >= 200).astype(np.int32),
    1: lambda p: (p >= 13).astype(np.int32),
    2: lambda p: p.astype(np.int32),
}
CASE = 1 << 32
EDEMA_LESIONS = [range(100, 150), range(200, 220), range(CASE + 10, CASE + 13), range(CASE + 13, CASE + 15)]


def small_index():
    return ClassIndex(NAMES, COUNTS, part=PARTS.__getitem__, case_ids=np.arange(3) << 32)


def lesions_of(index):
    return group_by_lesion(index, lambda case, positions: LESIONS[case](positions))


def groups_of(index, first):
    return group_by_case(index) if first == "case" else lesions_of(index).groups


def sampler_of(kind="balanced", first="lesion", *, index=None, knobs=None, **plan):
    index = index or small_index()
    section = Sampler(kind=kind, healthy_share=0.5 if kind == "ratio" else None, **(knobs or {}))
    plan = EpochPlan(**({"batch_size": 12, "steps": 7, "seed": 3} | plan))
    return build_sampler(section, index, plan=plan, groups=groups_of(index, first))


def drawn_of(sampler, n):
    drawn = [sampler.next() for _ in range(n)]
    return np.concatenate([one.ids for one in drawn]), np.concatenate([one.classes for one in drawn])


def assert_alike(counts, n):
    """Counts of equally likely outcomes of n draws: within 6 standard deviations."""
    expected = n / len(counts)
    assert np.abs(np.array(counts) - expected).max() < 6 * np.sqrt(expected)


def test_a_case_is_drawn_first_and_then_a_voxel_of_it():
    ids, classes = drawn_of(sampler_of(first="case", batch_size=300, steps=100), 100)
    for k, n_cases in ((0, 3), (1, 2), (2, 1)):
        assert_alike(np.bincount(ids[classes == k] >> 32)[:n_cases], (classes == k).sum())
    edema = ids[classes == 1]
    assert_alike([np.isin(edema, one).sum() for one in range(CASE + 10, CASE + 15)], (edema >= CASE).sum())


def test_a_lesion_of_2_voxels_is_drawn_as_often_as_one_of_50():
    ids, classes = drawn_of(sampler_of(first="lesion", batch_size=300, steps=100), 100)
    edema = ids[classes == 1]
    counts = [np.isin(edema, np.array(lesion)).sum() for lesion in EDEMA_LESIONS]
    assert sum(counts) == len(edema)
    assert_alike(counts, len(edema))
    assert_alike(np.bincount(edema[edema < 150] - 100), counts[0])
    assert_alike(np.bincount(ids[classes == 0] >> 32), (classes == 0).sum())  # of healthy tissue a case first


def test_each_tumor_voxel_knows_how_large_its_lesion_is():
    # Two lesions: one of 50 edema voxels, and one of 100 edema voxels and 20,000 core voxels, whose size is
    # over both classes.
    def by_size(case, positions):
        return np.minimum(positions // 100, 2) - 1

    big = ClassIndex(
        NAMES,
        np.array([[0, 150, 20_000]]),
        part=(np.r_[150:300, 300:20_300],).__getitem__,
        case_ids=np.zeros(1, np.int64),
    )
    bins = group_by_lesion(big, by_size).size_bins
    assert bins[0] is None
    assert bins[1].tolist() == [0] * 50 + [3] * 100
    assert set(bins[2].tolist()) == {3}


def test_voxel_first_is_what_was_drawn_before_there_was_a_choice():
    index = small_index()
    balanced = make_sampler("balanced", index, batch_size=6, steps=4, seed=1)
    assert balanced.next().ids.tolist() == [145, 37, 150, 112, 35, 151]


@pytest.mark.parametrize("first", ["case", "lesion"])
def test_random_keeps_the_natural_share_of_each_class(first):
    _, classes = drawn_of(sampler_of("random", first, batch_size=300, steps=100), 100)
    natural = COUNTS.sum(axis=0) / COUNTS.sum()
    n = len(classes)
    assert (np.abs(np.bincount(classes) - n * natural) < 6 * np.sqrt(n * natural * (1 - natural))).all()


@pytest.mark.parametrize("first", ["case", "lesion"])
@pytest.mark.parametrize("kind", SAMPLERS)
def test_ranks_interleave_and_a_resumed_run_goes_on_to_the_bit(kind, first):
    whole = sampler_of(kind, first)
    state, stopped = None, sampler_of(kind, first)
    parts = [sampler_of(kind, first, rank=rank, n_ranks=2) for rank in (0, 1)]
    for step in range(10):
        one, both = whole.next(), [part.next() for part in parts]
        assert np.stack([part.ids for part in both], axis=1).ravel().tolist() == one.ids.tolist()
        if state is None:
            stopped.next()
            state = stopped.state_dict() if step == 4 else None
        else:
            stopped = sampler_of(kind, first)
            stopped.load_state_dict(state)
            assert stopped.next().ids.tolist() == one.ids.tolist()
            state = stopped.state_dict()


@given(
    st.sampled_from(list(SAMPLERS)),
    st.sampled_from(["case", "lesion"]),
    st.integers(0, 99),
    st.integers(0, 2**40),
)
def test_each_draw_is_of_its_class_and_the_counts_are_exact(kind, first, number, seed):
    random = np.random.default_rng(number)
    counts = random.integers(0, 30, (4, 3)) + np.array([1, 1, 0])
    counts[0, 2] += 1
    index = ClassIndex(
        NAMES,
        counts,
        part=[np.arange(n) for n in counts.sum(axis=1)].__getitem__,
        case_ids=np.arange(4) << 32,
    )
    numbers = [random.integers(0, 9, 99).astype(np.int32) for _ in counts]
    groups = (
        group_by_case(index)
        if first == "case"
        else group_by_lesion(index, lambda case, p: numbers[case][p]).groups
    )
    section = Sampler(kind=kind, healthy_share=0.25 if kind == "ratio" else None)
    plan = EpochPlan(batch_size=9, steps=5, seed=seed)
    sampler = build_sampler(section, index, plan=plan, groups=groups)
    ends = np.cumsum(counts, axis=1)
    for _ in range(6):
        requested = sampler.requested * 9
        draw = sampler.next()
        found = [int(np.searchsorted(ends[i >> 32], i & (CASE - 1), side="right")) for i in draw.ids]
        assert found == draw.classes.tolist()
        if kind != "random":
            n = np.bincount(draw.classes, minlength=3)
            assert ((n >= np.floor(requested - 1e-9)) & (n <= np.ceil(requested + 1e-9))).all()


def test_undersampling_draws_its_subset_and_no_other_voxel():
    index = small_index()
    ids, classes = drawn_of(sampler_of("undersample", "lesion", index=index, batch_size=300, steps=20), 40)
    assert [len(np.unique(ids[classes == k])) for k in range(3)] == [5, 5, 5]
    plain = make_sampler("undersample", index, batch_size=300, steps=20, seed=3)
    assert set(ids.tolist()) == set(drawn_of(plain, 20)[0].tolist())


def test_a_class_keeps_the_groups_of_the_examples_that_are_left():
    groups = Groups((np.array([2, 5]), np.array([2, 3, 6])), (None, np.array([3, 0, 5, 1, 2, 4])))
    kept = groups.keep(1, np.array([4, 0, 3])).keep(0, np.array([4]))
    assert [ends.tolist() for ends in kept.ends] == [[1], [2, 3]]
    assert [order.tolist() for order in kept.order] == [[4], [3, 0, 4]]


def test_hard_examples_come_first_and_the_other_draws_follow_the_lesions():
    sampler = sampler_of("hard", "lesion", batch_size=300, steps=20)
    sampler.accept_pools({1: np.array([100, 101])})
    drawn = [sampler.next() for _ in range(20)]
    ids, classes, hard = (
        np.concatenate([getattr(one, name) for one in drawn]) for name in ("ids", "classes", "hard")
    )
    assert sorted(ids[hard].tolist()) == [100, 101]
    edema = ids[(classes == 1) & ~hard]
    assert_alike([np.isin(edema, np.array(lesion)).sum() for lesion in EDEMA_LESIONS], len(edema))


def test_drifting_shares_leave_the_lesions_alike():
    sampler = sampler_of(
        "balanced", "lesion", knobs={"drift": "to_natural"}, drift_epochs=3, batch_size=300, steps=20
    )
    ids, classes = drawn_of(sampler, 60)
    edema = ids[classes == 1]
    assert_alike([np.isin(edema, np.array(lesion)).sum() for lesion in EDEMA_LESIONS], len(edema))


def test_a_class_without_any_lesion_is_refused_in_one_line():
    index = small_index().restrict([1, 2])
    with pytest.raises(UsageError, match="no training example of class 'core'; add cases that have it"):
        sampler_of(index=index)
    with pytest.warns(UserWarning, match="core"):
        ids, classes = drawn_of(sampler_of(index=index, knobs={"allow_absent_class": True}), 7)
    assert set(classes.tolist()) == {0, 1}
    assert set((ids >> 32).tolist()) == {1, 2}


def test_an_epoch_that_shows_every_example_draws_nothing_first():
    with pytest.raises(
        UsageError,
        match=r"sampler\.first: an epoch that shows every example cannot draw cases or lesions first",
    ):
        sampler_of("random", "case", steps=None)


def test_the_lesions_of_a_regrouped_and_restricted_index():
    index = small_index().restrict([0]).regroup(("edema", "core"), [[1], [2]])
    groups = lesions_of(index).groups
    assert [ends.tolist() for ends in groups.ends] == [[50, 70], [5]]
    numbers = groups.numbers(np.zeros(4, np.int64), np.array([0.0, 0.4999999, 0.5, 1 - 2**-53]))
    assert index.pick(np.zeros(4, np.int64), numbers).tolist() == [100, 149, 200, 219]
