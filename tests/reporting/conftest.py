"""Fixtures of the reports' tests."""

import pytest
from tiny_study import Study, make_study


@pytest.fixture(autouse=True)
def drawn(drawn: None) -> None:
    """Figures are drawn as they are."""


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Four tiny cases, their predictions and a run."""
    return make_study(tmp_path_factory.mktemp("study"))
