"""The bounds within which bfloat16 may be the default."""

import importlib.util
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "tools" / "benchmarks" / "precision.py"


@pytest.fixture(scope="module")
def precision():
    spec = importlib.util.spec_from_file_location("benchmarks_precision", SOURCE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("n_voxels", "differences", "within"),
    [
        (5000, (0.004, -0.004), True),  # each within 0.005, their mean 0
        (5000, (0.006, -0.006), False),
        (1000, (0.006, -0.006), True),  # not over 1,000 voxels
        (5000, (0.003, 0.003), False),  # a mean over 0.002
    ],
)
def test_both_bounds(precision, n_voxels, differences, within):
    rows = [
        precision.Row("run", f"case{i}", "core", n_voxels, 0.8, 0.8 + d, 0.7)
        for i, d in enumerate(differences)
    ]
    found = precision.summary_of(rows)
    assert found["within"] is within
    assert found["n_cases"] == 2
    assert found["mean_by_region"] == {"core": pytest.approx(sum(differences) / 2)}
    assert found["windows_minus_whole_slices"] == pytest.approx(-0.1)


def test_a_region_s_mean_counts_by_itself(precision):
    """Whole and core cancel out over all; each alone is 0.003 off."""
    rows = [
        precision.Row("run", "case", region, 5000, 0.8, 0.8 + d, 0.8)
        for region, d in (("whole", 0.003), ("core", -0.003))
    ]
    assert precision.summary_of(rows)["within"] is False
