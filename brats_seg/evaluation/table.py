"""Score rows -> scores.csv and summary.json."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from brats_seg.core.comparison import NO_PAIRS, PAIRED_TEST, compare_sides, few_note
from brats_seg.core.files import write_text
from brats_seg.core.statistics import describe
from brats_seg.core.tables import csv_text
from brats_seg.evaluation.lesions import LesionRule
from brats_seg.evaluation.surface import Definition, Spacing
from brats_seg.scans.labels import REGIONS


@dataclass(frozen=True)
class Metric:
    """A column of scores.csv that is averaged over cases.

    Attributes:
        name: of the column.
        words: its name in a table.
        unit: "" for a share from 0 to 1.
        better: which values are better; "nearer" to the best value.
        best: the best value.
    """

    name: str
    words: str
    unit: str = ""
    better: Literal["higher", "lower", "nearer"] = "higher"
    best: float = 1.0


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("dice", "Dice"),
        Metric("iou", "IoU"),
        Metric("sensitivity", "sensitivity"),
        Metric("specificity", "specificity"),
        Metric("precision", "precision"),
        Metric("hd95_mm", "HD95 (mm)", "mm", "lower", 0.0),
        Metric("surface_dice", "surface Dice"),
        Metric("surface_dice_05mm", "surface Dice at 0.5 mm"),
        Metric("volume_error_ml", "volume error (ml)", "ml", "nearer", 0.0),
        Metric("lesion_dice", "lesion Dice"),
        Metric("lesion_hd95_mm", "lesion HD95 (mm)", "mm", "lower", 0.0),
        Metric("lesion_surface_dice", "lesion surface Dice"),
        Metric("lesion_surface_dice_05mm", "lesion surface Dice at 0.5 mm"),
        Metric("lesion_f1", "lesion F1"),
        Metric("lesion_sensitivity", "lesion sensitivity"),
        Metric("lesion_precision", "lesion precision"),
        Metric("lesion_sensitivity_below_100mm3", "lesion sensitivity below 100 mm3"),
        Metric("lesion_sensitivity_below_1000mm3", "lesion sensitivity, 100 to 1000 mm3"),
        Metric("lesion_sensitivity_from_1000mm3", "lesion sensitivity from 1000 mm3"),
        Metric("small_lesion_f1", "small-lesion F1"),
        Metric("small_lesion_sensitivity", "small-lesion sensitivity"),
        Metric("small_lesion_precision", "small-lesion precision"),
        Metric("false_lesion_mm3", "mean false lesion (mm3)", "mm3", "lower", 0.0),
    )
}


NAN = float("nan")


@dataclass(frozen=True)
class Convention:
    """The scores of an empty region, and the definition of HD95. NaN leaves the case out of the mean and of
    n.

    Attributes:
        name: the key in `CONVENTIONS`.
        source: where the rules come from.
        hd95: definition of HD95, as in `surface.hd95_mm`.
        both_empty: Dice and other overlaps where reference and prediction are empty.
        both_empty_hd95_mm: HD95 there.
        one_empty: Dice and other overlaps where one of them is empty.
        one_empty_hd95_mm: HD95 there.
        surface_dice: "joint": the share of both surfaces together; "mean": the mean of their two shares.
        tolerances_mm: of surface Dice of a region, one or two.
        lesion_tolerances_mm: of surface Dice of a lesion; empty for those of a region, or "voxel" for the
            smallest side of a voxel.
        lesions: how lesions are scored one by one; None for no lesion-wise scores.
        unmatched: "as_empty": a region without a found lesion has the HD95 `one_empty_hd95_mm`.
        headline: the columns by which this convention ranks.
        ranked: the regions and tissue classes by which this convention ranks.
    """

    name: str
    source: str
    hd95: Definition
    both_empty: float
    both_empty_hd95_mm: float
    one_empty: float
    one_empty_hd95_mm: float
    surface_dice: Literal["joint", "mean"] = "joint"
    tolerances_mm: tuple[float, ...] = (1.0,)
    lesion_tolerances_mm: tuple[float, ...] | Literal["voxel"] = ()
    lesions: LesionRule | None = None
    unmatched: Literal["measured", "as_empty"] = "measured"
    headline: tuple[str, ...] = ("dice", "hd95_mm")
    ranked: tuple[str, ...] = REGIONS

    @property
    def lesion_wise(self) -> bool:
        """Whether lesions are scored one by one."""
        return self.lesions is not None

    def lesion_tolerances_at(self, spacing_mm: Spacing) -> tuple[float, ...]:
        """In mm, for images of this voxel size; empty if the surface Dice of lesions is not measured."""
        if self.surface_dice == "joint":
            return ()
        if self.lesion_tolerances_mm == "voxel":
            return (float(min(spacing_mm)),)
        return self.lesion_tolerances_mm or self.tolerances_mm


@dataclass(frozen=True)
class Score:
    """One row of scores.csv: one region of one case under one convention. NaN (empty in the file) means left
    out.
    """

    case: str
    region: str
    convention: str
    n_reference_vox: int
    n_prediction_vox: int
    dice: float
    iou: float
    sensitivity: float
    specificity: float
    precision: float
    hd95_mm: float
    surface_dice: float
    reference_ml: float
    prediction_ml: float
    volume_error_ml: float
    lesion_dice: float = NAN
    lesion_hd95_mm: float = NAN
    n_lesions_found: int | None = None
    n_lesions_missed: int | None = None
    n_lesions_false: int | None = None
    patient: str = ""
    surface_dice_05mm: float = NAN
    lesion_surface_dice: float = NAN
    lesion_surface_dice_05mm: float = NAN
    lesion_f1: float = NAN
    lesion_sensitivity: float = NAN
    lesion_precision: float = NAN
    lesion_sensitivity_below_100mm3: float = NAN
    lesion_sensitivity_below_1000mm3: float = NAN
    lesion_sensitivity_from_1000mm3: float = NAN
    small_lesion_f1: float = NAN
    small_lesion_sensitivity: float = NAN
    small_lesion_precision: float = NAN
    false_lesion_mm3: float = NAN


def write_scores(path: Path, scores: Iterable[Score]) -> None:
    """Write scores.csv: a row for each score, in order; NaN becomes an empty cell."""
    rows = [
        {name: round(v, 6) if isinstance(v, float) else v for name, v in asdict(score).items()}
        for score in scores
    ]
    write_text(path, csv_text(rows, [field.name for field in fields(Score)]))


def summarize(
    scores: Sequence[Score],
    rules: Sequence[Convention],
    *,
    problems: Sequence[str],
    cavity_in: Sequence[str] = (),
) -> dict[str, Any]:
    """The tree of summary.json: for each convention and region its counts, and mean, sd, n, n_patients and
    interval of every column.
    """
    return {
        "n_cases": len({s.case for s in scores}),
        "n_patients": len({s.patient for s in scores}),
        "n_problems": len(problems),
        "problems": list(problems),
        "interval": "95 % of bootstrap means, patients resampled with all their cases",
        "cavity_in": list(cavity_in),
        "specificity": "over all voxels of the image, air included",
        "surface_dice": "joint: surface voxels, each counted once, or where hd95 is surface_weighted, "
        "surface elements counted by their area; mean: the mean of the two sides' shares of surface voxels",
        "conventions": {
            rule.name: {
                "source": rule.source,
                "hd95": rule.hd95,
                "both_empty": {"dice": _json(rule.both_empty), "hd95_mm": _json(rule.both_empty_hd95_mm)},
                "one_empty": {"dice": _json(rule.one_empty), "hd95_mm": _json(rule.one_empty_hd95_mm)},
                "surface_dice": rule.surface_dice,
                "surface_dice_tolerances_mm": list(rule.tolerances_mm),
                "lesion_surface_dice_tolerances_mm": rule.lesion_tolerances_mm or list(rule.tolerances_mm),
                "lesion_wise": rule.lesion_wise,
                "headline": list(rule.headline),
                "ranked": list(rule.ranked),
                "regions": {
                    region: _figures([s for s in scores if s.convention == rule.name and s.region == region])
                    for region in dict.fromkeys(s.region for s in scores)
                },
            }
            for rule in rules
        },
    }


def _figures(scores: Sequence[Score]) -> dict[str, Any]:
    present = [s for s in scores if s.n_reference_vox]
    absent = [s for s in scores if not s.n_reference_vox]
    figures: dict[str, Any] = {
        "n_cases": len(scores),
        "n_present": len(present),
        "n_both_empty": sum(s.n_prediction_vox == 0 for s in absent),
        "n_false_positive_cases": sum(s.n_prediction_vox > 0 for s in absent),
        "n_missed_cases": sum(s.n_prediction_vox == 0 for s in present),
        "dice_where_present": _average(present, "dice"),
    }
    return figures | {
        metric: _average(scores, metric)
        for metric in METRICS
        if any(not math.isnan(getattr(s, metric)) for s in scores)
    }


def _average(scores: Sequence[Score], metric: str) -> dict[str, Any]:
    kept = [(getattr(s, metric), s.patient or s.case) for s in scores if not math.isnan(getattr(s, metric))]
    return describe([value for value, _ in kept], [patient for _, patient in kept])


def few_patients(summary: Mapping[str, Any]) -> str:
    """`few_note` of the headline intervals and of the tests against another folder."""
    figures = [
        c["regions"][r].get(m)
        for c in summary["conventions"].values()
        for r in REGIONS
        if r in c["regions"]
        for m in c["headline"]
    ]
    return few_note(
        intervals=[figure["n_patients"] for figure in figures if figure and figure["interval95"]],
        tests=[test["n"] for test in summary.get("against", {}).get("tests", ())],
    )


def compare(first: Sequence[Score], second: Sequence[Score], rules: Sequence[Convention]) -> dict[str, Any]:
    """`compare_sides` of the headline columns of each convention, region by region; first minus second.

    A scan counts if both folders have a number for it. A scan that a folder lacks, or that a convention
    leaves out of one folder, has no pair.
    """
    metrics = list(dict.fromkeys(metric for rule in rules for metric in rule.headline))
    rows = [
        {**asdict(s), "side": side, "unit": s.case, "patient": s.patient or s.case}
        for side, scores in (("first", first), ("second", second))
        for s in scores
    ]
    keys = ["convention", "region", "side", "unit", "patient"]
    table = pd.DataFrame(rows, columns=[*keys, *metrics]).melt(keys, metrics, "metric")
    pairs_of = compare_sides(table, first="second", second="first", by=("convention", "region", "metric"))
    tests = [
        {
            "convention": rule.name,
            "region": region,
            "metric": metric,
            "n": pairs["n_patients"],
            "n_scans": pairs["n"],
            "mean_difference": pairs["mean"],
            "interval95": pairs["interval95"],
            "p": pairs["p"],
        }
        for rule in rules
        for region in dict.fromkeys(s.region for s in first)
        for metric in rule.headline
        if (pairs := pairs_of.get((rule.name, region, metric), NO_PAIRS))["n"]
    ]
    test = PAIRED_TEST.format(units="scans")
    return {
        "test": f"{test}; first minus second over the scans that both have, mean over scans",
        "tests": tests,
    }


def _json(value: float) -> float | None:
    return None if math.isnan(value) else value
