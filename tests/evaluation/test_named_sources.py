"""Our definitions against the packages they are named after, where those are installed."""

import importlib
import math
import warnings
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from monai.metrics import DiceMetric, HausdorffDistanceMetric
from scipy import ndimage

from brats_seg.evaluation.overlap import joint_histogram, overlap_scores
from brats_seg.evaluation.scores import score_case
from brats_seg.evaluation.surface import (
    SurfaceDistances,
    distances_for,
    hd95_mm,
    patch_distances,
    surface_dice,
)
from brats_seg.evaluation.table import Score
from brats_seg.scans.labels import REGIONS, common_classes, region_classes, schema_named, to_tissue
from brats_seg.scans.layouts import find_cases
from brats_seg.scans.volume import read_volume

SPACING = st.tuples(*[st.sampled_from([0.5, 1.0, 1.25, 5.0])] * 3)
NAN = math.nan
INSTALLED_BY = {"medpy": "'brats-seg[bench]'", "surface_distance": "'brats-seg[bench]'"}
"""What installs a package of another name than its own: `panoptica` is in no extra."""


@st.composite
def masks_and_spacing(draw) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Two masks of one shape, neither empty, and a voxel size."""
    shape = draw(array_shapes(min_dims=3, max_dims=3, min_side=2, max_side=7))
    a, b = (draw(arrays(bool, shape, elements=st.booleans(), fill=st.booleans())) for _ in range(2))
    assume(a.any() and b.any())
    return a, b, draw(SPACING)


def source(name: str) -> ModuleType:
    """A module of a package that may be absent; its own warnings are not ours."""
    package = name.partition(".")[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(
            package, reason=f"{package} is not installed: pip install {INSTALLED_BY.get(package, package)}"
        )
        return importlib.import_module(name)


def by_medpy(a: np.ndarray, b: np.ndarray, spacing) -> float:
    return float(source("medpy.metric.binary").hd95(b, a, voxelspacing=spacing))


def by_panoptica(a: np.ndarray, b: np.ndarray, spacing) -> float:
    return float(
        source("panoptica.metrics.hausdorff_distance")._compute_hausdorff_distance95(
            a, b, voxelspacing=spacing
        )
    )


def by_surface_distance(
    a: np.ndarray, b: np.ndarray, spacing, *, tolerance_mm: float = 1.0
) -> tuple[float, float]:
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
    """Ten voxels in line against eleven: one distance of 1 mm among 21, which the 95th percentile just leaves
    out.
    """
    line, longer = np.zeros((3, 3, 14), bool), np.zeros((3, 3, 14), bool)
    line[1, 1, :10], longer[1, 1, :11] = True, True
    assert hd95(line, longer, (1.0, 1.0, 1.0)) == 0.0
    assert hd95_mm(line, longer, spacing_mm=(1, 1, 1), definition="pooled") == 0.0


@given(masks_and_spacing())
def test_pooled_hd95_is_medpys(drawn):
    a, b, spacing = drawn
    assert hd95_mm(a, b, spacing_mm=spacing, definition="pooled") == pytest.approx(
        by_medpy(a, b, spacing), abs=1e-6
    )


@given(masks_and_spacing())
def test_pooled_hd95_and_dice_are_panopticas(drawn):
    a, b, spacing = drawn
    assert hd95_mm(a, b, spacing_mm=spacing, definition="pooled") == pytest.approx(
        by_panoptica(a, b, spacing), abs=1e-4
    )
    overlap = overlap_scores(joint_histogram(a.view(np.uint8), b.view(np.uint8), 2), (1,))
    assert overlap.dice == pytest.approx(source("panoptica.metrics.dice")._compute_dice_coefficient(a, b))


@given(masks_and_spacing(), st.sampled_from([0.5, 1.0, 2.0]))
def test_weighted_hd95_and_surface_dice_are_surface_distances(drawn, tolerance_mm):
    a, b, spacing = drawn
    hd95, dice = by_surface_distance(a, b, spacing, tolerance_mm=tolerance_mm)
    ours = patch_distances(a, b, spacing_mm=spacing)
    assert surface_dice(ours, tolerance_mm=tolerance_mm) == pytest.approx(dice, abs=1e-6)
    found = hd95_mm(a, b, spacing_mm=spacing, definition="surface_weighted")
    assert found == pytest.approx(hd95, abs=1e-6) or _on_a_step(ours)


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


def by_monai(a: np.ndarray, b: np.ndarray, spacing) -> tuple[float, float]:
    """Dice and HD95."""
    reference, prediction = (torch.from_numpy(mask)[None, None] for mask in (a, b))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls itself by an old name
        dice = DiceMetric(include_background=True, reduction="none")(prediction.float(), reference.float())
        hd95 = HausdorffDistanceMetric(include_background=True, percentile=95, reduction="none")(
            prediction, reference, spacing=spacing
        )
    return dice.item(), hd95.item()


def by_lesion_wise_code(a: np.ndarray, b: np.ndarray, spacing) -> tuple[float, float]:
    """Lesion-wise Dice and HD95 by the steps of the challenge's own program, over the whole image, with its
    penalties of 0 and 374 mm.
    """
    grow, touch = ndimage.generate_binary_structure(3, 2), np.ones((3, 3, 3), bool)
    predicted, n_predicted = ndimage.label(b, touch)
    lesions = ndimage.label(ndimage.binary_dilation(a, grow, iterations=3), touch)[0] * a
    found: set[int] = set()
    scores: list[tuple[float, float]] = []
    for lesion in range(1, lesions.max(initial=0) + 1):
        own = lesions == lesion
        hits = set(np.unique(predicted[ndimage.binary_dilation(own, grow, iterations=3)])) - {0}
        found |= hits
        if own.sum() * np.prod(spacing) > 50:
            answer = np.isin(predicted, list(hits))
            hd95 = by_surface_distance(own, answer, spacing)[0] if hits else 374.0
            scores.append((2 * (own & answer).sum() / (own.sum() + answer.sum()), hd95))
    scores += [(0.0, 374.0)] * (n_predicted - len(found))
    return tuple(np.mean(scores, axis=0)) if scores else (1.0, 0.0)


SOURCE_OF_EMPTY = {
    "brats2013": ((NAN, NAN), (0.0, NAN)),
    "nnunet": ((NAN, NAN), (0.0, NAN)),
    "brats2020": ((1.0, 0.0), (0.0, 373.12866)),
    "brats2020_pooled_hd95": ((1.0, 0.0), (0.0, 373.12866)),
    "brats2023": ((1.0, 0.0), (0.0, 374.0)),
}
"""Dice and HD95 where a region is empty in both, and in one: no package says; the organizers do."""


def by_source(convention: str, a: np.ndarray, b: np.ndarray, spacing) -> tuple[float, float]:
    """Dice and HD95 of a region."""
    if not (a.any() and b.any()):
        return SOURCE_OF_EMPTY[convention][int(a.any() or b.any())]
    if convention in ("nnunet", "brats2020_pooled_hd95"):
        return float(source("medpy.metric.binary").dc(b, a)), by_medpy(a, b, spacing)
    dice, hd95 = by_monai(a, b, spacing)
    return dice, by_surface_distance(a, b, spacing)[0] if convention == "brats2023" else hd95


def check_against_sources(
    reference: np.ndarray, prediction: np.ndarray, classes: tuple[str, ...], spacing
) -> None:
    """Every region under every convention."""
    scores = score_case(
        reference,
        prediction,
        classes=classes,
        spacing_mm=spacing,
        conventions=tuple(SOURCE_OF_EMPTY),
        tissues=False,
    )
    for score in scores:
        members = region_classes(score.region, classes)
        a, b = np.isin(reference, members), np.isin(prediction, members)
        dice, hd95 = by_source(score.convention, a, b, spacing)
        assert score.dice == pytest.approx(dice, abs=1e-4, nan_ok=True), score
        assert score.hd95_mm == pytest.approx(hd95, abs=1e-4, nan_ok=True) or _is_on_a_step(
            score, a, b, spacing
        ), score
        if score.convention == "brats2023":
            lesion_dice, lesion_hd95 = by_lesion_wise_code(a, b, spacing)
            assert score.lesion_dice == pytest.approx(lesion_dice, abs=1e-4), score
            assert score.lesion_hd95_mm == pytest.approx(lesion_hd95, abs=1e-4) or _is_on_a_step(
                score, a, b, spacing
            ), score


@given(st.data())
def test_every_convention_is_its_source_whatever_is_empty(data):
    """Blocks of tissue, so that some lesions are over 50 mm3 and some under; each class may be missing on
    either side, or all of them.
    """
    shape, spacing = (9, 10, 26), data.draw(st.sampled_from([(1.0, 1.0, 1.0), (2.0, 1.0, 1.0)]))
    maps = []
    for _ in range(2):
        tissue = np.zeros(shape, np.uint8)
        for value in data.draw(st.sets(st.sampled_from((1, 2, 3)))):
            for _ in range(data.draw(st.integers(1, 2))):
                at = [data.draw(st.integers(0, n - 2)) for n in shape]
                side = [data.draw(st.integers(1, 5)) for _ in shape]
                tissue[tuple(slice(first, first + n) for first, n in zip(at, side, strict=True))] = value
        maps.append(tissue)
    check_against_sources(*maps, ("healthy", "necrotic_or_non_enhancing", "edema", "enhancing_core"), spacing)


@pytest.mark.parametrize("missing", ["in both", "in the reference", "in the prediction"])
@pytest.mark.parametrize("classes_gone", [(3,), (1, 3), (1, 2, 3)], ids=["active", "core", "whole"])
def test_empty_regions_in_every_combination(missing, classes_gone):
    full = np.zeros((9, 10, 12), np.uint8)
    full[1:7, 1:6, 1:6], full[2:5, 2:5, 2:5], full[2:4, 3:5, 6:9] = 2, 1, 3
    without = np.where(np.isin(full, classes_gone), 0, full).astype(np.uint8)
    reference, prediction = {
        "in both": (without, without),
        "in the reference": (without, full),
        "in the prediction": (full, without),
    }[missing]
    check_against_sources(
        reference,
        prediction,
        ("healthy", "necrotic_or_non_enhancing", "edema", "enhancing_core"),
        (1.0, 1.0, 1.0),
    )


def test_real_regions_are_scored_as_the_sources_score_them(real_data):
    """A real annotation against itself, moved, with a hole and a false blob: every region, each convention by
    its own source.
    """
    case = next(c for c in find_cases(real_data).cases if c.label is not None)
    classes = common_classes([schema_named(case.schema)])
    tissue = to_tissue(read_volume(case.label)[0], schema_named(case.schema), classes)
    inside = np.argwhere(tissue != 0)
    box = tuple(
        slice(max(0, low - 4), high + 5) for low, high in zip(inside.min(0), inside.max(0), strict=True)
    )
    reference = np.ascontiguousarray(tissue[box])
    prediction = np.roll(reference, (1, 2, -1), (0, 1, 2))
    prediction[tuple(slice(n // 2 - 3, n // 2 + 3) for n in reference.shape)] = 0
    prediction[:3, :3, :3] = classes.index("enhancing_core")
    mm = (1.0, 1.0, 1.0)
    check_against_sources(reference, prediction, classes, mm)
    for region in REGIONS:
        members = region_classes(region, classes)
        a, b = np.isin(reference, members), np.isin(prediction, members)
        assert hd95_mm(a, b, spacing_mm=mm, definition="pooled") == pytest.approx(
            by_panoptica(a, b, mm), abs=1e-4
        )
        _, dice = by_surface_distance(a, b, mm)
        assert surface_dice(
            distances_for(a, b, spacing_mm=mm, definition="surface_weighted"), tolerance_mm=1.0
        ) == pytest.approx(dice)


def _is_on_a_step(score: Score, a: np.ndarray, b: np.ndarray, spacing) -> bool:
    """`_on_a_step` of a region or of one of its lesions."""
    if score.convention != "brats2023":
        return False
    parts = [ndimage.label(mask, np.ones((3, 3, 3)))[0] for mask in (a, b)]
    masks = [
        [mask] + [parts[i] == k for k in range(1, parts[i].max(initial=0) + 1)]
        for i, mask in enumerate((a, b))
    ]
    return any(
        _on_a_step(patch_distances(x, y, spacing_mm=spacing))
        for x in masks[0]
        for y in masks[1]
        if x.any() and y.any()
    )


def _on_a_step(distances: SurfaceDistances) -> bool:
    """95 % of the area falls on the border of two distances: sums in another order may fall on either
    side.
    """
    surfaces = (
        (distances.from_reference_mm, distances.reference_weights),
        (distances.from_prediction_mm, distances.prediction_weights),
    )
    reached = [np.cumsum(areas[np.argsort(mm, kind="stable")]) / areas.sum() for mm, areas in surfaces]
    return min(np.abs(shares - 0.95).min() for shares in reached) < 1e-9
