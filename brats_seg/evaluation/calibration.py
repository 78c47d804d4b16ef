"""Saved class probabilities against the reference: reliability of each region, expected calibration error."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32

from brats_seg.core.files import read_text
from brats_seg.core.shapes import Counts, Mask, TissueMap
from brats_seg.scans.case import ScanFile
from brats_seg.scans.geometry import Geometry, ScanError, same_grid
from brats_seg.scans.labels import region_classes, regions_of
from brats_seg.scans.predictions import CLASSES, PROBABILITIES
from brats_seg.scans.volume import read_volumes

N_BINS = 15
"""As Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4."""

Volumes = Float32[np.ndarray, "k z y x"]
"""Class probabilities on the native grid."""


@dataclass(frozen=True)
class Reliability:
    """Voxels by the probability they were given to be in a region, in bins of equal width from 0 to 1.

    Attributes:
        n_voxels: voxels in each bin.
        n_inside: those of them that are in the region.
        probability_sum: sum of their probabilities.
    """

    n_voxels: Counts
    n_inside: Counts
    probability_sum: Float[np.ndarray, " k"]

    def __add__(self, other: "Reliability") -> "Reliability":
        return Reliability(
            self.n_voxels + other.n_voxels,
            self.n_inside + other.n_inside,
            self.probability_sum + other.probability_sum,
        )

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean gap between probability and share inside, bins weighted by
        voxels; NaN without voxels.

        It compares one region with the rest ("classwise", Kull et al., NeurIPS 2019, equation 2).
        """
        n = int(self.n_voxels.sum())
        return float(np.abs(self.probability_sum - self.n_inside).sum() / n) if n else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Plain types; bins without voxels are left out."""
        filled = [i for i, n in enumerate(self.n_voxels.tolist()) if n]
        return {
            "ece": self.ece if filled else None,
            "bins": [
                {
                    "from": round(i / N_BINS, 4),
                    "n_voxels": int(self.n_voxels[i]),
                    "mean_probability": float(self.probability_sum[i] / self.n_voxels[i]),
                    "share_inside": float(self.n_inside[i] / self.n_voxels[i]),
                }
                for i in filled
            ],
        }


def reliability(probability: Float32[np.ndarray, " n"], inside: Bool[np.ndarray, " n"]) -> Reliability:
    """Sort voxels (n,) into bins by their probability; `inside` (n,) bool marks the voxels of the region."""
    bins = np.minimum((probability.astype(np.float64) * N_BINS).astype(np.int64), N_BINS - 1)
    return Reliability(
        n_voxels=np.bincount(bins, minlength=N_BINS),
        n_inside=np.bincount(bins[inside], minlength=N_BINS),
        probability_sum=np.bincount(bins, probability, minlength=N_BINS).astype(
            np.float64
        ),  # of no voxel at all it is whole numbers
    )


def score_probabilities(
    probabilities: Volumes,
    names: Sequence[str],
    *,
    reference: TissueMap,
    classes: Sequence[str],
    cavity_in: Sequence[str] = (),
) -> dict[str, Reliability]:
    """The reliability of each region of a case.

    Voxels outside the brain are left out: those with P(healthy) = 1 (as `predict` saves them) that are
    healthy in the reference too.

    Args:
        probabilities: (K, Z, Y, X), summing to 1 over K.
        names: tissue class of each of the K.
        reference: (Z, Y, X) indices into `classes`.
        classes: tissue classes of the reference; the network may have others.
        cavity_in: regions that the resection cavity belongs to.
    """
    counted: Mask = (probabilities[0] < 1) | (reference != 0)
    return {
        region: reliability(
            probabilities[list(region_classes(region, names, cavity_in=cavity_in))]
            .sum(axis=0)[counted]
            .clip(0, 1),
            np.isin(reference[counted], region_classes(region, classes, cavity_in=cavity_in)),
        )
        for region in regions_of(classes)
    }


def read_probabilities(out: Path, case_id: str, *, grid: Geometry) -> tuple[Volumes, tuple[str, ...]] | None:
    """The saved probabilities of a case and the names of its classes; None if nothing was saved.

    Raises:
        ScanError: a file that cannot be read, has another grid, or has no file `CLASSES` in its folder.
    """
    path = out / PROBABILITIES / f"{case_id}.nii.gz"
    if not path.is_file():
        return None
    listed = path.with_name(CLASSES)
    names = tuple(read_text(listed).split()) if listed.is_file() else ()
    if not names:
        raise ScanError(
            path,
            f"has no {CLASSES} in its folder",
            expected="the names of its classes, as `predict` writes them",
        )
    volumes = read_volumes([ScanFile(path, channel) for channel in range(len(names))])
    if not same_grid(volumes[0][1], grid):
        raise ScanError(path, "lies on another grid", expected="the grid of its reference")
    return np.stack([volume.astype(np.float32, copy=False) for volume, _ in volumes]), names


def calibration_tree(cases: Sequence[Mapping[str, Reliability]]) -> dict[str, Any]:
    """The part of summary.json: all voxels of all cases together, region by region."""
    totals = {
        region: sum((case[region] for case in cases[1:]), start=cases[0][region]) for region in cases[0]
    }
    return {
        "n_cases": len(cases),
        "voxels": "those whose probability of healthy is below 1, and all that the reference calls tumor",
        "regions": {region: total.to_dict() for region, total in totals.items()},
    }
