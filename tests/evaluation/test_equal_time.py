"""Scores after equal training time, from rows made by hand."""

from pathlib import Path
from typing import Any

import pytest

from brats_seg.evaluation.comparison import differences_to, looks_within_time, summarize_equal_time
from brats_seg.evaluation.run_rows import LOOK_COLUMNS, read_finished, write_rows


def look(
    strategy: str, epoch: int, training_s: float, dice: float, *, case: str = "A", seed: int = 0
) -> dict[str, Any]:
    """A row after an epoch of 100 patches."""
    return {
        "data": "",
        "strategy": strategy,
        "correct_priors": "0",
        "fold": 0,
        "seed": seed,
        "cases": "held_out",
        "case": case,
        "patient": case,
        "region": "whole",
        "n_reference_vox": 10,
        "n_prediction_vox": 12,
        "dice": dice,
        "sensitivity": 0.5,
        "precision": 0.25,
        "volume_ratio": 1.2,
        "hd95_mm": None,
        "patches": 100 * epoch,
        "config": "c",
        "bank": "b",
        "versions": "v",
        "cell": f"{strategy}{seed}",
        "epoch": epoch,
        "training_s": training_s,
    }


FAST = [look("fast", epoch, 10.0 * epoch, 0.1 * epoch) for epoch in (1, 2, 3, 4)]
SLOW = [look("slow", epoch, 15.0 * epoch, 0.2 * epoch) for epoch in (1, 2, 3, 4)]


def test_each_run_counts_with_its_last_look_within_the_time_of_the_shortest() -> None:
    """The fast run ends after 40 s; the slow run has looks after 15, 30, 45 and 60 s."""
    chosen = [(row["strategy"], row["epoch"]) for row in looks_within_time([*FAST, *SLOW])]
    assert chosen == [("fast", 4), ("slow", 2)]


def test_the_summary_says_how_many_patches_it_was_and_pairs_the_cases() -> None:
    rows = [
        *FAST,
        *(row | {"case": "B", "patient": "B", "dice": 0.6} for row in FAST),
        *SLOW,
        *(row | {"case": "B", "patient": "B", "dice": 0.5} for row in SLOW),
    ]
    summary = summarize_equal_time(rows, against="fast")
    assert summary is not None
    fast, slow = summary["variants"]
    assert (fast["patches"], fast["training_s"], fast["share"]) == (400, 40, 1)
    assert (slow["patches"], slow["training_s"], slow["share"]) == (200, 30, 0.5)
    (difference,) = differences_to(summary, against="fast")
    whole = difference["regions"]["whole"]["dice"]  # A: 0.4 - 0.4, B: 0.5 - 0.6
    assert (difference["to"], whole["n"]) == ("slow", 2)
    assert whole["mean"] == pytest.approx(-0.05)
    assert whole["interval95"] == pytest.approx([-0.1, 0.0])


def test_the_time_is_that_of_each_fold_and_seed_and_patches_are_the_mean() -> None:
    """With seed 1 on a machine twice as slow, the time is 80 s there: the slow run's look after 60 s."""
    other = [row | {"seed": 1, "training_s": 2 * row["training_s"], "cell": "1"} for row in FAST]
    even = [row | {"seed": 1, "cell": "2"} for row in SLOW]
    chosen = looks_within_time([*FAST, *SLOW, *other, *even])
    assert [(row["strategy"], row["seed"], row["epoch"]) for row in chosen if row["strategy"] == "slow"] == [
        ("slow", 0, 2),
        ("slow", 1, 4),
    ]
    summary = summarize_equal_time([*FAST, *SLOW, *other, *even])
    assert summary is not None
    assert summary["variants"][1]["patches"] == 300  # of 200 and 400


def test_a_clock_that_differs_by_less_than_five_percent_costs_no_look() -> None:
    near = [look("near", epoch, 10.4 * epoch, 0.1) for epoch in (1, 2, 3, 4)]
    far = [look("far", epoch, 10.6 * epoch, 0.1) for epoch in (1, 2, 3, 4)]
    chosen = {row["strategy"]: row["epoch"] for row in looks_within_time([*FAST, *near, *far])}
    assert chosen == {"fast": 4, "near": 4, "far": 3}


def test_a_run_whose_first_look_is_too_late_is_counted_and_left_out() -> None:
    late = [look("late", epoch, 50.0 * epoch, 0.9) for epoch in (1, 2, 3, 4)]
    summary = summarize_equal_time([*FAST, *late])
    assert summary is not None
    assert summary["n_too_late"] == 1
    assert [v["label"] for v in summary["variants"]] == ["fast"]
    assert summarize_equal_time([]) is None


def test_looks_survive_their_file(tmp_path: Path) -> None:
    write_rows(tmp_path / "looks.csv", FAST, columns=LOOK_COLUMNS)
    assert read_finished(tmp_path / "looks.csv", columns=LOOK_COLUMNS) == {"fast0": FAST}
