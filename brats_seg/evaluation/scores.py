"""One case -> the scores of its regions and tissue classes, under each convention."""

import math
from collections.abc import Sequence
from typing import Any

from brats_seg.core.shapes import TissueMap
from brats_seg.evaluation.conventions import convention_named
from brats_seg.evaluation.lesions import Lesions
from brats_seg.evaluation.overlap import Overlap, joint_histogram, overlap_scores
from brats_seg.evaluation.pair import Pair, make_pair
from brats_seg.evaluation.surface import Spacing, hd95_of, surface_dice
from brats_seg.evaluation.table import NAN, TOLERANCE_MM, Convention, Score
from brats_seg.scans.labels import region_classes, regions_of


def score_case(
    reference: TissueMap,
    prediction: TissueMap,
    *,
    classes: Sequence[str],
    spacing_mm: Spacing,
    conventions: Sequence[str] = ("brats2020",),
    cavity_in: Sequence[str] = (),
    tissues: bool = True,
) -> tuple[Score, ...]:
    """Score every region, and every single tissue class, of one case under each convention.

    The healthy class has no surface scores: its surface is the tumor's and the image's.

    Args:
        reference: (Z, Y, X) indices into `classes`.
        prediction: the same, same shape.
        classes: tissue class names, healthy first.
        spacing_mm: voxel size along (Z, Y, X).
        conventions: keys of `CONVENTIONS`.
        cavity_in: regions that the resection cavity belongs to.
        tissues: whether single tissue classes get rows.

    Raises:
        InputError: another shape, or a class index that `classes` does not have.
        UsageError: an unknown convention.
    """
    rules = [convention_named(name) for name in conventions]
    histogram = joint_histogram(reference, prediction, len(classes))
    pair = make_pair(reference, prediction, spacing_mm=spacing_mm)
    parts = {region: region_classes(region, classes, cavity_in=cavity_in) for region in regions_of(classes)}
    if tissues:
        parts |= {tissue: (i,) for i, tissue in enumerate(classes)}
    return tuple(
        _score(pair, rule, region=region, members=members, overlap=overlap_scores(histogram, members))
        for region, members in parts.items()
        for rule in rules
    )


def _score(pair: Pair, rule: Convention, *, region: str, members: tuple[int, ...], overlap: Overlap) -> Score:
    voxel_ml = math.prod(pair.spacing_mm) / 1000
    hd95, near = _surface_scores(pair, rule, members, overlap)
    return Score(
        case="",
        region=region,
        convention=rule.name,
        n_reference_vox=overlap.n_reference,
        n_prediction_vox=overlap.n_prediction,
        dice=_unless_both_empty(overlap.dice, rule, overlap),
        iou=_unless_both_empty(overlap.iou, rule, overlap),
        # 0 / 0 with an empty reference, precision with an empty prediction: left out by every convention
        sensitivity=overlap.sensitivity,
        specificity=overlap.specificity,
        precision=overlap.precision,
        hd95_mm=hd95,
        surface_dice=near,
        reference_ml=overlap.n_reference * voxel_ml,
        prediction_ml=overlap.n_prediction * voxel_ml,
        volume_error_ml=(overlap.n_prediction - overlap.n_reference) * voxel_ml,
        **(_lesion_scores(pair.lesions(members), rule) if rule.lesion_wise and 0 not in members else {}),
    )


def _unless_both_empty(value: float, rule: Convention, overlap: Overlap) -> float:
    """An overlap of the region, or what the convention says of one that is empty in both; NaN of a score that
    cannot be had otherwise.
    """
    return rule.both_empty if overlap.n_reference == overlap.n_prediction == 0 else value


def _surface_scores(
    pair: Pair, rule: Convention, members: tuple[int, ...], overlap: Overlap
) -> tuple[float, float]:
    """HD95 and surface Dice."""
    if 0 in members:
        return NAN, NAN
    if overlap.n_reference == 0 and overlap.n_prediction == 0:
        return rule.both_empty_hd95_mm, rule.both_empty
    if overlap.n_reference == 0 or overlap.n_prediction == 0:
        return rule.one_empty_hd95_mm, rule.one_empty
    distances = pair.distances(members, rule.hd95)
    return hd95_of(distances, rule.hd95), surface_dice(distances, tolerance_mm=TOLERANCE_MM)


def _lesion_scores(lesions: Lesions, rule: Convention) -> dict[str, Any]:
    """Means over reference lesions and false positives; a missed or false lesion counts as an empty region
    does.
    """
    n = lesions.n_counted
    n_alone = lesions.n_missed + lesions.n_false
    dice = (sum(lesions.dice) + n_alone * rule.one_empty) / n if n else rule.both_empty
    hd95 = (sum(lesions.hd95_mm) + n_alone * rule.one_empty_hd95_mm) / n if n else rule.both_empty_hd95_mm
    return {
        "lesion_dice": dice,
        "lesion_hd95_mm": hd95,
        "n_lesions_found": len(lesions.dice),
        "n_lesions_missed": lesions.n_missed,
        "n_lesions_false": lesions.n_false,
    }
