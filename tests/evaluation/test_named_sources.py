"""Our definitions against the packages they are named after, where those are installed (extra `bench`)."""

import importlib
import warnings
from types import ModuleType

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from brats_seg.evaluation.overlap import joint_histogram, overlap_scores
from brats_seg.evaluation.scores import score_case
from brats_seg.evaluation.surface import SurfaceDistances, distances_for, hd95_mm, patch_distances, surface_dice
from brats_seg.scans.labels import REGIONS, common_classes, region_classes, schema_named, to_tissue
from brats_seg.scans.layouts import find_cases
from brats_seg.scans.volume import read_volume

SPACING = st.tuples(*[st.sampled_from([0.5, 1.0, 1.25, 5.0])] * 3)
RANDOM = settings(max_examples=60, deadline=None)


@st.composite
def masks_and_spacing(draw) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Two masks of one shape, neither empty, and a voxel size."""
    shape = draw(array_shapes(min_dims=3, max_dims=3, min_side=2, max_side=7))
    a, b = (draw(arrays(bool, shape, elements=st.booleans(), fill=st.booleans())) for _ in range(2))
    assume(a.any() and b.any())
    return a, b, draw(SPACING)


def source(name: str) -> ModuleType:
    """A module of a package that may be absent; its own warnings are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(name.partition(".")[0], reason=f"{name.partition('.')[0]} is not installed: it comes with the extra `bench`")
        return importlib.import_module(name)


def by_medpy(a: np.ndarray, b: np.ndarray, spacing) -> float:
    return float(source("medpy.metric.binary").hd95(b, a, voxelspacing=spacing))


def by_panoptica(a: np.ndarray, b: np.ndarray, spacing) -> float:
    return float(source("panoptica.metrics.hausdorff_distance")._compute_hausdorff_distance95(a, b, voxelspacing=spacing))


def by_surface_distance(a: np.ndarray, b: np.ndarray, spacing, *, tolerance_mm: float = 1.0) -> tuple[float, float]:
    """HD95 and surface Dice."""
    package = source("surface_distance")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls SciPy by its old names
        distances = package.compute_surface_distances(a, b, spacing)
        return (
            float(package.compute_robust_hausdorff(distances, 95)),
            float(package.compute_surface_dice_at_tolerance(distances, tolerance_mm)),
        )


@pytest.mark.parametrize("hd95", [by_medpy, by_panoptica])
def test_pooled_hd95_by_hand(hd95):
    """Ten voxels in line against eleven: one distance of 1 mm among 21, which the 95th percentile just leaves out."""
    line, longer = np.zeros((3, 3, 14), bool), np.zeros((3, 3, 14), bool)
    line[1, 1, :10], longer[1, 1, :11] = True, True
    assert hd95(line, longer, (1.0, 1.0, 1.0)) == 0.0
    assert hd95_mm(line, longer, spacing_mm=(1, 1, 1), definition="pooled") == 0.0


@RANDOM
@given(masks_and_spacing())
def test_pooled_hd95_is_medpys(drawn):
    a, b, spacing = drawn
    assert hd95_mm(a, b, spacing_mm=spacing, definition="pooled") == pytest.approx(by_medpy(a, b, spacing), abs=1e-6)


@RANDOM
@given(masks_and_spacing())
def test_pooled_hd95_and_dice_are_panopticas(drawn):
    a, b, spacing = drawn
    assert hd95_mm(a, b, spacing_mm=spacing, definition="pooled") == pytest.approx(by_panoptica(a, b, spacing), abs=1e-4)
    overlap = overlap_scores(joint_histogram(a.view(np.uint8), b.view(np.uint8), 2), (1,))
    assert overlap.dice == pytest.approx(source("panoptica.metrics.dice")._compute_dice_coefficient(a, b))


@RANDOM
@given(masks_and_spacing(), st.sampled_from([0.5, 1.0, 2.0]))
def test_weighted_hd95_and_surface_dice_are_surface_distances(drawn, tolerance_mm):
    a, b, spacing = drawn
    hd95, dice = by_surface_distance(a, b, spacing, tolerance_mm=tolerance_mm)
    ours = patch_distances(a, b, spacing_mm=spacing)
    assert surface_dice(ours, tolerance_mm=tolerance_mm) == pytest.approx(dice, abs=1e-6)
    found = hd95_mm(a, b, spacing_mm=spacing, definition="surface_weighted")
    assert found == pytest.approx(hd95, abs=1e-6) or _on_a_step(ours)


@RANDOM
@given(masks_and_spacing())
def test_overlap_is_medpys(drawn):
    a, b, _ = drawn
    medpy = source("medpy.metric.binary")
    ours = overlap_scores(joint_histogram(a.view(np.uint8), b.view(np.uint8), 2), (1,))
    theirs = {
        "dice": medpy.dc(b, a),
        "iou": medpy.jc(b, a),
        "sensitivity": medpy.sensitivity(b, a),
        "precision": medpy.precision(b, a),
    }
    for name, value in theirs.items():
        assert getattr(ours, name) == pytest.approx(float(value)), name
    if not a.all():
        assert ours.specificity == pytest.approx(float(medpy.specificity(b, a)))


def test_real_regions_are_scored_as_the_sources_score_them(real_data):
    """A real annotation against itself, moved and with a hole: every region, each convention by its own source."""
    case = next(c for c in find_cases(real_data).cases if c.label is not None)
    classes = common_classes([schema_named(case.schema)])
    tissue = to_tissue(read_volume(case.label)[0], schema_named(case.schema), classes)
    inside = np.argwhere(tissue != 0)
    box = tuple(slice(max(0, low - 4), high + 5) for low, high in zip(inside.min(0), inside.max(0), strict=True))
    reference = np.ascontiguousarray(tissue[box])
    prediction = np.roll(reference, (1, 2, -1), (0, 1, 2))
    prediction[tuple(slice(n // 2 - 3, n // 2 + 3) for n in reference.shape)] = 0
    mm = (1.0, 1.0, 1.0)
    scores = score_case(reference, prediction, classes=classes, spacing_mm=mm, conventions=("nnunet", "brats2023"), tissues=False)
    found = {(s.region, s.convention): s.hd95_mm for s in scores}
    for region in REGIONS:
        members = region_classes(region, classes)
        a, b = np.isin(reference, members), np.isin(prediction, members)
        assert found[region, "nnunet"] == pytest.approx(by_medpy(a, b, mm), abs=1e-4)
        assert found[region, "nnunet"] == pytest.approx(by_panoptica(a, b, mm), abs=1e-4)
        hd95, dice = by_surface_distance(a, b, mm)
        assert found[region, "brats2023"] == pytest.approx(hd95, abs=1e-4)
        assert surface_dice(distances_for(a, b, spacing_mm=mm, definition="surface_weighted"), tolerance_mm=1.0) == pytest.approx(dice)


def _on_a_step(distances: SurfaceDistances) -> bool:
    """95 % of the area falls on the border of two distances: sums in another order may fall on either side."""
    surfaces = (
        (distances.from_reference_mm, distances.reference_weights),
        (distances.from_prediction_mm, distances.prediction_weights),
    )
    reached = [np.cumsum(areas[np.argsort(mm, kind="stable")]) / areas.sum() for mm, areas in surfaces]
    return min(np.abs(shares - 0.95).min() for shares in reached) < 1e-9
