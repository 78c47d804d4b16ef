"""Shared fixtures; every public array signature is checked at run time while the tests run."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

import brats_seg.bank.gather_kernels  # noqa: F401  before the hook: numba compiles a function as it is written

settings.register_profile("untimed", deadline=None)  # how long a test takes says more about the machine
settings.load_profile("untimed")

CHECKED = (
    "scans", "phantoms", "bank", "classification", "clinic", "imbalance", "models", "training", "inference",
    "evaluation", "reporting", "studies",
)  # fmt: skip
install_import_hook([f"brats_seg.{package}" for package in CHECKED], "beartype.beartype")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real BraTS cases."""
    root = os.environ.get("BRATS_SEG_DATA")
    if root is None or not (Path(root) / "brats").is_dir():
        pytest.skip("BRATS_SEG_DATA does not name a folder with brats/ in it: real scans are not tested")
    return Path(root) / "brats"


@pytest.fixture(scope="module")
def undrawn() -> Iterator[None]:
    """Runs leave an empty `progress.png`: drawing it takes a second, longer than a tiny training.
    tests/training draws it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("brats_seg.training.log.draw_progress", lambda path, **rows: path.touch())
        yield
