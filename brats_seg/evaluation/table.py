"""Score rows -> scores.csv and summary.json."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from brats_seg.core.files import atomic
from brats_seg.core.statistics import describe, paired_difference
from brats_seg.evaluation.comparison import FEWEST
from brats_seg.evaluation.surface import Definition
from brats_seg.scans.labels import REGIONS

NAN = float("nan")
TOLERANCE_MM = 1.0
"""Distance within which two surfaces count as equal for surface Dice: one voxel of BraTS."""


@dataclass(frozen=True)
class Convention:
    """What a score of an empty region is, and which HD95 is meant. NaN leaves the case out of the mean; n
    says so.

    Attributes:
        name: the key in `CONVENTIONS`.
        source: where the rules come from.
        hd95: definition of HD95, as in `surface.hd95_mm`.
        both_empty: Dice and other overlaps where reference and prediction are empty.
        both_empty_hd95_mm: HD95 there.
        one_empty: Dice and other overlaps where one of them is empty.
        one_empty_hd95_mm: HD95 there.
        lesion_wise: whether lesions are scored one by one too.
        headline: the columns this convention ranks by.
    """

    name: str
    source: str
    hd95: Definition
    both_empty: float
    both_empty_hd95_mm: float
    one_empty: float
    one_empty_hd95_mm: float
    lesion_wise: bool = False
    headline: tuple[str, ...] = ("dice", "hd95_mm")


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


METRICS = (
    "dice", "iou", "sensitivity", "specificity", "precision", "hd95_mm", "surface_dice", "volume_error_ml",
    "lesion_dice", "lesion_hd95_mm",
)  # fmt: skip
"""The columns of a score that are averaged over cases."""


def write_scores(path: Path, scores: Iterable[Score]) -> None:
    """Write scores.csv: a row for each score, in order; what is left out is an empty cell."""
    with atomic(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([f.name for f in fields(Score)])
        for score in scores:
            writer.writerow([_cell(value) for value in asdict(score).values()])


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
        "surface_dice": "surface voxels, each counted once; where hd95 is surface_weighted, surface elements "
        "counted by their area",
        "surface_dice_tolerance_mm": TOLERANCE_MM,
        "conventions": {
            rule.name: {
                "source": rule.source,
                "hd95": rule.hd95,
                "both_empty": {"dice": _json(rule.both_empty), "hd95_mm": _json(rule.both_empty_hd95_mm)},
                "one_empty": {"dice": _json(rule.one_empty), "hd95_mm": _json(rule.one_empty_hd95_mm)},
                "lesion_wise": rule.lesion_wise,
                "headline": list(rule.headline),
                "regions": {
                    region: _figures([s for s in scores if s.convention == rule.name and s.region == region])
                    for region in dict.fromkeys(s.region for s in scores)
                },
            }
            for rule in rules
        },
    }


def _figures(scores: Sequence[Score]) -> dict[str, Any]:
    """Counts and averages of one region under one convention."""
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
    """A sentence on headline intervals and p values that are over fewer than `FEWEST` patients; empty where
    none is.
    """
    figures = [
        c["regions"][r].get(m)
        for c in summary["conventions"].values()
        for r in REGIONS
        if r in c["regions"]
        for m in c["headline"]
    ]
    parts = []
    if any(figure and figure["interval95"] and figure["n_patients"] < FEWEST for figure in figures):
        parts.append("the 95 % intervals are too narrow")
    if any(test["n"] < FEWEST for test in summary.get("against", {}).get("tests", ())):
        parts.append("p cannot fall below 0.05")
    return f"With fewer than {FEWEST} patients {' and '.join(parts)}." if parts else ""


def compare(first: Sequence[Score], second: Sequence[Score], rules: Sequence[Convention]) -> dict[str, Any]:
    """`paired_difference` of the headline columns of each convention, region by region; first minus second.

    A scan counts where both have a number for it: one that a folder lacks, or a convention leaves out of one
    folder, has no pair.
    """
    patient_of = {s.case: s.patient or s.case for s in first}
    tests = []
    for rule in rules:
        for region in dict.fromkeys(s.region for s in first):
            for metric in rule.headline:
                ours, theirs = (_by_scan(scores, rule.name, region, metric) for scores in (first, second))
                found = paired_difference(theirs, ours, patient_of=patient_of)
                if found["n"]:
                    row = {
                        "convention": rule.name,
                        "region": region,
                        "metric": metric,
                        "n": found["n_patients"],
                        "n_scans": found["n"],
                    }
                    tests.append(
                        row
                        | {
                            "mean_difference": found["mean"],
                            "interval95": found["interval95"],
                            "p": found["p"],
                        }
                    )
    test = "Wilcoxon signed-rank over patients, each the mean over its scans, two-sided"
    return {
        "test": f"{test}; first minus second over the scans that both have, mean over scans",
        "tests": tests,
    }


def _by_scan(scores: Sequence[Score], convention: str, region: str, metric: str) -> dict[str, float]:
    chosen = [s for s in scores if s.convention == convention and s.region == region]
    return {s.case: value for s in chosen if not math.isnan(value := getattr(s, metric))}


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else round(value, 6)
    return "" if value is None else value


def _json(value: float) -> float | None:
    return None if math.isnan(value) else value
