"""Shared fixtures; every public array signature is checked at run time while the tests run."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook
from matplotlib.figure import Figure

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: each process of pytest-xdist has one core

import brats_seg.bank.gather_kernels  # noqa: F401  before the hook: numba compiles a function as it is written

# No deadline: how long an example takes says more about the machine than about the package.
# No test sets a number of examples that a profile would not: `HYPOTHESIS_PROFILE=long` holds for all of them.
settings.register_profile("short", deadline=None, max_examples=20)
settings.register_profile("long", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))

CHECKED = (
    "scans", "phantoms", "bank", "classification", "clinic", "imbalance", "models", "training", "inference",
    "evaluation", "reporting", "studies",
)  # fmt: skip
install_import_hook([f"brats_seg.{package}" for package in CHECKED], "beartype.beartype")

from brats_seg.reporting.progress import draw_progress  # noqa: E402  checked, as all that the tests import

SAVE_FIGURE = Figure.savefig


LONG = (
    "test_shipped_configs", "test_own_scans", "test_loop", "test_cluster", "test_typed_commands",
    "test_experiment", "test_kills", "test_notebooks", "test_pipeline", "test_hostile",
)  # fmt: skip
"""Test files of half a minute and more, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the long files: with `--no-loadscope-reorder`, two processes then end at the same time."""
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))


def pytest_collection_finish() -> None:
    """Collect garbage seldom, and never look through what was imported: a tenth of the time of the tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 50)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real BraTS cases."""
    root = os.environ.get("BRATS_SEG_DATA")
    if root is None or not (Path(root) / "brats").is_dir():
        pytest.skip("BRATS_SEG_DATA does not name a folder with brats/ in it: real scans are not tested")
    return Path(root) / "brats"


@pytest.fixture(scope="session", autouse=True)
def sketched() -> Iterator[None]:
    """Figures are drawn coarsely, without a layout, and the `progress.png` of a run stays empty. Of figures
    whose axes have the same titles and labels only the first is drawn; the others are saved as an empty
    figure, because drawing took a fifth of the time of an experiment. tests/reporting draws all as they are.
    """
    drawn: set[tuple[str, ...]] = set()

    def sketch(figure: Figure, file: Any, **how: Any) -> None:
        figure.set_layout_engine("none")
        words = tuple(
            word
            for axes in figure.axes
            for word in (axes.get_title("left"), axes.get_title(), axes.get_xlabel(), axes.get_ylabel())
        )
        shown = Figure(figsize=(1, 1)) if words in drawn else figure
        drawn.add(words)
        SAVE_FIGURE(shown, file, **how | {"dpi": 75, "bbox_inches": None})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", sketch)
        patch.setattr("brats_seg.training.log.draw_progress", lambda path, **rows: path.touch())
        yield


@pytest.fixture(scope="package")
def all_drawn(sketched: None) -> Iterator[None]:
    """Figures are drawn as they are in a whole folder of tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", SAVE_FIGURE)
        patch.setattr("brats_seg.training.log.draw_progress", draw_progress)
        yield


@pytest.fixture
def laid_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn as they are, but for `progress.png`."""
    monkeypatch.setattr(Figure, "savefig", SAVE_FIGURE)


@pytest.fixture
def drawn(laid_out: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn as they are."""
    monkeypatch.setattr("brats_seg.training.log.draw_progress", draw_progress)


@pytest.fixture(scope="session", autouse=True)
def one_core() -> Iterator[None]:
    """What a test gives no number of processes runs in the process of the test: a further process takes
    seconds to import the package.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
        patch.setattr(os, "cpu_count", lambda: 1)
        yield


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes are not too many."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
