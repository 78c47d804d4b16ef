"""Which ids are drawn: exact counts, equal on all ranks, resumable to the bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brats_seg.core.errors import UsageError
from brats_seg.core.sections import Hard, Sampler
from brats_seg.imbalance.index import ClassIndex
from brats_seg.imbalance.sampler import EpochPlan
from brats_seg.imbalance.samplers import SAMPLERS, build_sampler, make_sampler

DRIFTING = ("balanced", "ratio", "hard")
HARD_KNOBS = ("classes", "recycle", "max_age")
PLAN_KNOBS = ("batch_size", "steps", "seed", "rank", "n_ranks")
NAMES = ("healthy", "edema", "core", "rim", "cyst")


def index_of(counts, names=None):
    """One case; ids 0 .. n - 1, class after class, so that the class of an id can be read from it."""
    labels = np.repeat(np.arange(len(counts)), counts)
    return ClassIndex.from_labels(labels, names or NAMES[: len(counts)]), labels


def draws(sampler, n):
    return [sampler.next() for _ in range(n)]


def ids_of(drawn):
    return np.concatenate([draw.ids for draw in drawn])


def make(kind, index, *, n_epochs=None, **knobs):
    """A sampler by any knobs of its section, of the section `hard` and of the plan."""
    if kind == "ratio":
        knobs.setdefault("healthy_share", 0.5)
    hard, plan = ({k: knobs.pop(k) for k in names if k in knobs} for names in (HARD_KNOBS, PLAN_KNOBS))
    return build_sampler(
        Sampler(kind=kind, **knobs),
        index,
        plan=EpochPlan(**({"batch_size": 10, "steps": 5, "seed": 0, "drift_epochs": n_epochs} | plan)),
        hard=Hard(**hard),
    )


def with_pools(sampler, index, rng):
    if hasattr(sampler, "accept_pools"):
        sampler.accept_pools({k: index.random_ids(k, 7, generator=rng) for k in range(index.n_classes)})
    return sampler


def test_balanced_draws_24_of_120_for_each_of_five_classes_in_every_batch():
    index, labels = index_of([5000, 40, 30, 20, 10])
    for draw in draws(make("balanced", index, batch_size=120, steps=20), 45):
        assert np.bincount(labels[draw.ids]).tolist() == [24] * 5
        assert (labels[draw.ids] == draw.classes).all()
        assert not draw.hard.any()


def test_epochs_count_from_1_and_positions_start_again():
    index, _ = index_of([50, 50])
    sampler = make("balanced", index, batch_size=4, steps=3)
    assert (sampler.epoch, sampler.step) == (1, 0)
    assert np.concatenate([d.positions for d in draws(sampler, 3)]).tolist() == list(range(12))
    assert (sampler.epoch, sampler.step) == (2, 0)
    assert sampler.next().positions.tolist() == [0, 1, 2, 3]


def test_every_epoch_and_seed_draws_anew():
    index, _ = index_of([10_000, 10_000])
    sampler = make("balanced", index)
    lists = [
        ids_of(draws(sampler, 5)).tolist(),
        ids_of(draws(sampler, 5)).tolist(),
        ids_of(draws(make("balanced", index, seed=1), 5)).tolist(),
    ]
    assert len({tuple(one) for one in lists}) == 3


def test_random_is_within_6_sigma_of_the_natural_frequencies():
    index, labels = index_of([9000, 700, 250, 49, 1])
    sampler = make("random", index, batch_size=500, steps=40)
    n = 500 * 40
    natural = index.counts / index.counts.sum()
    assert sampler.requested.tolist() == natural.tolist()
    drawn = np.bincount(labels[ids_of(draws(sampler, 40))], minlength=5)
    assert (np.abs(drawn - n * natural) <= 6 * np.sqrt(n * natural * (1 - natural)) + 1e-9).all()


def test_within_a_class_every_example_is_drawn_alike():
    index, _ = index_of([20, 4])
    drawn = np.bincount(ids_of(draws(make("balanced", index, batch_size=400, steps=40), 40)), minlength=24)
    for n, each in ((8000 / 20, drawn[:20]), (8000 / 4, drawn[20:])):
        assert (np.abs(each - n) < 6 * np.sqrt(n)).all()


def test_the_remainder_rotates_over_epochs():
    index, labels = index_of([30, 30, 30])
    drawn = draws(make("balanced", index, batch_size=4, steps=2), 6)
    assert np.bincount(labels[ids_of(drawn)]).tolist() == [8, 8, 8]


def test_the_remainder_rotates_over_epochs_that_are_one_batch_long():
    index, labels = index_of([50, 2, 2])
    sampler = make("undersample", index, steps=None, batch_size=10)
    assert sampler.steps == 1
    assert np.bincount(labels[ids_of(draws(sampler, 30))]).tolist() == [100, 100, 100]


def test_undersampling_draws_from_one_fixed_subset():
    index, labels = index_of([1000, 10, 20])
    ids = ids_of(draws(make("undersample", index, batch_size=30, steps=50), 150))
    assert [len(np.unique(ids[labels[ids] == k])) for k in range(3)] == [10, 10, 10]
    partial = ids_of(draws(make("undersample", index, batch_size=100, steps=50, imbalance_ratio=5.0), 100))
    assert [len(np.unique(partial[labels[partial] == k])) for k in range(3)] == [50, 10, 20]
    other = ids_of(draws(make("undersample", index, batch_size=30, steps=50, seed=1), 50))
    assert set(ids[labels[ids] == 0]) != set(other[labels[other] == 0])


@pytest.mark.parametrize(
    ("counts", "ratio", "steps"), [([100, 10], 1.0, 20), ([100, 10], 2.0, 15), ([101, 7, 3], 1.0, 31)]
)
def test_a_class_aware_epoch_of_oversampling_shows_all_and_repeats_evenly(counts, ratio, steps):
    index, labels = index_of(counts)
    sampler = make("oversample", index, steps=None, imbalance_ratio=ratio)
    assert sampler.steps == steps
    for _ in range(2):
        times = np.bincount(ids_of(draws(sampler, sampler.steps)), minlength=sum(counts))
        for k in range(len(counts)):
            of_class = times[labels == k]
            assert of_class.min() >= 1
            assert of_class.max() - of_class.min() <= 1


def test_a_class_aware_epoch_of_undersampling_shows_its_subset_once():
    index, _ = index_of([100, 10])
    sampler = make("undersample", index, steps=None, batch_size=4)
    assert sampler.steps == 5
    assert np.bincount(ids_of(draws(sampler, 5))).max() == 1


def test_a_class_aware_epoch_is_long_where_the_largest_class_has_a_small_share():
    index, _ = index_of([100, 10])
    sampler = make(
        "ratio",
        index,
        steps=None,
        batch_size=10,
        shares={"healthy": 0.001, "edema": 0.999},
        healthy_share=None,
    )
    ids = np.array([one for draw in draws(sampler, sampler.steps) for one in draw.ids[draw.classes == 0]])
    assert sorted(ids) == list(range(100))
    assert sampler.steps == pytest.approx(10_000, rel=0.05)


def test_a_whole_random_epoch_shows_each_example_once():
    index, _ = index_of([40, 20])
    sampler = make("random", index, steps=None, batch_size=16)
    assert sampler.steps == 4
    ids = ids_of(draws(sampler, 4))
    assert sorted(ids[:60]) == list(range(60))
    assert ids[60:].tolist() == ids[:4].tolist()
    assert ids_of(draws(sampler, 4)).tolist() != ids.tolist()


@given(
    st.lists(st.integers(1, 400), min_size=2, max_size=5),
    st.integers(1, 60),
    st.sampled_from(["balanced", "oversample", "undersample"]),
)
def test_a_class_aware_epoch_shows_the_largest_class_whole(counts, batch_size, kind):
    index, labels = index_of(counts)
    sampler = make(kind, index, steps=None, batch_size=batch_size)
    largest = min(counts) if kind == "undersample" else max(counts)
    for _ in range(3):
        seen = np.unique(ids_of(draws(sampler, sampler.steps)))
        assert (
            np.bincount(labels[seen], minlength=len(counts))[np.array(counts) == max(counts)] == largest
        ).all()


def test_a_largest_class_that_has_no_share_needs_a_number_of_steps():
    index, _ = index_of([100, 10])
    with pytest.raises(
        UsageError, match=r"training\.steps: give a number; the largest class 'healthy' has a share of 0"
    ):
        make("ratio", index, steps=None, shares={"edema": 1.0}, healthy_share=None)


# ---- hard replay

HARD = {0: [3, 5, 8], 1: [101, 102]}


def hard_sampler(counts=(100, 50), **knobs):
    index, labels = index_of(list(counts))
    return make("hard", index, **({"recycle": True} | knobs)), labels


def test_hard_replay_begins_balanced():
    sampler, labels = hard_sampler()
    for draw in draws(sampler, 5):
        assert np.bincount(labels[draw.ids]).tolist() == [5, 5]
        assert not draw.hard.any()


def test_with_recycling_a_class_that_has_a_pool_draws_hard_ids_only():
    sampler, labels = hard_sampler(recycle=True)
    draws(sampler, 5)
    sampler.accept_pools({k: np.array(ids) for k, ids in HARD.items()})
    drawn = draws(sampler, 5)
    ids = ids_of(drawn)
    assert all(draw.hard.all() for draw in drawn)
    assert np.bincount(labels[ids]).tolist() == [25, 25]
    times = np.bincount(ids, minlength=150)
    assert sorted(times[HARD[0]]) == [8, 8, 9]
    assert sorted(times[HARD[1]]) == [12, 13]


def test_without_recycling_each_hard_id_comes_once_before_any_other_of_its_class():
    sampler, labels = hard_sampler(recycle=False)
    sampler.accept_pools({k: np.array(ids) for k, ids in HARD.items()})
    drawn = draws(sampler, 5)
    ids, hard = ids_of(drawn), np.concatenate([draw.hard for draw in drawn])
    for k, pool in HARD.items():
        of_class = labels[ids] == k
        assert sorted(ids[of_class][: len(pool)]) == pool
        assert hard[of_class].tolist() == [True] * len(pool) + [False] * (25 - len(pool))


def test_a_pool_is_shuffled_anew_each_epoch_it_is_used():
    sampler, _ = hard_sampler(batch_size=100, steps=1, max_age=2)
    sampler.accept_pools({0: np.arange(50), 1: np.arange(100, 150)})
    first, second = draws(sampler, 2)
    assert first.hard.all()
    assert second.hard.all()
    assert first.ids[first.classes == 0].tolist() != second.ids[second.classes == 0].tolist()


def test_an_empty_pool_means_random():
    sampler, labels = hard_sampler()
    sampler.accept_pools({0: np.array([], np.int64), 1: np.array([120])})
    for draw in draws(sampler, 5):
        assert draw.hard.tolist() == (labels[draw.ids] == 1).tolist()
        assert (draw.ids[draw.hard] == 120).all()


def test_mining_restricted_to_healthy_is_hard_negative_mining():
    sampler, _ = hard_sampler(classes=["healthy"])
    sampler.accept_pools({0: np.array([7])})
    for draw in draws(sampler, 5):
        assert draw.hard.tolist() == (draw.classes == 0).tolist()
    with pytest.raises(UsageError, match=r"classes \[1\]; hard.classes are \[0\]"):
        sampler.accept_pools({1: np.array([120])})


def test_tumor_stands_for_all_classes_but_healthy():
    index, _ = index_of([50, 50, 50], ("healthy", "edema", "core"))
    assert make("hard", index, healthy_share=None, classes=["tumor"]).hard_classes == (1, 2)


def test_pools_expire_at_max_age_and_join_before_it():
    sampler, _ = hard_sampler(batch_size=100, steps=1, max_age=2)
    sampler.accept_pools({0: np.array([1]), 1: np.array([101])})
    assert set(sampler.next().ids) == {1, 101}
    sampler.accept_pools({0: np.array([2])})
    assert set(sampler.next().ids) == {1, 2, 101}
    draw = sampler.next()
    assert set(draw.ids[draw.classes == 0]) == {2}
    assert not draw.hard[draw.classes == 1].any()
    assert not sampler.next().hard.any()


def test_pools_are_exchanged_between_epochs():
    sampler, _ = hard_sampler()
    sampler.next()
    with pytest.raises(UsageError, match="between epochs, not at step 1 of 5"):
        sampler.accept_pools({})


# ---- shares that move


DRIFTING = ("balanced", "ratio", "hard")


def drifting(kind="balanced", counts=(900, 90, 10), **knobs):
    index, _ = index_of(list(counts))
    return make(
        kind, index, **({"batch_size": 20, "steps": 7, "drift": "to_natural", "n_epochs": 5} | knobs)
    ), index


def test_shares_move_in_equal_steps_from_balanced_to_natural():
    sampler, _ = drifting()
    seen = []
    for _ in range(6):
        seen.append(sampler.requested.tolist())
        drawn = draws(sampler, 7)
        mix = np.mean([np.bincount(draw.classes, minlength=3) for draw in drawn], axis=0) / 20
        assert mix == pytest.approx(seen[-1], abs=0.03)
    natural = np.array([0.9, 0.09, 0.01])
    assert np.diff(seen[:5], axis=0) == pytest.approx(np.tile((natural - 1 / 3) / 4, (4, 1)))
    assert seen[0] == pytest.approx([1 / 3] * 3)
    assert seen[4] == pytest.approx(natural)
    assert seen[5] == pytest.approx(natural)  # and stays there
    assert sampler.requested_in(1).tolist() == seen[0]


@pytest.mark.parametrize("kind", DRIFTING)
def test_each_batch_of_a_drifting_epoch_has_exact_counts(kind):
    sampler, _ = drifting(kind)
    for _ in range(35):
        exact = sampler.requested * 20
        n_of_class = np.bincount(sampler.next().classes, minlength=3)
        assert n_of_class.sum() == 20
        assert (n_of_class >= np.floor(exact - 1e-9)).all()
        assert (n_of_class <= np.ceil(exact + 1e-9)).all()


def test_one_epoch_has_nowhere_to_move_and_keeps_the_shares_asked_for():
    sampler, _ = drifting(n_epochs=1)
    assert sampler.requested.tolist() == [1 / 3] * 3


@pytest.mark.parametrize("kind", DRIFTING)
@pytest.mark.parametrize("stop", [3, 7, 16])
def test_a_drifting_run_resumes_to_the_bit_on_any_number_of_ranks(kind, stop):
    build = lambda **ranks: drifting(kind, **ranks)[0]  # noqa: E731
    first = with_pools(build(), drifting(kind)[1], np.random.default_rng(1))
    draws(first, stop)
    state = first.state_dict()
    rest = draws(first, 20)
    halves = [build(rank=r, n_ranks=2) for r in range(2)]
    for half in halves:
        half.load_state_dict(state)
    for one, *two in zip(rest, *(draws(half, 20) for half in halves), strict=True):
        assert np.stack([draw.ids for draw in two], axis=1).ravel().tolist() == one.ids.tolist()


def test_a_class_without_a_share_drifts_in():
    sampler, _ = drifting(
        "ratio", shares={"healthy": 0.5, "edema": 0.5}, healthy_share=None, counts=(80, 10, 10)
    )
    assert sampler.requested_in(1).tolist() == [0.5, 0.5, 0.0]
    assert sampler.requested_in(3) == pytest.approx([0.65, 0.3, 0.05])


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"n_epochs": None}, "sampler.drift 'to_natural': needs the number of epochs; got None"),
        ({"steps": None}, r"needs training\.steps"),
    ],
)
def test_a_drift_that_cannot_be_is_refused(knobs, said):
    with pytest.raises(UsageError, match=said):
        drifting(**knobs)


def test_a_drift_over_other_epochs_is_another_run():
    with pytest.raises(UsageError, match=r"training\.epochs 5: the run to resume has 6"):
        drifting()[0].load_state_dict(drifting(n_epochs=6)[0].state_dict())
    without = make("balanced", index_of([900, 90, 10])[0], batch_size=20, steps=7).state_dict()
    with pytest.raises(UsageError, match=r"training\.epochs 5: the run to resume has None"):
        drifting()[0].load_state_dict(without)


# ---- all strategies


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("steps", [7, None])
def test_the_ranks_lists_interleave_to_exactly_one_ranks_list(kind, steps):
    index, _ = index_of([120, 30, 11])

    def build(**ranks):
        sampler = make(kind, index, batch_size=12, steps=steps, **ranks)
        return with_pools(sampler, index, np.random.default_rng(1))

    whole = draws(build(), 16)
    for n_ranks in (2, 3):
        parts = [draws(build(rank=r, n_ranks=n_ranks), 16) for r in range(n_ranks)]
        for one, *shards in zip(whole, *parts, strict=True):
            for name in ("ids", "classes", "hard", "positions"):
                joined = np.stack([getattr(shard, name) for shard in shards], axis=1).ravel()
                assert joined.tolist() == getattr(one, name).tolist()


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("stop", [0, 3, 9])
def test_resume_in_mid_epoch_equals_no_stop(kind, stop):
    index, _ = index_of([120, 30, 11])
    first = with_pools(make(kind, index, batch_size=12, steps=7, max_age=3), index, np.random.default_rng(1))
    draws(first, stop)
    state = first.state_dict()
    rest = ids_of(draws(first, 12))
    again = make(kind, index, batch_size=12, steps=7, max_age=3)
    again.next()
    again.load_state_dict(state)
    assert ids_of(draws(again, 12)).tolist() == rest.tolist()
    assert (again.epoch, again.step) == (first.epoch, first.step)


def test_blocks_do_not_show(monkeypatch):
    index, labels = index_of([1000, 100])
    monkeypatch.setattr("brats_seg.imbalance.sampler._BLOCK_DRAWS", 30)
    sampler = make("hard", index, recycle=False, steps=8)
    sampler.accept_pools({0: np.arange(100, 117), 1: np.arange(1000, 1033)})
    drawn = draws(sampler, 8)
    ids, hard = ids_of(drawn), np.concatenate([draw.hard for draw in drawn])
    assert sorted(ids[hard & (labels[ids] == 0)]) == list(range(100, 117))
    assert sorted(ids[hard]) == [*range(100, 117), *range(1000, 1033)]
    assert len(np.unique(ids[~hard & (labels[ids] == 0)])) > 15


@pytest.mark.parametrize(("knob", "value"), [("seed", 1), ("batch_size", 20), ("steps", 6)])
def test_a_resumed_run_must_have_the_same_plan(knob, value):
    index, _ = index_of([50, 50])
    with pytest.raises(UsageError, match=rf"training\.{knob} {value}: the run to resume has"):
        make("balanced", index, **{knob: value}).load_state_dict(make("balanced", index).state_dict())


def test_the_state_is_plain():
    sampler, _ = hard_sampler()
    sampler.accept_pools({0: np.array([4, 2, 2])})
    state = sampler.state_dict()
    pools = state.pop("pools")
    assert all(type(value) is int for value in state.values())
    assert [(pool["class"], pool["epoch"], pool["ids"].tolist()) for pool in pools] == [
        (0, 1, [2, 4]),
        (1, 1, []),
    ]


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"batch_size": 0}, "training.batch_size 0"),
        ({"steps": 0}, "training.steps 0"),
        ({"seed": -1}, "training.seed -1"),
        ({"n_ranks": 3}, "training.batch_size 10: 3 ranks"),
        ({"rank": 2, "n_ranks": 2}, r"rank 2: must lie in 0\.\.1"),
        (
            {"kind": "hard", "classes": ["ivory"]},
            "hard.classes: no class 'ivory' in the bank; the classes are healthy, edema",
        ),
    ],
)
def test_wrong_settings_are_refused_before_any_draw(knobs, said):
    index, _ = index_of([50, 50])
    with pytest.raises(UsageError, match=said):
        make(**({"kind": "balanced", "index": index} | knobs))


def test_a_name_that_no_sampler_has_is_refused_with_the_names():
    with pytest.raises(UsageError, match=r"kind: Input should be 'random', 'balanced', .* \(got 'blanced'\)"):
        make_sampler("blanced", index_of([50, 50])[0], batch_size=10, steps=5, seed=0)


@given(
    st.sampled_from(list(SAMPLERS)),
    st.lists(st.integers(1, 300), min_size=1, max_size=5),
    st.integers(1, 40),
    st.integers(1, 3),
    st.integers(0, 2**40),
)
def test_no_id_of_another_class_and_exact_counts(kind, counts, per_rank, n_ranks, seed):
    index, labels = index_of(counts)
    samplers = [
        make(kind, index, batch_size=per_rank * n_ranks, steps=4, seed=seed, rank=r, n_ranks=n_ranks)
        for r in range(n_ranks)
    ]
    for sampler in samplers:
        with_pools(sampler, index, np.random.default_rng(0))
    for _ in range(6):
        parts = [sampler.next() for sampler in samplers]
        ids, classes = ids_of(parts), np.concatenate([draw.classes for draw in parts])
        assert (labels[ids] == classes).all()
        if kind != "random":
            exact = samplers[0].requested * len(ids)
            counted = np.bincount(classes, minlength=len(counts))
            assert (counted >= np.floor(exact - 1e-9)).all()
            assert (counted <= np.ceil(exact + 1e-9)).all()


@given(
    st.lists(st.integers(1, 5000), min_size=1, max_size=6),
    st.integers(1, 200),
    st.integers(1, 3),
    st.integers(0, 2**40),
)
def test_random_is_within_6_sigma_for_any_counts(counts, per_rank, n_ranks, seed):
    index, labels = index_of(counts, [str(k) for k in range(len(counts))])
    samplers = [
        make("random", index, batch_size=per_rank * n_ranks, steps=20, seed=seed, rank=r, n_ranks=n_ranks)
        for r in range(n_ranks)
    ]
    ids = np.concatenate([ids_of(draws(sampler, 20)) for sampler in samplers])
    n, natural = len(ids), np.array(counts) / sum(counts)
    drawn = np.bincount(labels[ids], minlength=len(counts))
    # and 6 more, for the skew of a class that is drawn a few times only
    assert (np.abs(drawn - n * natural) <= 6 * np.sqrt(n * natural * (1 - natural)) + 6).all()


WEIGHTS = st.lists(st.integers(0, 99), min_size=2, max_size=5).filter(any)


@given(st.sampled_from(["ratio", "hard"]), WEIGHTS, st.integers(1, 40), st.integers(1, 3))
def test_any_shares_give_exact_counts_in_every_batch(kind, weights, per_rank, n_ranks):
    index, labels = index_of([50] * len(weights))
    shares = {name: weight / sum(weights) for name, weight in zip(index.class_names, weights, strict=True)}
    knobs = {"batch_size": per_rank * n_ranks, "steps": 4, "shares": shares, "healthy_share": None}
    samplers = [
        with_pools(make(kind, index, rank=r, n_ranks=n_ranks, **knobs), index, np.random.default_rng(0))
        for r in range(n_ranks)
    ]
    exact = np.array(weights) / sum(weights) * per_rank * n_ranks
    for _ in range(6):
        counted = np.bincount(
            labels[np.concatenate([sampler.next().ids for sampler in samplers])], minlength=len(weights)
        )
        assert (counted >= np.floor(exact - 1e-9)).all()
        assert (counted <= np.ceil(exact + 1e-9)).all()


def test_by_default_no_pool_repeats():
    index, _ = index_of([100, 50])
    sampler = make("hard", index)
    sampler.accept_pools({0: np.arange(4), 1: np.arange(100, 105)})
    drawn = draws(sampler, 5)
    ids, hard = ids_of(drawn), np.concatenate([draw.hard for draw in drawn])
    assert sorted(ids[hard].tolist()) == [0, 1, 2, 3, 100, 101, 102, 103, 104]
    assert (Hard().recycle, Hard().subset) == (False, 20_000)
