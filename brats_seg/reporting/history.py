"""A run folder -> the training part of a report: curves, and the class mix requested and drawn."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from brats_seg.core.config import load_config
from brats_seg.core.errors import InputError, UsageError, count_words
from brats_seg.core.files import BEST, read_json, read_table, read_text, sha256, shown
from brats_seg.imbalance.ledger import LEDGER_COLUMNS, OUTSIDE
from brats_seg.reporting.figures import line_chart, mix_chart
from brats_seg.reporting.plots import Plot, plot
from brats_seg.reporting.style import words
from brats_seg.scans.labels import REGIONS

Rows = list[dict[str, str]]
Line = tuple[list[float], list[float]]
NAN = float("nan")


def training_section(run: Path) -> dict[str, Any]:
    """Curves from epochs.csv, mix and table from ledger.csv, and the text of config.yaml; a missing file is
    left out.

    Raises:
        InputError: the folder has none of the three, or a table in it is damaged.
    """
    epochs = _rows(
        run / "epochs.csv", numbers=("epoch",), or_empty=("loss", *(f"dice_{region}" for region in REGIONS))
    )
    ledger = _rows(run / "ledger.csv", numbers=[column for column in LEDGER_COLUMNS if column != "class"])
    config = run / "config.yaml"
    if not (epochs or ledger or config.is_file()):
        raise InputError(
            f"--run {run}: neither epochs.csv nor ledger.csv nor config.yaml is in it; give a folder that "
            "train wrote"
        )
    mix = ledger_rows(ledger)
    return {
        "run": run.resolve().name,
        "epochs": _epochs_words(len({r["epoch"] for r in epochs or ledger}), config),
        "curves": _curves(epochs),
        "ledger_rows": mix,
        "has_hard": any(r["n_hard"] for r in mix),
        "outside_percent": _mean_percent([r for r in ledger if r["class"] == OUTSIDE], "voxel_share"),
        "mix": _mix_plot(mix) if mix else None,
        "config": read_text(config) if config.is_file() else None,
    }


def provenance(run: Path | None) -> str:
    """Where predictions come from, in one line: run, date, config, checkpoint, training cases; missing
    information is left out.
    """
    if run is None:
        return "The run is not named: --run RUN adds its date, config, checkpoint and training cases."
    said = [f"Run {run.resolve().name}"]
    environment = run / "environment.json"
    if environment.is_file():
        noted = read_json(environment)
        command = [str(word) for word in noted.get("command", ())]
        said += [f"trained on {str(noted['started'])[:10]}"] if "started" in noted else []
        said += [f"config {command[command.index('--config') + 1]}"] if "--config" in command[:-1] else []
    cases = {row["case"] for row in _rows(run / "ledger_cases.csv", numbers=("epoch",))}
    said += [f"checkpoint {sha256(run / BEST)[:12]}"] if (run / BEST).is_file() else []
    said += [f"{len(cases)} training cases"] if cases else []
    return " · ".join(said)


def _epochs_words(n_done: int, config: Path) -> str:
    """Number of trained epochs; if the run stopped early, also the planned number."""
    try:
        n_epochs = load_config(config).n_epochs if config.is_file() else n_done
    except UsageError:  # of another version
        n_epochs = n_done
    return f"{n_done} of {n_epochs} epochs" if n_done < n_epochs else count_words(n_done, "epoch")


def ledger_rows(ledger: Rows) -> list[dict[str, Any]]:
    """The ledger over all epochs, a row a class: mean shares in percent, sums of draws, and draws for each
    distinct voxel of an epoch.
    """
    rows = []
    for name in dict.fromkeys(r["class"] for r in ledger if r["class"] != OUTSIDE):
        of_class = [r for r in ledger if r["class"] == name]
        n_draws, n_distinct, n_hard = (
            sum(int(r[column]) for r in of_class) for column in ("n_draws", "n_distinct", "n_hard")
        )
        rows.append(
            {
                "name": name,
                "requested_percent": _mean_percent(of_class, "requested_share"),
                "center_percent": _mean_percent(of_class, "center_share"),
                "voxel_percent": _mean_percent(of_class, "voxel_share"),
                "n_draws": n_draws,
                "n_distinct": round(n_distinct / len(of_class)),
                "repeats": n_draws / n_distinct if n_distinct else NAN,
                "n_hard": n_hard,
            }
        )
    return rows


def _mean_percent(rows: Rows, column: str) -> float:
    return 100 * sum(float(r[column]) for r in rows) / len(rows) if rows else NAN


def _mix_plot(rows: Sequence[Mapping[str, Any]]) -> Plot:
    mixes = {
        "requested": "requested_percent",
        "patch centers": "center_percent",
        "patch voxels": "voxel_percent",
    }
    shares = {title: np.array([r[column] / 100 for r in rows]) for title, column in mixes.items()}
    text = "; ".join(
        f"{words(r['name'])} {r['requested_percent']:.0f} %, drawn {r['center_percent']:.0f} %" for r in rows
    )
    return plot(
        mix_chart(shares, classes=[r["name"] for r in rows]),
        alt=f"Class mix requested and drawn at patch centers: {text}.",
    )


def _curves(epochs: Rows) -> list[dict[str, Any]]:
    lines = {
        name: line for name in ("loss", *(f"dice_{r}" for r in REGIONS)) if (line := _line(epochs, name))[0]
    }
    dice = {name.removeprefix("dice_"): line for name, line in lines.items() if name != "loss"}
    best = [row["epoch"] for row in epochs if row.get("is_best") == "1"]
    charts = []
    if "loss" in lines:
        loss = {"loss": lines["loss"]}
        charts.append(
            _curve(
                line_chart(loss, x_label="epoch", y_label="loss"),
                "Training loss,",
                "mean over the steps of an epoch.",
                loss,
            )
        )
    if dice:
        chart = line_chart(dice, x_label="epoch", y_label="Dice, inner split", limits=(0.0, 1.0))
        text = (
            "patients of the training set that the network does not train on, none of them held out for the "
            "test."
        )
        chosen = f" The best checkpoint is that of epoch {best[-1]}." if best else ""
        charts.append(_curve(chart, "Dice on the inner split,", text + chosen, dice))
    return charts


def _curve(chart: Figure, title: str, text: str, lines: Mapping[str, Line]) -> dict[str, Any]:
    ends = "; ".join(f"{words(name)} ends at {y[-1]:.3f}" for name, (_, y) in lines.items() if y)
    return {"plot": plot(chart, alt=f"{title} {ends}."), "title": title, "words": text}


def _line(epochs: Rows, column: str) -> Line:
    """A column over the epochs in which it has a number."""
    points = [(float(r["epoch"]), float(r[column])) for r in epochs if r.get(column)]
    return [x for x, _ in points], [y for _, y in points]


def _rows(path: Path, *, numbers: Sequence[str], or_empty: Sequence[str] = ()) -> Rows:
    """The rows of a table; empty if it does not exist. Refuses columns with values that should be numbers (or
    gaps) and are not.
    """
    if not path.is_file():
        return []
    try:
        columns, rows = read_table(path)
    except InputError as error:
        raise InputError(f"{error}; {_MEND}") from None
    absent = [column for column in (*numbers, *or_empty) if columns and column not in columns]
    if absent:
        raise InputError(f"{path}: damaged, it has no column '{absent[0]}'; {_MEND}")
    for line, row in enumerate(rows, start=2):
        for column in (*numbers, *or_empty):
            value = row.get(column)
            if not (_is_number(value) or (column in or_empty and value == "")):
                raise InputError(
                    f"{path}: damaged, '{column}' is {shown(value)}, not a number, in line {line}; {_MEND}"
                )
    return rows


_MEND = "`brats-seg train --resume` writes it again, also for a finished run"


def _is_number(text: str | None) -> bool:
    try:
        return text is not None and math.isfinite(float(text))
    except ValueError:
        return False
