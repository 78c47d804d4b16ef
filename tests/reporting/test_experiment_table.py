"""Means over cases, differences case by case, and a table that survives its own file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brats_seg.core.statistics import paired_difference
from brats_seg.reporting.experiment_figures import OVER, UNDER, error_overlay
from brats_seg.reporting.experiment_table import (
    COLUMNS,
    differences_to,
    read_finished,
    summarize_runs,
    table_markdown,
    write_rows,
)


def row(strategy: str, case: str, seed: int, dice: float | None, *, region: str = "whole", **changes: Any) -> dict[str, Any]:
    return {
        "data": "", "strategy": strategy, "correct_priors": "0", "fold": 0, "seed": seed, "cases": "held_out", "case": case,
        "patient": case[0], "region": region, "n_reference_vox": 10, "n_prediction_vox": 12, "dice": dice, "sensitivity": 0.5,
        "precision": 0.25, "volume_ratio": 1.2, "hd95_mm": None, "requested_share": None, "center_share": 0.2, "voxel_share": 0.1,
        "hard_share": None, "patches": 96, "seconds": 3.0, "config": "c", "bank": "b", "versions": "v", "cell": f"{strategy}{seed}",
        **changes,
    }  # fmt: skip


ROWS = [
    row("one", "A", 0, 0.5), row("one", "A", 1, 0.7), row("one", "B", 0, 0.4), row("one", "B", 1, 0.4),
    row("two", "A", 0, 0.7), row("two", "B", 0, 0.6),
    row("one", "A", 0, 0.3, region="active"), row("one", "B", 0, 0.0, region="active", n_reference_vox=0),
    row("two", "A", 0, 0.6, region="active"), row("two", "B", 0, None, region="active", n_reference_vox=0, n_prediction_vox=0),
    row("one", "A", 0, 0.2, region="core"), row("two", "A", 0, 0.4, region="core"),
]  # fmt: skip


def test_a_case_counts_once_however_many_seeds_segmented_it() -> None:
    one, two = summarize_runs(ROWS)["variants"]
    whole = one["regions"]["whole"]["dice"]
    assert (whole["mean"], whole["n"]) == (pytest.approx(0.5), 2)  # A (0.5 + 0.7) / 2, B 0.4
    assert whole["sd"] == pytest.approx(np.std([0.6, 0.4], ddof=1))
    assert two["regions"]["whole"]["dice"]["mean"] == pytest.approx(0.65)
    assert (one["n_runs"], two["n_runs"]) == (2, 1)


def test_a_case_without_the_region_is_left_out_and_what_is_found_in_it_counted_apart() -> None:
    one, two = (variant["regions"]["active"] for variant in summarize_runs(ROWS)["variants"])
    assert (one["dice"]["mean"], one["dice"]["n"]) == (0.3, 1)
    assert (one["n_present"], one["n_absent"], one["n_false_positive_cases"]) == (1, 1, 1)
    assert two["n_false_positive_cases"] == 0


def test_differences_are_taken_case_by_case() -> None:
    summary = summarize_runs(ROWS)
    (difference,) = differences_to(summary)
    assert (difference["from"], difference["to"]) == ("one", "two")
    whole = difference["regions"]["whole"]["dice"]
    assert (whole["mean"], whole["n"]) == (pytest.approx(0.15), 2)  # A +0.1, B +0.2
    assert whole["interval95"] == pytest.approx([0.1, 0.2])
    mean = difference["regions"]["mean"]["dice"]  # of A alone: (0.7 + 0.4 + 0.6) / 3 - (0.6 + 0.2 + 0.3) / 3
    assert (mean["mean"], mean["n"]) == (pytest.approx(0.2), 1)
    (other,) = differences_to(summarize_runs(ROWS, against="two"), against="two")
    assert other["regions"]["whole"]["dice"]["mean"] == pytest.approx(-0.15)


def test_paired_difference_is_second_minus_first_over_what_both_have() -> None:
    found = paired_difference({"a": 1.0, "b": 2.0, "c": 9.0}, {"a": 2.0, "b": 4.0}, patient_of={"a": "p", "b": "q"})
    assert (found["mean"], found["n"], found["p"]) == (1.5, 2, 0.5)


def test_rows_survive_their_file(tmp_path: Path) -> None:
    write_rows(tmp_path / "runs.csv", ROWS)
    finished = read_finished(tmp_path / "runs.csv")
    assert [r for rows in finished.values() for r in rows] == sorted(ROWS, key=lambda r: list(finished).index(r["cell"]))
    assert set(finished) == {"one0", "one1", "two0"}
    assert (tmp_path / "runs.csv").read_text().splitlines()[0] == ",".join(COLUMNS)


def test_the_table_names_what_it_holds() -> None:
    text = table_markdown(summarize_runs(ROWS), title="Two")
    assert "| one | 0.500 +- 0.141 (2) | 0.200 (1) | 0.300 (1) |" in text
    assert "| two - one | +0.150 [+0.100, +0.200], p 0.5 (2) |" in text
    assert "1 of 1" in text


def test_too_much_and_too_little_have_a_color_each() -> None:
    reference, prediction = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    reference[0, 0] = prediction[3, 3] = True
    picture = error_overlay(np.zeros((4, 4), np.uint8), reference, prediction, scale=1)
    for place, color in (((3, 3), OVER), ((0, 0), UNDER)):
        assert np.allclose(picture[place], [0.85 * int(color[i : i + 2], 16) for i in (1, 3, 5)], atol=1)
    assert not picture[1, 1].any()
