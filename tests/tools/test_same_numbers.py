"""Which numbers of two files differ."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

SOURCE = Path(__file__).parents[2] / "tools" / "same_numbers.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("same_numbers", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compare(tool: ModuleType, folder: Path, before: dict, after: dict, *options: str) -> int:
    (folder / "before.json").write_text(json.dumps(before))
    (folder / "after.json").write_text(json.dumps(after))
    return tool.main(["compare", str(folder / "before.json"), str(folder / "after.json"), *options])


def test_equal_numbers_end_with_0(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    numbers = {"run/epochs/0/loss": "0.25", "run/weights": "a1b2", "scores/dice": "nan"}
    assert compare(tool, tmp_path, numbers, numbers | {"one more": "1.0"}) == 0
    assert capsys.readouterr().out == "0 of 3 numbers differ; 1 are new\n"


def test_each_number_that_differs_is_named(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    before = {"loss": "0.25", "weights": "a1b2", "dice": "0.5"}
    assert compare(tool, tmp_path, before, {"loss": "0.2500000000000001", "dice": "0.5"}) == 1
    assert capsys.readouterr().out.splitlines() == [
        "loss: 0.25 -> 0.2500000000000001",
        "weights: a1b2 -> missing",
        "2 of 3 numbers differ; 0 are new",
    ]


def test_numbers_that_are_meant_to_change_are_left_out(tool: ModuleType, tmp_path: Path) -> None:
    before, after = {"pairs/p": "0.1", "loss": "0.25"}, {"pairs/p": "0.2", "loss": "0.25"}
    assert compare(tool, tmp_path, before, after) == 1
    assert compare(tool, tmp_path, before, after, "--except", "pairs/") == 0


def test_a_row_is_named_by_its_place_and_its_words(tool: ModuleType) -> None:
    rows = [{"case": "A", "region": "whole", "dice": "0.5", "seconds": 3.0, "note": "good"}]
    assert dict(tool.flatten(rows, "scores")) == {"scores/0 A whole/dice": "0.5"}


def test_a_long_curve_is_one_digest(tool: ModuleType) -> None:
    (same,) = tool.flatten([0.5] * 50, "roc")
    (other,) = tool.flatten([0.5] * 49 + [0.6], "roc")
    assert same[0] == other[0] == "roc"
    assert same[1] != other[1]


def test_without_digits_one_line_says_where_they_lie(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("BRATS_SEG_DATA", str(tmp_path))
    assert tool.main(["write", str(tmp_path / "out.json")]) == 1
    assert f"{tmp_path}/mnist: no such folder" in capsys.readouterr().err


def test_the_tool_imports_nothing_of_the_package() -> None:
    assert "import brats_seg" not in SOURCE.read_text()
    assert "from brats_seg" not in SOURCE.read_text()
