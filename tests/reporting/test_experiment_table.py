"""Means over cases, differences case by case, and a table that survives its own file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brats_seg.core.errors import InputError
from brats_seg.core.statistics import paired_difference
from brats_seg.evaluation.comparison import differences_to, summarize_runs
from brats_seg.evaluation.run_rows import COLUMNS, read_finished, write_rows
from brats_seg.reporting.experiment_figures import error_overlay, tradeoff_chart
from brats_seg.reporting.experiment_table import table_markdown
from brats_seg.reporting.style import OVER, RIGHT, UNDER


def row(
    strategy: str, case: str, seed: int, dice: float | None, *, region: str = "whole", **changes: Any
) -> dict[str, Any]:
    return {
        "data": "",
        "strategy": strategy,
        "correct_priors": "0",
        "fold": 0,
        "seed": seed,
        "cases": "held_out",
        "case": case,
        "patient": case[0],
        "region": region,
        "n_reference_vox": 10,
        "n_prediction_vox": 12,
        "dice": dice,
        "sensitivity": 0.5,
        "precision": 0.25,
        "volume_ratio": 1.2,
        "hd95_mm": None,
        "requested_share": None,
        "center_share": 0.2,
        "voxel_share": 0.1,
        "hard_share": None,
        "distinct_share": 0.5,
        "patches": 96,
        "seconds": 3.0,
        "config": "c",
        "bank": "b",
        "versions": "v",
        "cell": f"{strategy}{seed}",
        **changes,
    }


ROWS = [
    row("one", "A", 0, 0.5),
    row("one", "A", 1, 0.7),
    row("one", "B", 0, 0.4),
    row("one", "B", 1, 0.4),
    row("two", "A", 0, 0.7),
    row("two", "B", 0, 0.6),
    row("two", "A", 2, 0.1),
    row("one", "A", 0, 0.3, region="active"),
    row("one", "B", 0, 0.0, region="active", n_reference_vox=0),
    row("two", "A", 0, 0.6, region="active"),
    row("two", "B", 0, None, region="active", n_reference_vox=0, n_prediction_vox=0),
    row("one", "A", 0, 0.2, region="core"),
    row("two", "A", 0, 0.4, region="core"),
]


def test_a_case_counts_once_however_many_seeds_segmented_it() -> None:
    one, two = summarize_runs(ROWS)["variants"]
    whole = one["regions"]["whole"]["dice"]
    assert (whole["mean"], whole["n"]) == (pytest.approx(0.5), 2)  # A (0.5 + 0.7) / 2, B 0.4
    assert whole["sd"] == pytest.approx(np.std([0.6, 0.4], ddof=1))
    assert two["regions"]["whole"]["dice"]["mean"] == pytest.approx(0.5)  # A (0.7 + 0.1) / 2, B 0.6
    assert (one["n_runs"], two["n_runs"]) == (2, 2)


def test_a_case_without_the_region_is_left_out_and_what_is_found_in_it_counted_apart() -> None:
    one, two = (variant["regions"]["active"] for variant in summarize_runs(ROWS)["variants"])
    assert (one["dice"]["mean"], one["dice"]["n"]) == (0.3, 1)
    assert (one["n_present"], one["n_absent"], one["false_positives"]) == (
        1,
        1,
        {"n": 1, "of": 1, "median_vox": 12},
    )
    assert two["false_positives"] == {"n": 0, "of": 1, "median_vox": None}


def test_false_positives_are_counted_by_segmentation_not_by_case() -> None:
    found = [
        row("one", "B", seed, 0.0, region="active", n_reference_vox=0, n_prediction_vox=n)
        for seed, n in enumerate((0, 4, 10))
    ]
    summary = summarize_runs([*ROWS[:2], *found])
    assert summary["variants"][0]["regions"]["active"]["false_positives"] == {
        "n": 2,
        "of": 3,
        "median_vox": 7,
    }
    assert "| 2 of 3 (7 vox) |" in table_markdown(summary, title="One")


def test_differences_are_taken_case_by_case_over_the_runs_that_both_have() -> None:
    summary = summarize_runs(ROWS)
    (difference,) = differences_to(summary)
    assert (difference["from"], difference["to"]) == ("one", "two")
    whole = difference["regions"]["whole"]["dice"]
    assert difference["n_runs"] == 1  # seed 0; one lacks seed 2 and two seed 1
    assert (whole["mean"], whole["n"]) == (pytest.approx(0.2), 2)  # A 0.7 - 0.5, B 0.6 - 0.4
    assert whole["interval95"] == pytest.approx([0.2, 0.2])
    mean = difference["regions"]["mean"]["dice"]  # of A alone: (0.7 + 0.4 + 0.6) / 3 - (0.5 + 0.2 + 0.3) / 3
    assert (mean["mean"], mean["n"]) == (pytest.approx(0.7 / 3), 1)
    assert difference["regions"]["whole"]["volume_ratio"]["mean"] == 0
    (other,) = differences_to(summarize_runs(ROWS, against="two"), against="two")
    assert other["regions"]["whole"]["dice"]["mean"] == pytest.approx(-0.2)


def test_with_a_variant_to_compare_with_no_other_pair_is_computed() -> None:
    rows = [row(name, case, 0, 0.5) for name in ("one", "two", "three") for case in "AB"]
    pairs = [(d["from"], d["to"]) for d in summarize_runs(rows, against="two")["differences"]]
    assert pairs == [("two", "one"), ("two", "three")]
    assert len(summarize_runs(rows)["differences"]) == 3


def test_the_table_says_which_scores_picked_the_runs() -> None:
    picked_on = {("one", "0"): "test", ("two", "0"): ""}
    summary = summarize_runs(ROWS, picked_on=picked_on)
    assert [variant["picked_on"] for variant in summary["variants"]] == ["test", ""]
    text = table_markdown(summary, title="")
    assert "| runs | picked on |" in text
    assert "| 2 | test |" in text
    assert "so that the scores are too high" in text
    assert "picked on" not in table_markdown(summarize_runs(ROWS), title="").lower()


def test_paired_difference_is_second_minus_first_over_what_both_have() -> None:
    found = paired_difference(
        {"a": 1.0, "b": 2.0, "c": 9.0}, {"a": 2.0, "b": 4.0}, patient_of={"a": "p", "b": "q"}
    )
    assert (found["mean"], found["n"], found["p"]) == (1.5, 2, 0.5)


def test_p_is_over_patients_and_few_patients_are_said_however_many_scans_they_have() -> None:
    rows = [
        row(strategy, f"{patient}{scan}", 0, 0.5 + 0.1 * (strategy == "two") + 0.01 * scan, region=region)
        for strategy in ("one", "two")
        for patient in "ABC"
        for scan in range(4)
        for region in ("whole", "core", "active")
    ]
    summary = summarize_runs(rows)
    (difference,) = differences_to(summary)
    whole = difference["regions"]["whole"]["dice"]
    assert (whole["n"], whole["n_patients"], whole["p"]) == (12, 3, 0.25)  # 2 / 2 ** 3
    assert summary["test"] == "Wilcoxon signed-rank over patients, each the mean over its cases, two-sided"
    assert "With fewer than 6 patients p cannot fall below 0.05" in table_markdown(summary, title="Few")


def test_rows_survive_their_file(tmp_path: Path) -> None:
    write_rows(tmp_path / "runs.csv", ROWS)
    finished = read_finished(tmp_path / "runs.csv")
    assert [r for rows in finished.values() for r in rows] == sorted(
        ROWS, key=lambda r: list(finished).index(r["cell"])
    )
    assert set(finished) == {"one0", "one1", "two0", "two2"}
    text = (tmp_path / "runs.csv").read_text()
    assert text.splitlines()[0] == ",".join(COLUMNS)
    (tmp_path / "runs.csv").write_text(text[:-40])
    with pytest.raises(InputError, match=r"runs\.csv: not a table: line \d+ has \d+ cells for 27 columns"):
        read_finished(tmp_path / "runs.csv")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("dice", "nan"),
        ("dice", "inf"),
        ("dice", "1.0001"),
        ("dice", "-0.1"),
        ("sensitivity", "2"),
        ("n_reference_vox", "-1"),
        ("hd95_mm", "-3"),
        ("center_share", "1.5"),
        ("seconds", "-1"),
        ("seconds", ""),
        ("fold", ""),
        ("fold", "9" * 5000),
    ],
)
def test_a_cell_that_is_no_number_is_refused(tmp_path: Path, column: str, value: str) -> None:
    write_rows(tmp_path / "runs.csv", [dict(ROWS[0], **{column: value})])
    with pytest.raises(InputError, match=r"runs\.csv: not a runs\.csv"):
        read_finished(tmp_path / "runs.csv")


def test_the_table_names_what_it_holds() -> None:
    text = table_markdown(summarize_runs(ROWS), title="Two")
    assert "| one | 0.500 +- 0.141 (2) | 0.200 (1) | 0.300 (1) |" in text
    assert "| two - one | +0.200 [+0.200, +0.200], p 0.5 (2) |" in text
    assert "| 1 of 1 (12 vox) |" in text
    assert "With fewer than 6 patients p cannot fall below 0.05" in text


def test_hd95_is_over_the_cases_that_have_one_and_stands_in_a_table() -> None:
    far = [
        row("one", "A", 0, 0.5, hd95_mm=2.0),
        row("one", "B", 0, 0.4, hd95_mm=None),
        row("two", "A", 0, 0.5, hd95_mm=30.0),
    ]
    text = table_markdown(summarize_runs(far), title="Far")
    assert "| one | 2.0 (1) | - | - |" in text
    assert "| two - one | +28.0, p 1 (1) |" in text


def test_the_table_of_an_experiment_that_is_not_finished_says_so() -> None:
    text = table_markdown(
        summarize_runs(ROWS, n_asked=6, failed=[("two/fold0/seed1", "the loss is nan")]), title="Two"
    )
    assert "**4 of 6 runs are finished; everything here is over these.**" in text
    assert "- failed: two/fold0/seed1: the loss is nan" in text
    assert "finished" not in table_markdown(summarize_runs(ROWS, n_asked=4), title="Two")


def test_runs_of_different_versions_are_told() -> None:
    mixed = [dict(r, versions="w") if r["strategy"] == "two" else r for r in ROWS]
    assert "The runs are of different versions: v; w." in table_markdown(summarize_runs(mixed), title="Two")
    assert "different versions" not in table_markdown(summarize_runs(ROWS), title="Two")


def test_a_precision_that_a_case_lacks_says_over_how_many_it_is() -> None:
    rows = [row("one", "A", 0, 0.5), row("one", "B", 0, 0.0, n_prediction_vox=0, precision=None)]
    assert "| one | 1.20 [1.20, 1.20] / 0.50 / 0.25 (1) |" in table_markdown(
        summarize_runs(rows), title="One"
    )


def test_the_ledger_has_each_strategy_once_whatever_its_variants() -> None:
    mixed = [
        row("one", "A", 0, 0.5, region="healthy", correct_priors=strength) for strength in ("0", "0.5", "1")
    ]
    ledger = table_markdown(summarize_runs([*ROWS, *mixed]), title="One").partition("## Ledger")[2]
    assert [line.split(" | ")[0] for line in ledger.splitlines() if line.startswith("| ")] == [
        "| strategy",
        "| ---",
        "| one",
        "| two",
    ]
    assert "| one | 20.0 % / 10.0 % / 50.0 % |" in ledger


def test_rows_of_a_store_from_before_a_column_are_summarized_without_it() -> None:
    old = [
        {
            name: value
            for name, value in row("one", "A", 0, 0.5, region="healthy").items()
            if name != "distinct_share"
        }
    ]
    assert "| one | 20.0 % / 10.0 % / - |" in table_markdown(summarize_runs(old), title="One")


def test_the_table_says_which_cases_were_scored() -> None:
    assert "of the held-out folds" in table_markdown(summarize_runs(ROWS), title="")
    assert "of the inner splits" in table_markdown(
        summarize_runs([{**r, "cases": "inner"} for r in ROWS]), title=""
    )


def test_no_two_of_many_variants_look_alike() -> None:
    regions = {
        "edema": {score: {"mean": 0.5, "interval95": None, "n": 4} for score in ("precision", "sensitivity")}
    }
    figure = tradeoff_chart([{"label": str(i), "regions": regions} for i in range(24)], regions=["edema"])
    points = [line for line in figure.axes[0].lines if line.get_marker() != "None"]
    assert len({(line.get_color(), line.get_marker()) for line in points}) == 24


def test_a_variant_that_is_in_one_panel_alone_is_in_the_legend() -> None:
    there = {score: {"mean": 0.5, "interval95": None, "n": 4} for score in ("precision", "sensitivity")}
    absent = {score: {"mean": None, "interval95": None, "n": 4} for score in ("precision", "sensitivity")}
    variants = [
        {"label": "one", "regions": {"edema": there, "core": there}},
        {"label": "two", "regions": {"edema": absent, "core": there}},
    ]
    (legend,) = tradeoff_chart(variants, regions=["edema", "core"]).legends
    assert [text.get_text() for text in legend.get_texts()] == ["one", "two"]


def test_cases_of_one_name_in_two_cohorts_are_two() -> None:
    summary = summarize_runs([*ROWS, *({**r, "data": "another", "patient": "P"} for r in ROWS)])
    assert (summary["n_cases"], summary["n_patients"]) == (4, 3)
    assert [d["regions"]["whole"]["dice"]["interval95"] is None for d in summary["differences"]] == [
        False,
        True,
    ]


def test_how_a_difference_changes_is_paired_over_the_same_brains() -> None:
    ours = [
        row(name, case, 0, dice)
        for name, case, dice in (("one", "A", 0.5), ("one", "B", 0.5), ("two", "A", 0.6), ("two", "B", 0.8))
    ]
    more = [dict(r, data="faint", dice=r["dice"] - 0.1 if r["strategy"] == "one" else 0.9) for r in ours]
    rows = [*(dict(r, data="plain") for r in ours), *more, *(dict(r, data="other brains") for r in ours)]
    summary = summarize_runs(rows, same_brains=["plain", "faint"])
    (change,) = summary["changes"]
    assert (change["than"], change["data"], change["from"], change["to"]) == ("plain", "faint", "one", "two")
    whole = change["regions"]["whole"]["dice"]  # A: 0.5 - 0.1, B: 0.5 - 0.3
    assert (whole["mean"], whole["n"]) == (pytest.approx(0.3), 2)
    assert "| faint: two - one | +0.300" in table_markdown(summary, title="t")
    (turned,) = summarize_runs(rows, against="two", same_brains=["plain", "faint"])["changes"]
    assert (turned["to"], turned["regions"]["whole"]["dice"]["mean"]) == ("one", pytest.approx(-0.3))
    assert summarize_runs(rows)["changes"] == []


def test_too_much_too_little_and_found_have_a_color_each_and_the_reference_a_white_border() -> None:
    reference, prediction = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
    reference[0:3, 0:3] = reference[0:3, 6:9] = prediction[0:3, 6:9] = prediction[6:9, 6:9] = True
    picture = error_overlay(np.zeros((9, 9), np.uint8), reference, prediction, scale=1)
    for place, color, opacity in (((7, 7), OVER, 0.4), ((1, 1), UNDER, 0.4), ((1, 7), RIGHT, 0.3)):
        assert np.allclose(picture[place], [opacity * int(color[i : i + 2], 16) for i in (1, 3, 5)], atol=1)
    assert picture[0, 0].tolist() == picture[2, 6].tolist() == [255, 255, 255]
    assert not picture[4, 4].any()
