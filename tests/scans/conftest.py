"""Scans small enough to check by hand."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from brats_seg.scans.geometry import make_geometry
from brats_seg.scans.volume import write_volume

SHAPE = (6, 8, 10)
OLD_NAMES = {"t1n": "t1", "t1c": "t1ce", "t2w": "t2", "t2f": "flair", "label": "seg"}


def small_volumes(seed: int = 0) -> dict[str, np.ndarray]:
    """Four int16 modalities of a brain of 4 x 6 x 6 voxels, and a uint8 label with values 1 (2 voxels), 2 (4)
    and 4 (1) in it.
    """
    rng = np.random.default_rng(seed)
    volumes = {}
    for name in ("t1n", "t1c", "t2w", "t2f"):
        volumes[name] = np.zeros(SHAPE, np.int16)
        volumes[name][1:5, 1:7, 2:8] = rng.integers(1, 1000, (4, 6, 6))
    label = np.zeros(SHAPE, np.uint8)
    label[2, 3, 3:5], label[3, 3, 3:7], label[3, 4, 4] = 1, 2, 4
    return volumes | {"label": label}


@pytest.fixture
def volumes() -> dict[str, np.ndarray]:
    return small_volumes()


@pytest.fixture
def write_case() -> Callable[..., dict[str, Path]]:
    """Write volumes as a case of 2021: `write_case(folder, volumes, case_id=...)` gives role -> file."""

    def write(
        folder: Path, volumes: dict[str, np.ndarray], case_id: str = "BraTS2021_00001"
    ) -> dict[str, Path]:
        files = {}
        (folder / case_id).mkdir(parents=True, exist_ok=True)
        for name, array in volumes.items():
            files[name] = folder / case_id / f"{case_id}_{OLD_NAMES[name]}.nii.gz"
            write_volume(files[name], array, make_geometry(array.shape), dtype=array.dtype.name)
        return files

    return write
