import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brats_seg.core.errors import UsageError
from brats_seg.inference.decisions import Cleanup, clean_up

FOUR = ("healthy", "necrotic_or_non_enhancing", "edema", "enhancing_core")
FIVE = ("healthy", "necrotic_core", "edema", "non_enhancing_core", "enhancing_core")
MM = (1.0, 1.0, 1.0)


def empty() -> np.ndarray:
    return np.zeros((6, 12, 12), np.uint8)


def test_nothing_is_done_by_default():
    labels = empty()
    labels[2, 3, 4] = 3
    assert clean_up(labels, classes=FOUR, spacing_mm=MM, cleanup=Cleanup()) is labels


def test_a_component_under_the_threshold_goes_and_one_at_it_stays():
    labels = empty()
    labels[1, 1, 1:5] = 2
    labels[1, 8, 1:6] = 2
    cleaned = clean_up(labels, classes=FOUR, spacing_mm=MM, cleanup=Cleanup(min_component_mm3=5.0))
    assert (cleaned[1, 1] == 0).all()
    assert np.count_nonzero(cleaned[1, 8]) == 5
    assert np.count_nonzero(labels) == 9  # the one given is left as it was


def test_classes_that_touch_at_a_corner_are_one_component():
    labels = empty()
    labels[1, 1, 1], labels[2, 2, 2], labels[3, 3, 3] = 1, 2, 3
    assert np.array_equal(
        clean_up(labels, classes=FOUR, spacing_mm=MM, cleanup=Cleanup(min_component_mm3=3.0)), labels
    )


def test_a_component_under_the_share_of_the_largest_goes_and_the_largest_stays():
    labels = empty()
    labels[1, 1, 1:11] = 2  # 10 voxels: the largest
    labels[1, 5, 1:3] = 2  # 2
    labels[1, 9, 1] = 2  # 1
    for share, n_left in ((0.0, 13), (0.15, 12), (0.2, 12), (0.25, 10), (1.0, 10)):
        cleaned = clean_up(labels, classes=FOUR, spacing_mm=MM, cleanup=Cleanup(min_component_share=share))
        assert np.count_nonzero(cleaned) == n_left
    nothing = empty()
    assert not clean_up(nothing, classes=FOUR, spacing_mm=MM, cleanup=Cleanup(min_component_share=0.5)).any()


def test_a_small_tumor_that_stands_alone_stays_by_its_share_and_goes_by_its_volume():
    labels = empty()
    labels[1, 1, 1:10] = 2  # 9 mm3
    for cleanup, n_left in (
        (Cleanup(min_component_share=0.5), 9),
        (Cleanup(10.0, min_component_share=0.5), 0),
    ):
        assert np.count_nonzero(clean_up(labels, classes=FOUR, spacing_mm=MM, cleanup=cleanup)) == n_left


def test_thresholds_are_volumes_not_voxels():
    labels = empty()
    labels[1, 1, 1:5] = 3  # 4 voxels of 2 mm3
    for threshold, stays in ((8.0, True), (8.1, False)):
        thick = clean_up(
            labels, classes=FOUR, spacing_mm=(2.0, 1.0, 1.0), cleanup=Cleanup(min_component_mm3=threshold)
        )
        assert thick.any() == stays
        core = clean_up(
            labels, classes=FOUR, spacing_mm=(2.0, 1.0, 1.0), cleanup=Cleanup(min_enhancing_mm3=threshold)
        )
        assert (core[1, 1, 1] == 3) == stays


@pytest.mark.parametrize(("classes", "enhancing", "becomes"), [(FOUR, 3, 1), (FIVE, 4, 1)])
def test_a_little_enhancing_core_becomes_necrotic_core(classes, enhancing, becomes):
    labels = empty()
    labels[1, 1:4, 1:4] = 2
    labels[1, 2, 2] = enhancing
    labels[4, 9, 9] = enhancing
    few = clean_up(labels, classes=classes, spacing_mm=MM, cleanup=Cleanup(min_enhancing_mm3=3.0))
    assert few[1, 2, 2] == few[4, 9, 9] == becomes
    assert np.array_equal(few > 0, labels > 0)
    enough = clean_up(labels, classes=classes, spacing_mm=MM, cleanup=Cleanup(min_enhancing_mm3=2.0))
    assert np.array_equal(enough, labels)


def test_small_components_go_before_the_enhancing_core_is_measured():
    labels = empty()
    labels[1, 1:4, 1:4] = 2
    labels[1, 2, 2] = labels[4, 9, 9] = 3
    cleaned = clean_up(
        labels, classes=FOUR, spacing_mm=MM, cleanup=Cleanup(min_component_mm3=2.0, min_enhancing_mm3=2.0)
    )
    assert cleaned[4, 9, 9] == 0
    assert cleaned[1, 2, 2] == 1


def test_a_small_part_of_the_core_becomes_edema_and_one_of_the_enhancing_core_necrotic_core():
    labels = empty()
    labels[1, 1:5, 1:5] = 2
    labels[1, 2, 2] = 3  # a core of one voxel
    labels[3, 1:4, 1:4] = 1
    labels[3, 2, 2] = 3  # one enhancing voxel in a core of nine
    cleaned = clean_up(
        labels,
        classes=FOUR,
        spacing_mm=MM,
        cleanup=Cleanup(min_core_component_mm3=2.0, min_active_component_mm3=2.0),
    )
    assert (cleaned[1, 2, 2], cleaned[3, 2, 2]) == (2, 1)
    assert np.array_equal(cleaned > 0, labels > 0)


@given(st.integers(0, 1000), *[st.floats(0, 20)] * 4, st.floats(0, 1))
def test_cleaning_twice_is_cleaning_once_and_adds_no_tumor(seed, component, enhancing, core, active, share):
    random = np.random.default_rng(seed)
    labels = (random.integers(0, 4, (6, 8, 8)) * (random.random((6, 8, 8)) < 0.15)).astype(np.uint8)
    cleanup = Cleanup(component, enhancing, core, active, share)
    once = clean_up(labels, classes=FOUR, spacing_mm=MM, cleanup=cleanup)
    assert np.array_equal(clean_up(once, classes=FOUR, spacing_mm=MM, cleanup=cleanup), once)
    assert not ((once > 0) & (labels == 0)).any()


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UsageError, match="min_component_mm3 -1"):
        Cleanup(min_component_mm3=-1.0)
    with pytest.raises(UsageError, match=r"min_component_share 1.1: from 0 to 1"):
        Cleanup(min_component_share=1.1)
    with pytest.raises(UsageError, match="needs the classes enhancing_core"):
        clean_up(empty(), classes=("healthy", "edema"), spacing_mm=MM, cleanup=Cleanup(min_enhancing_mm3=1.0))
