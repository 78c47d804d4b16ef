import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from monai.metrics import HausdorffDistanceMetric, SurfaceDiceMetric
from monai.metrics.utils import create_table_neighbour_code_to_surface_area
from scipy import ndimage

from brats_seg.evaluation.surface import (
    REACH_VOX,
    _patch_areas,
    distances_for,
    hd95_mm,
    joint_crop,
    surface_dice,
    voxel_distances,
)

DEFINITIONS = ("directed", "pooled", "surface_weighted")
SPACING = st.tuples(*[st.sampled_from([0.5, 1.0, 1.25, 5.0])] * 3)


def mask_with(*voxels: tuple[int, int, int], shape=(5, 6, 7)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for voxel in voxels:
        mask[voxel] = True
    return mask


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_two_voxels_two_mm_apart(definition):
    here, there = mask_with((2, 2, 2)), mask_with((2, 2, 4))
    assert hd95_mm(here, there, spacing_mm=(3, 3, 1), definition=definition) == 2.0
    assert hd95_mm(here, here, spacing_mm=(3, 3, 1), definition=definition) == 0.0
    assert hd95_mm(here, mask_with((4, 2, 2)), spacing_mm=(3, 3, 1), definition=definition) == pytest.approx(
        6.0
    )


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_an_empty_mask_has_no_distance(definition):
    one, nothing = mask_with((0, 0, 0)), mask_with()
    for a, b in ((one, nothing), (nothing, one), (nothing, nothing)):
        assert math.isnan(hd95_mm(a, b, spacing_mm=(1, 1, 1), definition=definition))
    distances = distances_for(one, nothing, spacing_mm=(1, 1, 1), definition=definition)
    assert surface_dice(distances, tolerance_mm=100.0) == 0.0


def test_the_definitions_differ_where_they_should():
    """Ten voxels on a line against eleven: one voxel is 1 mm off, one in 11 of one surface and one in 21 of
    both.
    """
    line, longer = np.zeros((3, 3, 102), bool), np.zeros((3, 3, 102), bool)
    line[1, 1, :10], longer[1, 1, :11] = True, True
    # directed: 10 distances 0 and one 1 -> position 9.5 of 0..10, halfway; pooled: 20 zeros and one 1 ->
    # position 19 of 0..20
    assert hd95_mm(line, longer, spacing_mm=(1, 1, 1), definition="directed") == pytest.approx(0.5)
    assert hd95_mm(line, longer, spacing_mm=(1, 1, 1), definition="pooled") == 0.0


def test_surface_dice_by_hand():
    distances = voxel_distances(mask_with((2, 2, 2), (2, 2, 6)), mask_with((2, 2, 2)), spacing_mm=(1, 1, 1))
    assert surface_dice(distances, tolerance_mm=1.0) == pytest.approx(2 / 3)
    assert surface_dice(distances, tolerance_mm=4.0) == 1.0


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (5.0, 0.7, 1.3)])
def test_near_and_far_voxels_are_found_alike(spacing):
    """One blob touches the other mask, one is at the other end of the head: farther than the search on the
    grid goes.
    """
    a, b = (np.zeros((40, 60, 70), bool) for _ in range(2))
    a[2:7, 3:9, 4:9] = b[3:8, 3:9, 5:11] = True
    a[34:37, 52:56, 60:64] = True
    edges = [m ^ ndimage.binary_erosion(m) for m in (a, b)]
    maps = [ndimage.distance_transform_edt(~e, sampling=spacing) for e in edges]
    found = voxel_distances(a, b, spacing_mm=spacing)
    assert np.sort(found.from_reference_mm) == pytest.approx(np.sort(maps[1][edges[0]]))
    assert np.sort(found.from_prediction_mm) == pytest.approx(np.sort(maps[0][edges[1]]))
    assert found.from_reference_mm.max() > REACH_VOX * math.sqrt(spacing[0] * spacing[1])


def test_areas_are_those_of_surface_distance():
    for spacing in ((1.0, 1.0, 1.0), (2.0, 1.0, 0.7), (0.9, 3.0, 1.3)):
        theirs, _ = create_table_neighbour_code_to_surface_area(spacing)
        assert np.allclose(_patch_areas(spacing), theirs.numpy(), atol=1e-5)


@pytest.mark.parametrize("mm", [1.0, 2.0])
def test_areas_are_exact(mm):
    """One corner is cut off by a triangle of three sides of mm / sqrt(2): whether 95 % of the area is reached
    can hang on the last bit.
    """
    assert _patch_areas((mm, mm, mm))[1] == pytest.approx(mm**2 * math.sqrt(3) / 8, rel=1e-14)


def test_crop_holds_all_voxels_of_both():
    a, b = mask_with((1, 2, 3)).view(np.uint8), mask_with((4, 0, 3)).view(np.uint8)
    assert joint_crop(a, b) == (slice(1, 5), slice(0, 3), slice(3, 4))
    assert joint_crop(np.zeros_like(a), np.zeros_like(b)) == (slice(0, 0),) * 3


@given(st.data())
def test_hd95_and_surface_dice_are_monais(data):
    shape = data.draw(array_shapes(min_dims=3, max_dims=3, min_side=2, max_side=8))
    a, b = (data.draw(arrays(bool, shape, elements=st.booleans(), fill=st.booleans())) for _ in range(2))
    assume(a.any() and b.any())
    spacing = data.draw(SPACING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = distances_for(a, b, spacing_mm=spacing, definition="directed")
        theirs = HausdorffDistanceMetric(include_background=True, percentile=95, reduction="none")(
            _torch(b), _torch(a), spacing=spacing
        )
        near = SurfaceDiceMetric([1.0], include_background=True, reduction="none")(
            _torch(b), _torch(a), spacing=spacing
        )
    assert hd95_mm(a, b, spacing_mm=spacing) == pytest.approx(theirs.item(), abs=1e-4)
    assert surface_dice(ours, tolerance_mm=1.0) == pytest.approx(near.item(), abs=1e-4)


@given(st.data())
def test_pooled_and_weighted_by_distance_maps(data):
    """The published definitions, written out with whole distance maps as MedPy and surface-distance do."""
    shape = data.draw(array_shapes(min_dims=3, max_dims=3, min_side=2, max_side=6))
    a, b = (data.draw(arrays(bool, shape, elements=st.booleans(), fill=st.booleans())) for _ in range(2))
    assume(a.any() and b.any())
    spacing = data.draw(SPACING)
    edges = [m ^ ndimage.binary_erosion(m) for m in (a, b)]
    maps = [ndimage.distance_transform_edt(~e, sampling=spacing) for e in edges]
    pooled = np.percentile(np.concatenate((maps[1][edges[0]], maps[0][edges[1]])), 95)
    assert hd95_mm(a, b, spacing_mm=spacing, definition="pooled") == pytest.approx(pooled)

    areas, kernel = create_table_neighbour_code_to_surface_area(spacing)
    table = areas.numpy().astype(float)
    codes = [
        ndimage.correlate(
            np.pad(m, (0, 1)).astype(np.uint8), kernel[0, 0].numpy().astype(np.uint8), mode="constant"
        )
        for m in (a, b)
    ]
    edges = [(c != 0) & (c != 255) for c in codes]
    maps = [ndimage.distance_transform_edt(~e, sampling=spacing) for e in edges]
    worst = 0.0
    for distances, areas in (
        (maps[1][edges[0]], table[codes[0][edges[0]]]),
        (maps[0][edges[1]], table[codes[1][edges[1]]]),
    ):
        order = np.argsort(distances)
        reached = np.cumsum(areas[order]) / areas.sum()
        worst = max(worst, distances[order][min(np.searchsorted(reached, 0.95 - 1e-7), len(order) - 1)])
    ours = hd95_mm(a, b, spacing_mm=spacing, definition="surface_weighted")
    assert ours == pytest.approx(worst) or _at_a_step(
        distances_for(a, b, spacing_mm=spacing, definition="surface_weighted")
    )


def _at_a_step(distances) -> bool:
    """95 % of the area falls on the border of two distances: float32 and float64 areas may fall on either
    side.
    """
    for mm, weights in (
        (distances.from_reference_mm, distances.reference_weights),
        (distances.from_prediction_mm, distances.prediction_weights),
    ):
        reached = np.cumsum(weights[np.argsort(mm)]) / weights.sum()
        if np.abs(reached - 0.95).min() < 1e-5:
            return True
    return False


def _torch(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(mask)[None, None]
