"""The class mix asked for and drawn."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from brats_seg.core.errors import UsageError
from brats_seg.imbalance.groups import group_by_lesion
from brats_seg.imbalance.index import ClassIndex
from brats_seg.imbalance.ledger import CASE_COLUMNS, LEDGER_COLUMNS, LESION_COLUMNS, Ledger
from brats_seg.imbalance.sampler import Draw

HALF = np.array([0.5, 0.5])


def draw(ids, classes, hard=None):
    n = len(ids)
    return Draw(
        ids=np.array(ids),
        classes=np.array(classes),
        hard=np.array(hard or [False] * n, bool),
        positions=np.arange(n),
    )


def test_an_epoch_in_numbers_a_person_can_check():
    ledger = Ledger(("healthy", "tumor"))
    ledger.add(draw([10, 11, 70, 70], [0, 0, 1, 1], [True, False, True, True]), np.array([90, 10, 300]))
    ledger.add(draw([10, 12, 13, 71], [0, 0, 0, 1]), np.array([80, 20, 100]))
    healthy, tumor, outside = ledger.close_epoch(1, HALF)
    assert tuple(healthy) == LEDGER_COLUMNS
    assert list(healthy.values()) == [1, "healthy", 0.5, 5 / 8, 170 / 200, 5, 4, 1]
    assert list(tumor.values()) == [1, "tumor", 0.5, 3 / 8, 30 / 200, 3, 2, 2]
    assert list(outside.values()) == [1, "outside", 0.0, 0.0, 400 / 600, 0, 0, 0]


def test_each_epoch_is_a_fresh_page_and_the_prior_runs_over_all():
    ledger = Ledger(("healthy", "tumor"))
    for epoch, counts in ((1, [90, 10, 5]), (2, [50, 50, 5])):
        ledger.add(draw([1], [0]), np.array(counts))
        assert ledger.close_epoch(epoch, HALF)[0]["n_draws"] == 1
    assert ledger.effective_prior(last_epoch=1).tolist() == [0.9, 0.1]
    assert ledger.effective_prior().tolist() == [0.7, 0.3]
    assert ledger.effective_prior(first_epoch=2).tolist() == [0.5, 0.5]
    assert ledger.effective_prior(first_epoch=1, last_epoch=1).tolist() == [0.9, 0.1]
    with pytest.raises(UsageError, match="no closed epoch from 3"):
        ledger.effective_prior(first_epoch=3)
    assert ledger.effective_prior(class_weights=np.array([1.0, 7.0])).tolist() == pytest.approx([0.25, 0.75])


class OnDevice:
    """Counts that may be added, and must not be read before the epoch is closed or saved."""

    n_reads = 0

    def __init__(self, values):
        self.values = values

    def __radd__(self, other):
        assert other == 0
        return OnDevice(self.values)

    def __add__(self, other):
        return OnDevice([a + b for a, b in zip(self.values, other.values, strict=True)])

    def tolist(self):
        OnDevice.n_reads += 1
        return self.values


def test_counts_on_a_device_are_added_there_and_read_once_an_epoch():
    ledger = Ledger(("healthy", "tumor"))
    for _ in range(3):
        ledger.add(draw([1], [0]), OnDevice([90, 10, 5]))
    assert OnDevice.n_reads == 0
    assert ledger.state_dict()["voxels"].tolist() == [270, 30, 15]
    ledger.add(draw([1], [0]), OnDevice([0, 100, 0]))
    assert ledger.close_epoch(1, HALF)[1]["voxel_share"] == 130 / 400
    assert OnDevice.n_reads == 2


def test_tensors_are_counts():
    ledger = Ledger(("healthy", "tumor"))
    for _ in range(2):
        ledger.add(draw([1], [0]), torch.tensor([90, 10, 5]))
    assert ledger.state_dict()["voxels"].tolist() == [180, 20, 10]


def test_an_array_that_is_written_again_by_the_next_batch_is_counted_as_it_was():
    ledger, counts = Ledger(("healthy", "tumor")), np.array([90, 10, 5])
    ledger.add(draw([1], [0]), counts)
    counts[:] = 0
    ledger.add(draw([1], [0]), counts)
    assert ledger.state_dict()["voxels"].tolist() == [90, 10, 5]


CASE = 1 << 32


def test_the_draws_of_each_case_and_class():
    ledger = Ledger(("healthy", "tumor"))
    ledger.add(draw([7, 7, CASE + 7, 9], [0, 0, 1, 1]), np.zeros(3, np.int64))
    ledger.add(draw([7, 2 * CASE], [0, 1]), np.zeros(3, np.int64))
    rows = ledger.case_rows(4, case_names=("A", "B", "C", "D"))
    assert tuple(rows[0]) == CASE_COLUMNS
    assert [tuple(row.values()) for row in rows] == [
        (4, "A", "healthy", 3, 1), (4, "A", "tumor", 1, 1), (4, "B", "tumor", 1, 1), (4, "C", "tumor", 1, 1),
    ]  # fmt: skip


def test_the_draws_of_lesions_of_each_size():
    # Case A: healthy 0-9, tumor 10-12 and 50-149. Case B: tumor 0-9.
    parts = (np.r_[0:10, 10:13, 50:150].astype(np.uint32), np.r_[0:10].astype(np.uint32))
    counts = np.array([[10, 103], [0, 10]])
    index = ClassIndex(
        ("healthy", "tumor"), counts, part=parts.__getitem__, case_ids=np.arange(2) << 32
    ).restrict([1, 0])
    lesions = group_by_lesion(index, lambda case, positions: (positions >= 50).astype(np.int32))
    ledger = Ledger(index.class_names)
    ledger.add(draw([3, 10, 12, 149, 50, 50, CASE + 9], [0, 1, 1, 1, 1, 1, 1]), np.zeros(3, np.int64))
    rows = ledger.lesion_rows(2, index=index, lesions=lesions)
    assert tuple(rows[0]) == LESION_COLUMNS
    assert [tuple(row.values()) for row in rows] == [
        (2, "tumor", 1, 3, 3), (2, "tumor", 100, 3, 2), (2, "tumor", 1000, 0, 0), (2, "tumor", 10000, 0, 0),
    ]  # fmt: skip


def test_no_closed_epoch_has_no_prior():
    with pytest.raises(UsageError, match="exists only after the first epoch"):
        Ledger(("healthy", "tumor")).effective_prior()


def test_another_ranks_page_adds_up():
    one, other = Ledger(("healthy", "tumor")), Ledger(("healthy", "tumor"))
    one.add(draw([1, 2], [0, 1]), np.array([5, 1, 0]))
    other.add(draw([1, 3], [0, 1], [True, False]), np.array([3, 3, 6]))
    one.absorb(other.state_dict())
    healthy, tumor, outside = one.close_epoch(1, HALF)
    assert (healthy["n_draws"], healthy["n_distinct"], healthy["n_hard"], healthy["voxel_share"]) == (
        2,
        1,
        1,
        8 / 12,
    )
    assert (tumor["n_draws"], tumor["n_distinct"]) == (2, 2)
    assert outside["voxel_share"] == 6 / 18


def test_a_thousand_classes_survive_a_resume():
    names = [str(k) for k in range(1000)]
    first, second = Ledger(names), Ledger(names)
    first.add(draw([5, 6], [3, 999]), np.zeros(1001, np.int64))
    second.load_state_dict(first.state_dict())
    shares = np.full(1000, 1e-3)
    assert second.close_epoch(1, shares) == first.close_epoch(1, shares)


def test_other_classes_are_refused():
    with pytest.raises(UsageError, match="2 classes in the checkpoint, 3 in the bank"):
        Ledger("abc").load_state_dict(Ledger("ab").state_dict())


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=3, max_size=3), min_size=1, max_size=12
    ),
    st.data(),
)
def test_a_resumed_ledger_equals_one_that_never_stopped(batches, data):
    stop = data.draw(st.integers(0, len(batches)))
    straight, resumed = Ledger(("even", "odd")), Ledger(("even", "odd"))
    rows = []
    for i, batch in enumerate(batches):
        one = draw([n for n, _ in batch], [n % 2 for n, _ in batch], [hard for _, hard in batch])
        if i == stop:
            state = resumed.state_dict()
            resumed = Ledger(("even", "odd"))
            resumed.load_state_dict(state)
        for ledger in (straight, resumed):
            ledger.add(one, np.array([i, 2, 1]))
        if i % 4 == 3:
            rows.append([ledger.close_epoch(i, HALF) for ledger in (straight, resumed)])
    rows.append([ledger.close_epoch(99, HALF) for ledger in (straight, resumed)])
    for one, other in rows:
        assert one == other
    ids = {n for batch in batches[len(batches) // 4 * 4 :] for n, _ in batch}
    assert rows[-1][0][0]["n_distinct"] + rows[-1][0][1]["n_distinct"] == len(ids)
    assert (
        straight.voxel_counts().tolist()
        == resumed.voxel_counts().tolist()
        == [sum(range(len(batches))), 2 * len(batches)]
    )
