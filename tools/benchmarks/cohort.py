"""Full-size cases: the bank made of them, and scans in .nii.gz as the challenge gives them out."""

import os
from pathlib import Path

import numpy as np

from brats_seg.bank.bank import PatchBank
from brats_seg.bank.build import build_bank
from brats_seg.phantoms.files import write_case
from brats_seg.scans.case import Case
from brats_seg.scans.labels import TISSUES, common_classes, schema_named
from brats_seg.scans.layouts import find_cases

SHAPE = (155, 240, 240)
REAL_DATA = "BRATS_SEG_DATA"
_TISSUE_MEANS = {
    "healthy": (500, 450, 700, 400),
    "necrotic_core": (300, 250, 900, 500),
    "edema": (420, 410, 1100, 800),
    "non_enhancing_core": (430, 420, 1000, 700),
    "enhancing_core": (450, 900, 950, 650),
}


def open_bank(work: Path, *, n_cases: int = 10, patch_size: tuple[int, ...] = (64, 64)) -> PatchBank:
    """The bank under `work`, made first where there is none: `n_cases` of 240x240x155 voxels in four
    modalities, five tissue classes.
    """
    bank, scans = work / f"bank_{n_cases}", work / f"scans_{n_cases}"
    if not (bank / "bank.json").is_file():
        for number in range(1, n_cases + 1):
            _write(scans, number, layout="brats2013")
        build_bank(scans, bank, workers=1)
    return PatchBank(bank, patch_size=patch_size)


def find_scans(work: Path, *, n_cases: int) -> tuple[Case, ...]:
    """Up to `n_cases` cases in .nii.gz, with labels: real ones where BRATS_SEG_DATA is set, else phantoms,
    made first where missing.
    """
    root = os.environ.get(REAL_DATA)
    folder = Path(root) / "brats" if root else work / "scans_nifti"
    if not root:
        for number in range(1, n_cases + 1):
            name = f"BraTS2021_{number:05d}"
            if not (folder / name / f"{name}_seg.nii.gz").is_file():  # written last
                _write(folder, number, layout="brats2021")
    cases = [
        c for c in find_cases(folder).cases if c.label is not None and c.label.path.name.endswith(".nii.gz")
    ]
    if not cases:
        raise SystemExit(f"{folder}: no annotated case in .nii.gz; unset {REAL_DATA} to measure on phantoms")
    return tuple(cases[:n_cases])


def classes_of(cases: tuple[Case, ...]) -> tuple[str, ...]:
    """The finest tissue classes that the labels of all these cases tell apart."""
    return common_classes(schema_named(case.schema) for case in cases)


def _write(scans: Path, number: int, *, layout: str) -> None:
    rng = np.random.default_rng(number)
    tissue = _tissue(rng)
    rough = rng.standard_normal(SHAPE, dtype=np.float32) * 25
    means = np.array([_TISSUE_MEANS[name] for name in TISSUES[:5]], np.float32)
    modalities = np.zeros((*SHAPE, 4), np.int16)
    for m in range(4):  # one noise field, moved: new numbers for each modality would take most of the time
        noisy = means[:, m][np.minimum(tissue, 4)] + np.roll(rough, 1000 * m)
        modalities[..., m] = np.where(tissue == 255, 0, np.maximum(noisy, 1))
    write_case(scans, number, layout=layout, modalities=modalities, tissue=tissue, enhancing=True)


def _tissue(rng: np.random.Generator) -> np.ndarray:
    """A brain of the usual size (1.6 million voxels) with a tumor of nested shells, as indices into
    `TISSUES`, 255 outside the brain.
    """
    z, y, x = (
        np.arange(n, dtype=np.float32).reshape(shape)
        for n, shape in zip(SHAPE, ((-1, 1, 1), (1, -1, 1), (1, 1, -1)), strict=True)
    )
    brain = ((z - 75) / 66) ** 2 + ((y - 120) / 86) ** 2 + ((x - 120) / 68) ** 2 < 1
    center = (75, 120, 120) + rng.integers(-18, 19, 3) * (1, 1.5, 1.5)
    size = rng.uniform(0.7, 1.25) * np.array((20, 24, 22))
    depth = sum(
        (((axis - c) / s) ** 2 for axis, c, s in zip((z, y, x), center, size, strict=True)),
        np.zeros(SHAPE, np.float32),
    )
    tissue = np.where(brain, 0, 255).astype(np.uint8)
    for limit, name in (
        (1.0, "edema"),
        (0.42, "non_enhancing_core"),
        (0.34, "enhancing_core"),
        (0.14, "necrotic_core"),
    ):
        tissue[(depth < limit) & brain] = TISSUES.index(name)
    return tissue
