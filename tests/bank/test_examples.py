"""The scripts of docs/examples run."""

import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def run(name: str, *argv: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *argv])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_plain_numpy_draws_all_classes_alike(
    small_bank: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run("plain_numpy.py", str(small_bank), monkeypatch=monkeypatch)
    shares = re.findall(r"asked for ([\d.]+), drawn ([\d.]+)", capsys.readouterr().out)
    assert len(shares) > 2
    assert all(asked == drawn for asked, drawn in shares)


def test_the_loop_with_monai_gives_a_loss_for_each_step(
    small_bank: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run("monai_loop.py", str(small_bank), monkeypatch=monkeypatch)
    losses = [float(value) for value in re.findall(r"loss ([\d.]+)", capsys.readouterr().out)]
    assert len(losses) == 5
    assert all(value > 0 for value in losses)
