"""Scans of a few thousand voxels, in the layout of BraTS 2021 or 2013, and a bank of them."""

from pathlib import Path

import numpy as np

from brats_seg.scans.geometry import make_geometry
from brats_seg.scans.volume import write_volume

SHAPE = (12, 16, 20)
BRAIN = (slice(1, 11), slice(2, 14), slice(3, 18))
ROLES = ("t1", "t1ce", "t2", "flair")


def small_scan(seed: int, *, enhancing: bool = True) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Four int16 modalities of a brain of 10 x 12 x 15 voxels, and a label with values 2 (36 voxels), 1 (8)
    and 4 (4) in it.
    """
    rng = np.random.default_rng(seed)
    volumes = {}
    for number, role in enumerate(ROLES):
        volumes[role] = np.zeros(SHAPE, np.int16)
        volumes[role][BRAIN] = rng.integers(1, 500, (10, 12, 15)) + 100 * number
    label = np.zeros(SHAPE, np.uint8)
    label[4:7, 5:9, 6:10] = 2
    label[4:6, 5:7, 6:8] = 1
    if enhancing:
        label[6, 5:7, 6:8] = 4
    return volumes, label


def write_scan(
    data: Path,
    case_id: str,
    *,
    seed: int = 0,
    enhancing: bool = True,
    with_label: bool = True,
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    outside: int = 0,
) -> Path:
    """Write one case of 2021 and give its folder; `outside` voxels of edema lie beyond the brain."""
    volumes, label = small_scan(seed, enhancing=enhancing)
    label[0, 0, :outside] = 2
    folder = data / case_id
    folder.mkdir(parents=True)
    geometry = make_geometry(SHAPE, spacing_mm=spacing_mm)
    for role, volume in volumes.items():
        write_volume(folder / f"{case_id}_{role}.nii.gz", volume, geometry, dtype="int16")
    if with_label:
        write_volume(folder / f"{case_id}_seg.nii.gz", label, geometry, dtype="uint8")
    return folder


def write_cohort(data: Path, n_cases: int = 4) -> Path:
    """Cases BraTS2021_00000 and on, each another patient's; the last has no enhancing tumor."""
    for i in range(n_cases):
        write_scan(data, f"BraTS2021_{i:05}", seed=i, enhancing=i < n_cases - 1)
    return data
