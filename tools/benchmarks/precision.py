"""What bfloat16 costs beside float32, and windows beside whole slices, in Dice against the reference: trained
runs, annotated cases.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brats_seg.bank.normalize import NormalizedCase, normalize
from brats_seg.core.runtime import start_runtime
from brats_seg.core.shapes import TissueMap
from brats_seg.evaluation.overlap import joint_histogram, overlap_scores
from brats_seg.inference.dense import label_map
from brats_seg.inference.loaded import load_segmenters
from brats_seg.inference.segmenter import Segmenter
from brats_seg.models.trained import open_run
from brats_seg.scans.labels import OUTSIDE, REGIONS, region_classes
from brats_seg.scans.layouts import find_cases
from brats_seg.scans.loaded import load_case

MEAN_WITHIN = 0.002
EVERY_WITHIN = 0.005
LARGE_VOX = 1000
"""bfloat16 may be the default where mean Dice is within the first, and every region of more voxels within the
second.
"""


@dataclass(frozen=True)
class Row:
    """One region that the reference of a case has."""

    run: str
    case: str
    region: str
    n_voxels: int
    float32: float
    bf16: float
    windows: float

    @property
    def difference(self) -> float:
        """Dice in bfloat16 minus Dice in float32."""
        return self.bf16 - self.float32


def run(runs: Sequence[Path], scans: Path, *, all_cases: bool) -> str:
    """A table of every region of every case that a run held out (or of all cases), and last a line of
    JSON.
    """
    rows = [row for folder in runs for row in _rows_of(folder, scans, all_cases=all_cases)]
    if not rows:
        raise SystemExit(
            f"{scans}: no annotated case that these runs held out; give the scans they were trained on, or "
            "--all-cases"
        )
    return "\n".join([*_table(rows), *_per_case(rows), json.dumps(summary_of(rows))])


def summary_of(rows: Sequence[Row]) -> dict[str, object]:
    """The figures that the choice of a precision stands on, and whether bfloat16 is within both bounds."""
    differences = np.array([row.difference for row in rows])
    large = np.array([row.difference for row in rows if row.n_voxels > LARGE_VOX])
    mean, worst = float(differences.mean()), float(np.abs(large).max(initial=0.0))
    by_region = {
        region: float(np.mean([r.difference for r in rows if r.region == region]))
        for region in {r.region for r in rows}
    }
    return {
        "name": "precision",
        "unit": "Dice against the reference, bf16 minus float32",
        "n_cases": len({(row.run, row.case) for row in rows}),
        "mean": mean,
        "mean_by_region": {region: by_region[region] for region in REGIONS if region in by_region},
        "largest": float(np.abs(differences).max()),
        f"largest_over_{LARGE_VOX}_voxels": worst,
        "within": max(map(abs, (mean, *by_region.values()))) <= MEAN_WITHIN and worst <= EVERY_WITHIN,
        "windows_minus_whole_slices": float(np.mean([row.windows - row.float32 for row in rows])),
    }


def _rows_of(folder: Path, scans: Path, *, all_cases: bool) -> list[Row]:
    plain, half = (
        load_segmenters((open_run(folder),), runtime=start_runtime(device="cpu", precision=p))[0]
        for p in ("float32", "bf16")
    )
    windowed = load_segmenters(
        (open_run(folder),), runtime=start_runtime(device="cpu", precision="float32"), inference="windowed"
    )[0]
    if plain.n4:
        raise SystemExit(
            f"{folder}: was trained on scans corrected by N4; this comparison takes runs without"
        )
    ids = None if all_cases else open_run(folder).held_out_cases
    cases = [c for c in find_cases(scans).cases if c.label is not None and (ids is None or c.id in ids)]
    rows = []
    for case in cases:
        normalized = normalize(
            load_case(case), modalities=plain.modalities, classes=plain.classes, percentiles=plain.percentiles
        )
        found = [_dice(normalized, segmenter) for segmenter in (plain, half, windowed)]
        for region, n_voxels in _regions(normalized, plain.classes).items():
            rows.append(Row(str(folder), case.id, region, n_voxels, *(dice[region] for dice in found)))
    return rows


def _reference(case: NormalizedCase) -> TissueMap:
    assert case.label is not None
    return np.where(case.label == OUTSIDE, 0, case.label).astype(np.uint8)


def _regions(case: NormalizedCase, classes: Sequence[str]) -> dict[str, int]:
    """Voxels of the regions that the reference has."""
    counts = np.bincount(_reference(case).reshape(-1), minlength=len(classes))
    voxels = {region: int(counts[list(region_classes(region, classes))].sum()) for region in REGIONS}
    return {region: n for region, n in voxels.items() if n}


def _dice(case: NormalizedCase, segmenter: Segmenter) -> dict[str, float]:
    labels = label_map(
        segmenter.network,
        case.image,
        feed=segmenter.feed_for(case.image),
    )
    histogram = joint_histogram(_reference(case), labels, len(segmenter.classes))
    return {
        region: overlap_scores(histogram, region_classes(region, segmenter.classes)).dice
        for region in REGIONS
    }


def _table(rows: Sequence[Row]) -> list[str]:
    lines = [
        f"{'run':>8} {'case':24} {'region':8} {'voxels':>8} {'float32':>8} {'bf16':>8} "
        f"{'bf16 - float32':>15} {'windows - whole':>16}"
    ]
    for r in rows:
        figures = (
            f"{r.n_voxels:8,} {r.float32:8.4f} {r.bf16:8.4f} {r.difference:+15.5f} "
            f"{r.windows - r.float32:+16.5f}"
        )
        lines.append(f"{r.run:>8} {r.case:24} {r.region:8} {figures}")
    return lines


def _per_case(rows: Sequence[Row]) -> list[str]:
    lines = ["mean Dice of a case's regions: bf16 - float32, windows - whole slices"]
    for run_name, case in dict.fromkeys((r.run, r.case) for r in rows):
        own = [r for r in rows if (r.run, r.case) == (run_name, case)]
        means = np.mean([(r.difference, r.windows - r.float32) for r in own], axis=0)
        lines.append(f"{run_name:>8} {case:24} {means[0]:+.5f} {means[1]:+.5f}")
    return lines
