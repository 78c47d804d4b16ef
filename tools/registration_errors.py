"""How well `prepare` finds real scans again that were moved by known amounts.

    BRATS_SEG_DATA=FOLDER python tools/registration_errors.py 50

FOLDER holds brats/ with real cases. Each scan (T1, T2 or FLAIR, drawn at random) is turned by 3 to 15 degrees
about a random axis and shifted by 3 to 20 mm. Every second one is also cut into slices of 5 mm with pixels of
0.5 mm. The scan is registered to the T1c of its case. The error is what is left of the movement: the mean
distance over the brain, and the angle. Prints a table.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813

from brats_seg.clinic.itk_images import affine_of, placed, resampled, to_itk
from brats_seg.clinic.register import register
from brats_seg.scans.case import Case
from brats_seg.scans.layouts import find_cases
from brats_seg.scans.volume import read_volume

SEED = 7


@dataclass(frozen=True)
class Misplaced:
    """One scan that was moved and registered again; errors are what is left of the movement."""

    modality: str
    slices: str
    degrees: float
    shift_mm: float
    error_mm: float
    error_degrees: float


def misplaced(cases: Sequence[Case], n: int) -> Iterator[Misplaced]:
    """Move and register n scans of these cases; the same arguments give the same movements."""
    rng = np.random.default_rng(SEED)
    for number in range(n):
        case = cases[rng.integers(len(cases))]
        name = ("t1n", "t2w", "t2f")[rng.integers(3)]
        fixed = to_itk(*read_volume(case.modalities["t1c"]))
        moving = sitk.Cast(to_itk(*read_volume(case.modalities[name])), sitk.sitkFloat32)
        axis, direction = rng.normal(size=3), rng.normal(size=3)
        degrees, shift_mm = rng.uniform(3, 15), rng.uniform(3, 20)
        turn = sitk.VersorRigid3DTransform((axis / np.linalg.norm(axis)).tolist(), np.radians(degrees))
        rotation = np.array(turn.GetMatrix()).reshape(3, 3)
        center = np.array(fixed.TransformContinuousIndexToPhysicalPoint([n / 2 for n in fixed.GetSize()]))
        known = np.eye(4)
        known[:3, :3] = rotation
        known[:3, 3] = center + direction * shift_mm / np.linalg.norm(direction) - rotation @ center
        is_thick = number % 2 == 1
        seen = sitk.DiscreteGaussian(moving, [0, 0, (5 / 2.355) ** 2]) if is_thick else moving
        grid = thick_grid(moving) if is_thick else moving
        found = register(resampled(seen, grid, matrix=np.linalg.inv(known)), fixed)
        rest = np.linalg.inv(known) @ found.matrix
        z, y, x = np.nonzero(sitk.GetArrayFromImage(fixed))
        places = affine_of(fixed) @ np.stack([x, y, z, np.ones_like(x)])[:, ::500]
        yield Misplaced(
            modality=name,
            slices="5 mm" if is_thick else "1 mm",
            degrees=degrees,
            shift_mm=shift_mm,
            error_mm=float(np.linalg.norm((rest @ places - places)[:3], axis=0).mean()),
            error_degrees=float(np.degrees(np.arccos(np.clip((np.trace(rest[:3, :3]) - 1) / 2, -1, 1)))),
        )


def thick_grid(image: sitk.Image) -> sitk.Image:
    """Slices of 5 mm with pixels of 0.5 mm, over the block of a BraTS image."""
    affine = affine_of(image) @ np.diag([0.5, 0.5, 5, 1])
    affine[2, 3] -= 12
    return placed(sitk.Image([480, 480, 36], sitk.sitkUInt8), affine)


def table(rows: Sequence[Misplaced]) -> str:
    """Median, 90th percentile and largest error, by slices and modality."""
    lines = ["| slices | scan | n | mm: median, 90 %, largest | degrees: median, 90 %, largest |"]
    lines.append("|---|---|---:|---:|---:|")
    for slices in ("1 mm", "5 mm", "all"):
        for modality in ("t1n", "t2w", "t2f", "all"):
            own = [r for r in rows if slices in (r.slices, "all") and modality in (r.modality, "all")]
            if own and (slices != "all" or modality == "all"):
                cells = [
                    ", ".join(f"{v:.2f}" for v in (np.median(e), np.quantile(e, 0.9), np.max(e)))
                    for e in ([r.error_mm for r in own], [r.error_degrees for r in own])
                ]
                lines.append(f"| {slices} | {modality} | {len(own)} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def main() -> None:
    """Print a line for each scan as it is registered, then the table."""
    cases = find_cases(Path(os.environ["BRATS_SEG_DATA"]) / "brats", labels="unused").cases
    rows = []
    for row in misplaced(cases, int(sys.argv[1])):
        rows.append(row)
        print(row, flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
