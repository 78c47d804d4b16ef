"""What a terminal shows is made of what is known."""

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from brats_seg.reporting.console import show_run
from brats_seg.training.split import RunResult

NAN = float("nan")


@pytest.mark.parametrize(
    ("dice", "line"),
    [
        ((0.9, 0.8, 0.7), "best epoch 1: Dice on the inner split whole 0.900, core 0.800, active 0.700"),
        ((0.9, NAN, None), "best epoch 1: Dice on the inner split whole 0.900"),
        ((NAN, NAN, NAN), "best epoch 1: score on the inner split 0.500"),
    ],
)
def test_a_region_without_a_score_is_left_out(dice: tuple[Any, ...], line: str) -> None:
    row = {"epoch": 1, "loss": 0.1, "score": 0.5, "dice_whole": dice[0], "dice_core": dice[1], "dice_active": dice[2]}
    written = StringIO()
    result = RunResult(run_dir=Path("run"), n_epochs=1, ended="done", best_epoch=1, best_score=0.5, rows=(row,))
    show_run(result, console=Console(file=written, width=200))
    assert line in written.getvalue().splitlines()
