"""Scans go to nnU-Net's folders, and its label maps come back with the values of each release."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from brats_seg.phantoms.cohort import write_cohort
from brats_seg.scans.layouts import find_cases
from brats_seg.scans.volume import read_volume

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("convert", ROOT / "tools" / "nnunet" / "convert.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_label_map_there_and_back_is_the_label_of_its_case(tool: ModuleType, tmp_path: Path) -> None:
    write_cohort(tmp_path / "scans", layout="brats2021", n_cases=3, seed=0, size=48)
    first, second, third = find_cases(tmp_path / "scans").cases
    tool.to(tmp_path / "scans", tmp_path / "raw", [second.id], [third.id])
    there, _ = read_volume(tmp_path / "raw" / "labelsTs" / f"{second.id}.nii.gz")
    assert set(np.unique(there)) <= {0, 1, 2, 3}
    tool.back(tmp_path / "scans", tmp_path / "raw" / "labelsTs", tmp_path / "out")
    again, _ = read_volume(tmp_path / "out" / f"{second.id}.nii.gz")
    assert second.label is not None
    np.testing.assert_array_equal(again, read_volume(second.label)[0])
    assert json.loads((tmp_path / "raw" / "dataset.json").read_text())["numTraining"] == 1
    names = [path.name for path in (tmp_path / "raw" / "imagesTr").iterdir()]
    assert sorted(names) == [f"{first.id}_{channel:04}.nii.gz" for channel in range(4)]
