"""What a terminal shows is made of what is known."""

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny_study import Study

from brats_seg.commands.console import loading, make_console, make_table, show_first_that_fits, show_markdown
from brats_seg.commands.show_runs import show_predictions, show_run
from brats_seg.commands.show_scans import show_verification
from brats_seg.commands.show_scores import show_scores
from brats_seg.core.progress import log_line, progress_bar
from brats_seg.evaluation.folders import ScoreOptions, evaluate_folders
from brats_seg.inference.outcome import Prediction, PredictReport
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


TISSUES = {"healthy": 1_348_336, "necrotic_or_non_enhancing": 135_025, "edema": 168_794, "enhancing_core": 0}


def case_row(name: str, **more: Any) -> dict[str, Any]:
    row = {
        "case": name, "patient": name[:15], "layout": "brats2023", "shape": (155, 240, 240),
        "has_label": True, "class_counts": TISSUES, "n_errors": 0, "n_warnings": 0,
    }  # fmt: skip
    return row | more


@pytest.mark.parametrize("width", [80, 160])
def test_the_table_of_verify_fits_and_says_once_what_all_cases_share(width: int) -> None:
    written = StringIO()
    rows = [case_row(f"BraTS-GLI-0000{n}-000", n_warnings=2 * (n % 2)) for n in range(3)]
    show_verification(rows, [], console=Console(file=written, width=width))
    lines = written.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert lines[-1] == "3 good cases, tissue counted in voxels, layout brats2023, shape 155x240x240"
    table = [line.split() for line in lines if line.startswith("BraTS")]
    assert [row[-1] for row in table] == ["0", "2", "0"]  # without a warning, voxels of enhancing core
    assert all("135,025" in row for row in table)
    assert "errors" not in written.getvalue()


def test_no_case_no_table() -> None:
    written = StringIO()
    show_verification([], [], console=Console(file=written, width=80))
    assert written.getvalue() == "0 good cases\n"


def test_scores_fit_a_narrow_terminal_a_block_for_each_region(study: Study) -> None:
    summary = evaluate_folders(
        study.predictions, study.reference, options=ScoreOptions(conventions=("brats2020", "brats2023"))
    ).summary
    written = StringIO()
    show_scores(summary, console=Console(file=written, width=80))
    lines = written.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if line.startswith(("whole", "core", "active"))] == [
        "whole", "core", "active", "whole", "core", "active",
    ]  # fmt: skip
    wide = StringIO()
    show_scores(summary, console=Console(file=wide, width=160))
    assert len(wide.getvalue().splitlines()) < len(lines)


def test_volumes_stand_on_the_screen_after_predict(tmp_path: Path) -> None:
    written = StringIO()
    volumes = {"whole": 91.25, "core": 30.0, "active": 12.0, "edema": 61.25}
    predicted = PredictReport((Prediction("case1", tmp_path / "case1.nii.gz", 1.0, volumes, ()),), (), ())
    show_predictions(predicted, tmp_path, console=Console(file=written, width=80))
    assert ["case1", "91.2", "30.0", "12.0", "61.2"] in [x.split() for x in written.getvalue().splitlines()]


def test_numbers_are_never_broken_text_is() -> None:
    written = StringIO()
    table = make_table("strategy", "mean Dice")
    table.add_row("a name that is longer than the terminal", "0.726 +- 0.126")
    show_first_that_fits(table, console=Console(file=written, width=30))
    assert any("0.726 +- 0.126" in line for line in written.getvalue().splitlines())
    assert max(map(len, written.getvalue().splitlines())) <= 30


def test_loading_says_nothing_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with loading():
        pass
    assert capsys.readouterr() == ("", "")


def test_a_bar_keeps_its_count_and_time_beside_a_long_note(monkeypatch: pytest.MonkeyPatch) -> None:
    written = StringIO()
    narrow = Console(file=written, force_terminal=True, width=60)
    monkeypatch.setattr("brats_seg.core.progress.Console", lambda stderr: narrow)
    with progress_bar() as bar:
        bar.add_task("experiment", total=30, completed=4, note="fold 3 of a long name of a strategy " * 3)
    drawn = written.getvalue()
    assert "experiment" in drawn
    assert "4/30" in drawn
    assert "-:--:--" in drawn


def test_a_log_is_of_the_outermost_work(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as outer:
        log_line(outer, "experiment 1/2: done")
        with progress_bar() as inner:
            log_line(inner, "training 1/8: epoch 1")
    assert capsys.readouterr().err == "experiment 1/2: done\n"


def test_a_wide_table_of_markdown_is_a_block_for_each_row_in_a_narrow_terminal() -> None:
    text = "# Scores\n\n| method | AUC | picked on |\n| --- | --- | --- |\n| oversample | 99.1 +- 0.1 | |\n"
    narrow, piped = StringIO(), StringIO()
    show_markdown(text, console=Console(file=narrow, force_terminal=True, highlight=False, width=26))
    assert narrow.getvalue().splitlines() == ["# Scores", "", "method oversample; AUC", "  99.1 +- 0.1"]
    show_markdown(text, console=Console(file=piped, width=26))
    assert piped.getvalue() == text
