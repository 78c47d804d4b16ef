"""A label map of a case of a bank -> rows of scores, without files."""

from typing import Any

import numpy as np

from brats_seg.bank.bank import PatchBank
from brats_seg.core.shapes import TissueMap
from brats_seg.evaluation.overlap import joint_histogram, overlap_scores
from brats_seg.evaluation.scores import score_case
from brats_seg.scans.labels import OUTSIDE

CONVENTION = "brats2013"


def score_volume(bank: PatchBank, case: str, labels: TissueMap) -> list[dict[str, Any]]:
    """Rows of one case: every region and tissue class, healthy over the brain alone; empty regions as the
    convention `brats2013` has it.
    """
    number = next(i for i, one in enumerate(bank.cases) if one.id == case)
    entry, tissue = bank.cases[number], np.array(bank.volume(number)[1])
    reference = np.where(tissue == OUTSIDE, np.uint8(0), tissue)
    histogram = joint_histogram(reference, labels, len(bank.classes))
    histogram[0, 0] -= np.count_nonzero((tissue == OUTSIDE) & (labels == 0))
    healthy = overlap_scores(histogram, (0,))
    rows = []
    for score in score_case(
        reference, labels, classes=bank.classes, spacing_mm=entry.spacing_mm, conventions=(CONVENTION,)
    ):
        source = healthy if score.region == "healthy" else score
        n_reference = healthy.n_reference if score.region == "healthy" else score.n_reference_vox
        n_prediction = healthy.n_prediction if score.region == "healthy" else score.n_prediction_vox
        rows.append({
            "case": case,
            "patient": entry.patient,
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
