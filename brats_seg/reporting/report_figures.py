"""The figures of a report: scores, volumes, confusion, calibration."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from brats_seg.core.errors import count_words
from brats_seg.evaluation.overlap import JointHistogram
from brats_seg.evaluation.table import Score
from brats_seg.reporting import figures, style
from brats_seg.reporting.plots import Plot, plot
from brats_seg.reporting.style import number
from brats_seg.scans.labels import REGIONS


def volumes_of(scores: Sequence[Score], case: str, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Reference and predicted ml of each tumor class and of the whole tumor."""
    of_region = {s.region: s for s in scores if s.case == case}
    return [
        {
            "name": name,
            "reference_ml": of_region[name].reference_ml,
            "prediction_ml": of_region[name].prediction_ml,
        }
        for name in (*classes[1:], "whole")
    ]


def mean_volumes(scores: Sequence[Score], ids: Sequence[str], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Mean volume of each row of `volumes_of` over the cases."""
    return [
        {"name": c[0]["name"]}
        | {side: sum(v[side] for v in c) / len(c) for side in ("reference_ml", "prediction_ml")}
        for c in zip(*(volumes_of(scores, case, classes) for case in ids), strict=True)
    ]


def draw_figures(
    scores: Sequence[Score], confusion: JointHistogram, classes: Sequence[str]
) -> dict[str, Plot]:
    """Every figure of the scores of one convention, by name."""
    regions = [r for r in REGIONS if any(s.region == r for s in scores)]
    dice = {r: [s.dice for s in scores if s.region == r] for r in regions}
    distances = {
        r: [s.hd95_mm for s in scores if s.region == r and s.n_reference_vox and s.n_prediction_vox]
        for r in regions
    }
    volumes = {
        c: (
            [s.reference_ml for s in scores if s.region == c],
            [s.prediction_ml for s in scores if s.region == c],
        )
        for c in classes[1:]
    }
    errors = {c: [s.volume_error_ml for s in scores if s.region == c] for c in (*classes[1:], "whole")}
    shares = figures.row_shares(confusion)
    kept = "; ".join(
        f"{style.words(c)} {100 * shares[i, i]:.1f} %"
        for i, c in enumerate(classes)
        if not np.isnan(shares[i, i])
    )
    return {
        "dice": plot(
            figures.box_plot(dice, label="Dice", limits=(0.0, 1.0)),
            alt=f"Box plot of Dice. {_medians(dice, digits=3)}",
        ),
        "hd95": plot(
            figures.box_plot(distances, label="HD95, mm"),
            alt=f"Box plot of HD95 in mm. {_medians(distances, digits=1)}",
        ),
        "volumes": plot(
            figures.volume_chart(volumes),
            alt="Predicted against reference volume in ml; the numbers are in table 3.",
        ),
        "volume_errors": plot(
            figures.box_plot(errors, label="prediction minus reference, ml", center=0.0),
            alt=f"Box plot of volume error in ml. {_medians(errors, digits=1)}",
        ),
        "confusion": plot(
            figures.confusion_chart(confusion, classes=classes),
            alt=f"Confusion matrix. Share predicted right: {kept}.",
        ),
    }


def calibration(tree: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Reliability of the saved probabilities; None if nothing was saved."""
    if tree is None:
        return None
    curves = {region: of_region["bins"] for region, of_region in tree["regions"].items()}
    rows = []
    for region, bins in curves.items():
        n = sum(b["n_voxels"] for b in bins)
        means = {
            key: sum(b["n_voxels"] * b[key] for b in bins) / n if n else math.nan
            for key in ("mean_probability", "share_inside")
        }
        rows.append({"region": region, "ece": tree["regions"][region]["ece"]} | means)
    errors = "; ".join(f"{row['region']} {number(row['ece'], 4)}" for row in rows)
    return {
        "n_words": count_words(tree["n_cases"], "case"),
        "rows": rows,
        "figure": plot(
            figures.reliability_chart(curves),
            alt=f"Reliability curves. Expected calibration error: {errors}.",
        ),
    }


def _medians(groups: Mapping[str, Sequence[float]], *, digits: int) -> str:
    finite = {name: [v for v in values if math.isfinite(v)] for name, values in groups.items()}
    return (
        "; ".join(
            f"{n}: median {np.median(v):.{digits}f}, n = {len(v)}" if v else f"{n}: no value"
            for n, v in finite.items()
        )
        + "."
    )
