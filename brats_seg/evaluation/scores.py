"""One case -> the scores of its regions and tissue classes, under each convention."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from brats_seg.core.shapes import Mask, TissueMap
from brats_seg.evaluation.conventions import convention_named
from brats_seg.evaluation.lesions import FoundLesion, LesionRule, Lesions, match_lesions
from brats_seg.evaluation.overlap import Overlap, joint_histogram, overlap_scores
from brats_seg.evaluation.surface import (
    Definition,
    Spacing,
    SurfaceDistances,
    grown,
    hd95_of,
    joint_crop,
    mean_surface_dice_of,
    patch_distances,
    region_distances,
    surface_dice,
)
from brats_seg.evaluation.table import NAN, Convention, Score
from brats_seg.scans.labels import OUTSIDE, region_classes, regions_of

Members = tuple[int, ...]
"""The class indices that make a region."""


@dataclass(frozen=True)
class Pair:
    """Both tissue maps (Z, Y, X) of a case, cropped to the voxels that are not healthy in at least one of
    them.

    Active and enhancing core are the same voxels, and directed and pooled HD95 use the same distances: each
    is measured once.
    """

    reference: TissueMap
    prediction: TissueMap
    spacing_mm: tuple[float, ...]
    _distances: dict[tuple[Members, bool], SurfaceDistances] = field(default_factory=dict, repr=False)
    _lesions: dict[tuple[Members, str], Lesions] = field(default_factory=dict, repr=False)

    def masks(self, members: Members) -> tuple[Mask, Mask]:
        """The region in the reference and in the prediction."""
        table = np.zeros(256, bool)
        table[list(members)] = True
        return table[self.reference], table[self.prediction]

    def distances(self, members: Members, definition: Definition) -> SurfaceDistances:
        """Between the two surfaces of the region."""
        key = members, definition == "surface_weighted"
        if key not in self._distances:
            if definition == "surface_weighted":
                self._distances[key] = patch_distances(*self.masks(members), spacing_mm=self.spacing_mm)
            else:
                self._distances[key] = region_distances(
                    self.reference, self.prediction, members, spacing_mm=self.spacing_mm
                )
        return self._distances[key]

    def lesions(
        self, members: Members, convention: Convention, *, region: str, tissues: Mapping[str, int]
    ) -> Lesions:
        """The lesions of the region, by the rule of a lesion-wise convention.

        Args:
            members: class indices of the region.
            convention: whose rule is followed.
            region: name of the region or tissue class.
            tissues: class index of each tissue class.
        """
        key, rule = (members, convention.name), convention.lesions
        assert rule is not None
        if key not in self._lesions:
            reference, prediction = self.masks(members)
            self._lesions[key] = match_lesions(
                reference,
                prediction,
                spacing_mm=self.spacing_mm,
                rule=rule,
                region=region,
                others={
                    name: self.masks((tissues[name],))[0]
                    for name in rule.joined_by.get(region, ())
                    if name in tissues
                },
                hd95=convention.hd95,
                tolerances_mm=convention.lesion_tolerances_at(self.spacing_mm),
            )
        return self._lesions[key]


def make_pair(reference: TissueMap, prediction: TissueMap, *, spacing_mm: Spacing) -> Pair:
    """Crop the maps of a case; `spacing_mm` is the voxel size along (Z, Y, X).

    The crop keeps a rim of voxels, except at the border of the image, so that a lesion dilates in the crop as
    in the whole image.
    """
    crop = grown(joint_crop(reference, prediction), reference.shape, by=RIM)
    return Pair(
        np.ascontiguousarray(reference[crop]),
        np.ascontiguousarray(prediction[crop]),
        tuple(float(s) for s in spacing_mm),
    )


RIM = 6
"""One more than the largest number of dilations of the lesion-wise scores."""


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

    The healthy class has no surface scores: its surface consists of the tumor's surface and the image's
    border.

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
        _score(
            pair,
            rule,
            region=region,
            members=members,
            overlap=overlap_scores(histogram, members),
            tissues={tissue: i for i, tissue in enumerate(classes)},
        )
        for region, members in parts.items()
        for rule in rules
    )


def _score(
    pair: Pair,
    rule: Convention,
    *,
    region: str,
    members: tuple[int, ...],
    overlap: Overlap,
    tissues: Mapping[str, int],
) -> Score:
    voxel_ml = math.prod(pair.spacing_mm) / 1000
    lesions = (
        pair.lesions(members, rule, region=region, tissues=tissues)
        if rule.lesion_wise and 0 not in members
        else None
    )
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
        reference_ml=overlap.n_reference * voxel_ml,
        prediction_ml=overlap.n_prediction * voxel_ml,
        volume_error_ml=(overlap.n_prediction - overlap.n_reference) * voxel_ml,
        **_surface_scores(pair, rule, members, overlap, lesions),
        **(_lesion_scores(lesions, rule) if lesions is not None else {}),
    )


def _unless_both_empty(value: float, rule: Convention, overlap: Overlap) -> float:
    """An overlap of the region, or the value of the convention if the region is empty in both maps; NaN if
    the score is undefined.
    """
    return rule.both_empty if overlap.n_reference == overlap.n_prediction == 0 else value


def _surface_scores(
    pair: Pair, rule: Convention, members: tuple[int, ...], overlap: Overlap, lesions: Lesions | None
) -> dict[str, Any]:
    tolerances = rule.tolerances_mm
    near: tuple[float, ...]
    if 0 in members:
        hd95, near = NAN, (NAN,)
    elif overlap.n_reference == 0 and overlap.n_prediction == 0:
        hd95, near = rule.both_empty_hd95_mm, (rule.both_empty,) * len(tolerances)
    elif overlap.n_reference == 0 or overlap.n_prediction == 0:
        hd95, near = rule.one_empty_hd95_mm, (rule.one_empty,) * len(tolerances)
    else:
        distances = pair.distances(members, rule.hd95)
        hd95 = hd95_of(distances, rule.hd95)
        if rule.surface_dice == "joint":
            near = tuple(surface_dice(distances, tolerance_mm=mm) for mm in tolerances)
        else:
            near = mean_surface_dice_of(pair.distances(members, "pooled"), tolerances_mm=tolerances)
        if rule.unmatched == "as_empty" and lesions is not None and not lesions.found:
            hd95 = rule.one_empty_hd95_mm
    return {"hd95_mm": hd95} | dict(zip(_SURFACE_DICE, near, strict=False))


_VOLUMES_MM3 = {
    "lesion_sensitivity_below_100mm3": (0, 100),
    "lesion_sensitivity_below_1000mm3": (100, 1000),
    "lesion_sensitivity_from_1000mm3": (1000, math.inf),
}
"""Column -> the range of volumes of its reference lesions."""
_SURFACE_DICE = ("surface_dice", "surface_dice_05mm")
"""Columns of the first and the second tolerance."""


def _lesion_scores(lesions: Lesions, convention: Convention) -> dict[str, Any]:
    """Means over lesions, in which a missed or false lesion counts as an empty region, and the number of
    found lesions.
    """
    rule = convention.lesions
    assert rule is not None
    large = [lesion for lesion in lesions.found if lesion.mm3 >= rule.large_mm3]
    n_missed_large = sum(mm3 >= rule.large_mm3 for mm3 in lesions.missed_mm3)
    n_alone = n_missed_large * (rule.missed_lesions == "counted")
    if rule.false_lesions == "counted" and rule.missed_lesions == "counted":
        n_alone += lesions.n_false
    if rule.large_mm3 and not (large or n_missed_large):
        n_alone, empty, empty_hd95 = 0, NAN, NAN  # no large lesion to be averaged
    elif rule.missed_lesions == "left_out" and (lesions.n_missed or lesions.n_false):
        empty, empty_hd95 = convention.one_empty, convention.one_empty_hd95_mm
    else:
        empty, empty_hd95 = convention.both_empty, convention.both_empty_hd95_mm
    mean = partial(_mean_with, n_alone)
    scores: dict[str, Any] = {
        "lesion_dice": mean([one.dice for one in large], alone=convention.one_empty, nothing=empty),
        "lesion_hd95_mm": mean(
            [one.hd95_mm for one in large], alone=convention.one_empty_hd95_mm, nothing=empty_hd95
        ),
        "n_lesions_found": len(lesions.found),
        "n_lesions_missed": lesions.n_missed,
        "n_lesions_false": lesions.n_false,
        "false_lesion_mm3": sum(lesions.false_mm3) / lesions.n_false if lesions.n_false else NAN,
    }
    if convention.surface_dice == "mean":
        n_tolerances = 1 if convention.lesion_tolerances_mm == "voxel" else len(convention.tolerances_mm)
        for at, column in enumerate(_SURFACE_DICE[:n_tolerances]):
            near = [one.surface_dice[at] for one in large]
            scores[f"lesion_{column}"] = mean(near, alone=convention.one_empty, nothing=empty)
    scores |= _detection(len(lesions.found), lesions.n_missed, lesions.n_false, prefix="lesion")
    for column, (low, high) in _VOLUMES_MM3.items():
        n_found = sum(low <= one.mm3 < high for one in lesions.found)
        n = n_found + sum(low <= mm3 < high for mm3 in lesions.missed_mm3)
        scores[column] = _ratio(n_found, n)
    if rule.large_mm3:
        scores |= _small_lesions(lesions, rule)
    return scores


def _mean_with(n_alone: int, values: Sequence[float], *, alone: float, nothing: float) -> float:
    """The mean of some values and `n_alone` times the value `alone`; `nothing` if there is no value."""
    n = len(values) + n_alone
    return (sum(values) + n_alone * alone) / n if n else nothing


def _small_lesions(lesions: Lesions, rule: LesionRule) -> dict[str, float]:
    """How many of the lesions that are too small to be averaged were detected; every false lesion counts."""
    small: list[FoundLesion] = [one for one in lesions.found if one.mm3 < rule.large_mm3]
    n_detected = sum(one.dice >= rule.detected_dice for one in small)
    n_missed = len(small) - n_detected + sum(mm3 < rule.large_mm3 for mm3 in lesions.missed_mm3)
    if not n_detected + n_missed:
        return {}
    scores = _detection(n_detected, n_missed, lesions.n_false, prefix="small_lesion")
    # NaN becomes 0, as in the challenge
    return {name: 0.0 if math.isnan(value) else value for name, value in scores.items()}


def _detection(n_found: int, n_missed: int, n_false: int, *, prefix: str) -> dict[str, float]:
    return {
        f"{prefix}_f1": _ratio(2 * n_found, 2 * n_found + n_missed + n_false),
        f"{prefix}_sensitivity": _ratio(n_found, n_found + n_missed),
        f"{prefix}_precision": _ratio(n_found, n_found + n_false),
    }


def _ratio(n: int, of: int) -> float:
    return n / of if of else NAN


CONVENTION = "brats2013"


def score_volume(
    tissue: TissueMap,
    labels: TissueMap,
    *,
    case: str,
    patient: str,
    classes: Sequence[str],
    spacing_mm: Spacing,
) -> list[dict[str, Any]]:
    """Rows of one case: every region and tissue class, healthy over the brain alone; empty regions as the
    convention `brats2013` has it.

    Args:
        tissue: the reference (Z, Y, X), indices into `classes`; 255 outside the brain.
        labels: the prediction, the same shape; 0 outside the brain.
        case, patient: go into the rows.
        classes: tissue class names, healthy first.
        spacing_mm: voxel size along (Z, Y, X).
    """
    reference = np.where(tissue == OUTSIDE, np.uint8(0), tissue)
    histogram = joint_histogram(reference, labels, len(classes))
    histogram[0, 0] -= np.count_nonzero((tissue == OUTSIDE) & (labels == 0))
    healthy = overlap_scores(histogram, (0,))
    rows = []
    for score in score_case(
        reference, labels, classes=classes, spacing_mm=spacing_mm, conventions=(CONVENTION,)
    ):
        source = healthy if score.region == "healthy" else score
        n_reference = healthy.n_reference if score.region == "healthy" else score.n_reference_vox
        n_prediction = healthy.n_prediction if score.region == "healthy" else score.n_prediction_vox
        rows.append({
            "case": case,
            "patient": patient,
            "region": score.region,
            "n_reference_vox": n_reference,
            "n_prediction_vox": n_prediction,
            **{name: _plain(getattr(source, name)) for name in ("dice", "sensitivity", "precision")},
            "volume_ratio": round(n_prediction / n_reference, 6) if n_reference else None,
            "hd95_mm": _plain(score.hd95_mm),
        })  # fmt: skip
    return rows


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 6)
