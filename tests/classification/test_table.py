"""The table: means over repeats, the best of several trainings, pairs that share their set."""

from pathlib import Path
from typing import Any

import pytest

from brats_seg.studies.store import Row
from brats_seg.studies.study_table import make_table, pick, to_markdown, write_table


def row(method: str, auc: float, **changes: Any) -> Row:
    """A row with what the table looks at."""
    base: Row = {
        "kind": "step",
        "rho": 10.0,
        "mu": 0.1,
        "given": None,
        "minority_rule": "random",
        "repeat": 0,
        "method": method,
        "phase": 1,
        "imbalance_ratio": 1.0,
        "decision": "argmax",
        "part": "test",
        "n_test": 100,
        "rate": 0.1,
        "run": 0,
        "validation": None,
        "auc": auc,
        "accuracy": auc - 0.1,
        "balanced_accuracy": auc - 0.1,
    }
    return base | changes


def test_means_over_repeats_by_hand():
    mean = make_table([row("baseline", 0.8), row("baseline", 0.9, repeat=1)]).means[0]
    assert (mean["auc"], mean["n"]) == (pytest.approx(0.85), 2)
    assert mean["auc_sd"] == pytest.approx(0.0707107, abs=1e-6)
    assert 0.8 <= mean["auc_low"] <= 0.85 <= mean["auc_high"] <= 0.9


def test_one_network_has_the_interval_over_the_images_and_several_that_over_the_repeats():
    rows = [row("baseline", 0.8, auc_interval95=[0.7, 0.85]), row("focal", 0.9, auc_interval95=[0.8, 0.95]),
            row("focal", 0.7, auc_interval95=[0.6, 0.8], repeat=1), row("top_k", 0.5)]  # fmt: skip
    table = make_table(rows)
    means = {
        mean["method"]: [mean[name] for name in ("auc_low", "auc_high", "auc_over")] for mean in table.means
    }
    assert means == {
        "baseline": [0.7, 0.85, "images"], "focal": [0.7, 0.9, "repeats"], "top_k": [None, None, ""],
    }  # fmt: skip
    assert "80.00 [70.00, 85.00]" in to_markdown(table)
    assert "Where n is 1, the interval of the AUC is over the images." in to_markdown(table)


def test_the_best_training_on_the_test_set_and_by_validation():
    rows = [row("baseline", 0.9, rate=0.1, validation=0.5), row("baseline", 0.8, rate=0.01, validation=0.7)]
    assert pick(rows, on="test") == rows[:1]
    assert pick(rows, on="validation") == rows[1:]
    assert {mean["picked_on"]: mean["auc"] for mean in make_table(rows).means} == {
        "test": 0.9,
        "validation": 0.8,
    }


def test_pairs_share_their_set():
    rows = [
        row("baseline", 0.7),
        row("oversample", 0.8),
        row("baseline", 0.6, repeat=1),
        row("oversample", 0.8, repeat=1),
    ]
    rows.append(row("oversample", 0.1, repeat=9))  # no baseline to it
    pair = next(
        p
        for p in make_table(rows).pairs
        if (p["first"], p["second"], p["over"]) == ("oversample", "baseline", "step")
    )
    assert (pair["difference"], pair["n"]) == (pytest.approx(0.15), 2)


def test_pairs_say_which_images_picked_the_runs_and_are_given_for_both():
    """The baseline is trained twice: its best run on the test images is not its best on the validation
    images.
    """
    rows = [row("baseline", 0.9, rate=0.1, validation=0.5), row("baseline", 0.8, rate=0.01, validation=0.7)]
    rows.append(row("oversample", 0.85, rate=0.1, validation=0.6))
    pairs = [p for p in make_table(rows).pairs if (p["first"], p["over"]) == ("oversample", "step")]
    assert {p["picked_on"]: p["difference"] for p in pairs} == {
        "test": pytest.approx(-0.05),
        "validation": pytest.approx(0.05),
    }
    once = make_table([row("baseline", 0.7), row("oversample", 0.8)])
    assert {p["picked_on"] for p in once.pairs} == {""}  # one run each: nothing was picked
    assert "| validation | step | oversample | baseline |" in to_markdown(make_table(rows))


def test_pairs_have_the_paired_test_of_the_package():
    rows = [
        row(m, 0.5 + gain, repeat=r)
        for r in range(6)
        for m, gain in (("baseline", 0.0), ("oversample", 0.01 * (r + 1)))
    ]
    pair = next(p for p in make_table(rows).pairs if (p["first"], p["over"]) == ("oversample", "step"))
    assert (pair["n"], pair["p"]) == (6, pytest.approx(2 / 64))


def test_rho_and_mu_have_their_own_steps():
    rows = [
        row("baseline", auc, rho=rho, mu=mu)
        for rho, mu, auc in ((10, 0.1, 0.9), (50, 0.1, 0.8), (10, 0.5, 0.7), (50, 0.5, 0.5))
    ]
    steps = {(p["first"], p["second"]): p["difference"] for p in make_table(rows).pairs}
    assert steps["baseline at rho 50", "baseline at rho 10"] == pytest.approx(-0.15)
    assert steps["baseline at mu 0.5", "baseline at mu 0.1"] == pytest.approx(-0.25)


def test_step_and_linear_of_one_rho_have_equal_totals_and_are_compared():
    rows = [
        row("baseline", auc, rho=rho, mu=mu)
        for rho, mu, auc in ((10, 0.5, 0.8), (50, 0.5, 0.7), (10, 0.1, 0.95))
    ]
    rows += [
        row("baseline", auc, kind="linear", rho=rho, mu=None)
        for rho, auc in ((10, 0.9), (50, 0.9), (100, 0.1))
    ]
    pair = next(p for p in make_table(rows).pairs if p["over"] == "equal totals")
    assert (pair["first"], pair["second"], pair["n"]) == ("baseline, step mu 0.5", "baseline, linear", 2)
    assert pair["difference"] == pytest.approx(-0.15)
    assert not [p for p in make_table(rows[:3]).pairs if p["over"] == "equal totals"]


def test_table_4_stands_beside_the_published_one():
    ours = [row("baseline", 0.95, rho=100.0, mu=0.9, repeat=r) for r in range(3)]
    published = make_table([*ours, row("undersample", 0.5)], published="table4").published
    assert published[2] == "| baseline, published | 99.41 | 96.31 | 90.74 90.46 90.05 |"
    assert published[3] == "| baseline, ours | - | - | 95.00 95.00 95.00 |"
    assert published[7] == "| undersample, ours | 50.00 | - | - |"


def test_the_order_of_finishing_does_not_matter():
    rows = [row(m, 0.5 + r / 10, repeat=r) for m in ("undersample", "baseline") for r in range(3)]
    assert make_table(rows) == make_table(rows[::-1])


def test_three_files(tmp_path: Path):
    table = make_table([row("baseline", 0.8), row("oversample", 0.9)])
    paths = write_table(table, tmp_path)
    assert [path.name for path in paths] == ["table.csv", "pairs.csv", "table.md"]
    assert (tmp_path / "table.csv").read_text().count("\n") == 3
    assert "| step, rho 10, mu 0.1 | oversample | argmax | test (100) | 1 | 90.00 |" in to_markdown(table)
