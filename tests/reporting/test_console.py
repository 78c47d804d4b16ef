"""What a terminal shows is made of what is known."""

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny_study import Study

from brats_seg.commands.console import make_console, show_run, show_scores
from brats_seg.evaluation.scores import evaluate_folders
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
    row = {
        "epoch": 1,
        "loss": 0.1,
        "score": 0.5,
        "dice_whole": dice[0],
        "dice_core": dice[1],
        "dice_active": dice[2],
    }
    written = StringIO()
    result = RunResult(
        run_dir=Path("run"), n_epochs=1, ended="done", best_epoch=1, best_score=0.5, rows=(row,)
    )
    show_run(result, console=Console(file=written, width=200))
    assert line in written.getvalue().splitlines()


def test_scores_over_few_patients_say_so(study: Study) -> None:
    written = StringIO()
    show_scores(
        evaluate_folders(study.predictions, study.reference).summary, console=Console(file=written, width=200)
    )
    lines = written.getvalue().splitlines()
    assert lines[-2:] == [
        "4 cases of 4 patients; mean +- sd",
        "With fewer than 6 patients the 95 % intervals are too narrow.",
    ]


def test_scores_of_regions_that_take_the_cavity_say_so(study: Study) -> None:
    written = StringIO()
    summary = evaluate_folders(study.predictions, study.reference).summary | {"cavity_in": ["whole", "core"]}
    show_scores(summary, console=Console(file=written, width=200))
    assert "the resection cavity belongs to whole, core" in written.getvalue().splitlines()


def test_the_first_of_several_ranks_alone_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        make_console().print(f"rank {rank}")
    assert capsys.readouterr().out == "rank 0\n"
