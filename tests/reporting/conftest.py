"""Fixtures of the reports' tests."""

import pytest
from tiny_study import Study, make_study


@pytest.fixture(scope="package", autouse=True)
def drawn_as_they_are(all_drawn: None) -> None:
    """Figures are drawn as they are, those of shared pages too."""


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Four tiny cases, their predictions and a run."""
    return make_study(tmp_path_factory.mktemp("study"))
