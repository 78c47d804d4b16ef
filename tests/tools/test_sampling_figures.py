"""The figures of the sampling page are of the committed rows, and so are its numbers."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from brats_seg.evaluation.comparison import differences_to

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sampling_figures", ROOT / "tools" / "sampling_figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def summary(tool: ModuleType) -> dict[str, Any]:
    return tool.summary_of(tool.committed_rows(ROOT / "docs" / "experiments" / "data"))


def test_the_first_two_findings_have_the_numbers_of_the_rows(summary: dict[str, Any]) -> None:
    page = " ".join((ROOT / "docs" / "experiments" / "sampling.md").read_text().split())
    (balanced,) = (
        d["regions"]
        for d in differences_to(summary, against="random")
        if (d["data"], d["to"]) == ("24 phantoms (seed 1)", "balanced")
    )
    for region in ("core", "active"):
        mean, (low, high) = (balanced[region]["dice"][part] for part in ("mean", "interval95"))
        assert f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]" in page
    mean, (low, high) = (balanced["whole"]["dice"][part] for part in ("mean", "interval95"))
    assert f"lose {-mean:.3f} [{-high:.3f}, {-low:.3f}] there" in page


def test_the_table_has_the_means_of_the_rows(summary: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "experiments" / "sampling.md").read_text()
    for variant in summary["variants"]:
        if variant["data"] in ("24 phantoms (seed 1)", "15 patients", "8 patients"):
            means = [variant["regions"][region]["dice"]["mean"] for region in ("whole", "core", "active")]
            assert " / ".join(f"{mean:.3f}" for mean in means) in page, variant["label"]


def test_a_figure_has_a_panel_for_each_region_of_phantoms_and_of_patients(
    tool: ModuleType, summary: dict[str, Any]
) -> None:
    found = {(d["data"], d["to"]): d["regions"] for d in differences_to(summary, against="random")}
    figure = tool.interval_chart(found, score="dice", zero=0, axis="Dice")
    assert [panel.get_title(loc="left") for panel in figure.axes] == ["whole", "core", "active"] * 2
