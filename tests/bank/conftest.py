"""A bank of four small cases, made once."""

from pathlib import Path

import pytest
from small_scans import write_cohort

from brats_seg.bank.build import BuildOptions, build_bank


@pytest.fixture(scope="session")
def small_bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bank's folder; tests that change it copy it."""
    root = tmp_path_factory.mktemp("bank")
    report = build_bank(write_cohort(root / "data"), root / "bank", options=BuildOptions(n_folds=2))
    assert report.complete
    return root / "bank"
