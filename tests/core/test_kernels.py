"""Each loop of the bank's, against its NumPy twin: equal to the bit."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from brats_seg.core import kernels

values16 = arrays(np.uint16, st.integers(0, 50), elements=st.integers(0, 65535))
bytes_ = arrays(np.uint8, st.integers(0, 200), elements=st.sampled_from([0, 1, 2, 3, 4, 254, 255]))


@given(values16)
@settings(max_examples=50, deadline=None)
def test_histogram(values: np.ndarray) -> None:
    assert np.array_equal(kernels.histogram16(values), kernels.histogram16_numpy(values))


@given(values16, st.integers(0, 2))
@settings(max_examples=50, deadline=None)
def test_look_up(values: np.ndarray, channel: int) -> None:
    rng = np.random.default_rng(len(values))
    table, marks = (
        rng.integers(0, 65536, 65536).astype(np.uint16),
        rng.integers(0, 2, len(values)).astype(np.uint8),
    )
    ours, twin = np.zeros((2, len(values), 3), np.uint16)
    kernels.look_up16(values, table, marks, ours, channel)
    kernels.look_up16_numpy(values, table, marks, twin, channel)
    assert np.array_equal(ours, twin)


@given(values16)
@settings(max_examples=50, deadline=None)
def test_mark_nonzero_adds_to_what_is_marked(values: np.ndarray) -> None:
    ours, twin = np.zeros((2, len(values)), np.uint8)
    ours[::3] = twin[::3] = 1
    kernels.mark_nonzero(values, ours)
    kernels.mark_nonzero_numpy(values, twin)
    assert np.array_equal(ours, twin)
    assert set(ours[::3].tolist()) <= {1}


@given(bytes_, st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_group_positions(labels: np.ndarray, n_classes: int) -> None:
    for ours, twin in zip(
        kernels.group_positions(labels, n_classes),
        kernels.group_positions_numpy(labels, n_classes),
        strict=True,
    ):
        assert ours.dtype == twin.dtype
        assert np.array_equal(ours, twin)


@given(bytes_, st.randoms())
@settings(max_examples=50, deadline=None)
def test_mark_outside(tissue: np.ndarray, random) -> None:
    marks = np.array([random.randint(0, 1) for _ in tissue], np.uint8)
    ours, twin = tissue.copy(), tissue.copy()
    assert kernels.mark_outside(ours, marks, 255) == kernels.mark_outside_numpy(twin, marks, 255)
    assert np.array_equal(ours, twin)


def test_what_lies_outside_by_hand() -> None:
    tissue = np.array([0, 0, 3, 2], np.uint8)
    assert kernels.mark_outside(tissue, np.array([0, 1, 0, 1], np.uint8), 255) == 1
    assert tissue.tolist() == [255, 0, 3, 2]


def test_positions_by_hand() -> None:
    counts, positions = kernels.group_positions(np.array([2, 0, 255, 2, 0, 1], np.uint8), 3)
    assert counts.tolist() == [2, 1, 2]
    assert positions.tolist() == [1, 4, 5, 0, 3]
