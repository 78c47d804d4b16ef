"""Each loop against its NumPy twin: equal to the bit."""

import kernel_twins as twins
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from brats_seg.core import kernels

values16 = arrays(np.uint16, st.integers(0, 50), elements=st.integers(0, 65535))
bytes_ = arrays(np.uint8, st.integers(0, 200), elements=st.sampled_from([0, 1, 2, 3, 4, 254, 255]))


@given(values16)
def test_histogram(values: np.ndarray) -> None:
    assert np.array_equal(kernels.histogram16(values), twins.histogram16_numpy(values))


@given(values16, st.integers(0, 2))
def test_look_up(values: np.ndarray, channel: int) -> None:
    rng = np.random.default_rng(len(values))
    table, marks = (
        rng.integers(0, 65536, 65536).astype(np.uint16),
        rng.integers(0, 2, len(values)).astype(np.uint8),
    )
    ours, twin = np.zeros((2, len(values), 3), np.uint16)
    kernels.look_up16(values, table, marks, ours, channel)
    twins.look_up16_numpy(values, table, marks, twin, channel)
    assert np.array_equal(ours, twin)


@given(values16)
def test_mark_nonzero_adds_to_what_is_marked(values: np.ndarray) -> None:
    ours, twin = np.zeros((2, len(values)), np.uint8)
    ours[::3] = twin[::3] = 1
    kernels.mark_nonzero(values, ours)
    twins.mark_nonzero_numpy(values, twin)
    assert np.array_equal(ours, twin)
    assert set(ours[::3].tolist()) <= {1}


@given(bytes_, st.integers(1, 5))
def test_group_positions(labels: np.ndarray, n_classes: int) -> None:
    for ours, twin in zip(
        kernels.group_positions(labels, n_classes),
        twins.group_positions_numpy(labels, n_classes),
        strict=True,
    ):
        assert ours.dtype == twin.dtype
        assert np.array_equal(ours, twin)


@given(bytes_, st.randoms())
def test_mark_outside(tissue: np.ndarray, random) -> None:
    marks = np.array([random.randint(0, 1) for _ in tissue], np.uint8)
    ours, twin = tissue.copy(), tissue.copy()
    assert kernels.mark_outside(ours, marks, 255) == twins.mark_outside_numpy(twin, marks, 255)
    assert np.array_equal(ours, twin)


def test_what_lies_outside_by_hand() -> None:
    tissue = np.array([0, 0, 3, 2], np.uint8)
    assert kernels.mark_outside(tissue, np.array([0, 1, 0, 1], np.uint8), 255) == 1
    assert tissue.tolist() == [255, 0, 3, 2]


def test_positions_by_hand() -> None:
    counts, positions = kernels.group_positions(np.array([2, 0, 255, 2, 0, 1], np.uint8), 3)
    assert counts.tolist() == [2, 1, 2]
    assert positions.tolist() == [1, 4, 5, 0, 3]


@given(st.data())
def test_counts_boxes_surfaces_and_distances(data):
    shape = data.draw(array_shapes(min_dims=3, max_dims=3, max_side=7))
    a, b = (data.draw(arrays(np.uint8, shape, elements=st.integers(0, 3), fill=st.just(0))) for _ in range(2))
    flat = a.reshape(-1), b.reshape(-1)
    words = [f[: f.size // 8 * 8].view(np.uint64) for f in flat]
    assert np.array_equal(kernels.joint_counts(*flat, *words, 3), twins.joint_counts_numpy(*flat, *words, 3))
    assert np.array_equal(kernels.joint_box(a, b), twins.joint_box_numpy(a, b))
    inside = np.isin(np.arange(256), (1, 3))
    surface = kernels.surface_voxels(a, inside)
    assert np.array_equal(surface, twins.surface_voxels_numpy(a, inside))
    assert np.array_equal(
        kernels.surface_voxels(a[:, ::-1, 1:], inside), twins.surface_voxels_numpy(a[:, ::-1, 1:], inside)
    )  # views
    steps = kernels.steps_along_x(surface)
    assert np.array_equal(steps, twins.steps_along_x_numpy(surface))
    reach, spacing = (
        data.draw(st.sampled_from([1.5, 3.0, 100.0])),
        np.array(data.draw(st.sampled_from([(1, 1, 1), (5, 0.7, 1.3)])), float),
    )
    assert np.array_equal(
        kernels.nearest_in_rows(b > 0, steps, spacing, reach),
        twins.nearest_in_rows_numpy(b > 0, steps, spacing, reach),
    )


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(1, 6), st.integers(0, 99))
def test_largest_class(n, n_y, n_x, n_classes, seed):
    rng = np.random.default_rng(seed)
    logits = rng.integers(-2, 3, (n, n_y + 2, n_x + 1, n_classes)).astype(np.float32)  # many ties
    inside, shift = rng.random((n, n_y, n_x)) < 0.7, rng.integers(-1, 2, n_classes).astype(np.float32)
    ours, plain = np.full(inside.shape, 9, np.uint8), np.full(inside.shape, 9, np.uint8)
    assert kernels.largest_class(logits, inside, shift, ours) == twins.largest_class_numpy(
        logits, inside, shift, plain
    )
    assert np.array_equal(ours, plain)
