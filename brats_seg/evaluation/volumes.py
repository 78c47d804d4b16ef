"""A label map in memory -> rows of scores, without files."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from brats_seg.core.shapes import TissueMap
from brats_seg.evaluation.overlap import joint_histogram, overlap_scores
from brats_seg.evaluation.scores import score_case
from brats_seg.evaluation.surface import Spacing
from brats_seg.scans.labels import OUTSIDE

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
