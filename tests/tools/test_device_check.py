"""Steps of the check of a device, on the CPU."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).parents[2] / "tools" / "device_check.py"


@pytest.fixture
def check() -> Any:
    """The tool as a module."""
    spec = importlib.util.spec_from_file_location("device_check", SOURCE)
    check = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = check  # dataclasses look their module up
    spec.loader.exec_module(check)
    return check


def test_networks_an_hour_are_measured_in_stacks(check: Any, tmp_path: Path) -> None:
    rows = check.lenet(check.Job(tmp_path, None, "cpu", 0.01))
    alone, together, hours = rows.values()
    assert hours == pytest.approx(22_500 / max(alone, together))


def test_whole_volumes_are_measured(check: Any, tmp_path: Path) -> None:
    job = check.Job(tmp_path, None, "cpu", 0.01)
    check.bank(job)
    rows = check.inference(job)
    assert set(rows) == {"whole volumes a second, ours", "whole volumes a second, MONAI"}
    assert all(rate > 0 for rate in rows.values())
