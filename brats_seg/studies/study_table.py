"""Rows of a study -> one table: means over repeats, paired differences with intervals, and the published
values next to ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool

from brats_seg.core.comparison import NO_PAIRS, compare_sides, few_note
from brats_seg.core.files import write_text
from brats_seg.core.groups import grouped
from brats_seg.core.statistics import describe
from brats_seg.core.tables import csv_text, interval_text, markdown_table
from brats_seg.studies.store import Row

SCORES = ("auc", "accuracy", "balanced_accuracy")
ARGMAX = "argmax"
"""The decision for the largest probability."""
POINT = ("kind", "rho", "mu", "minority_rule", "given")
"""The columns that name a distribution. Rows with equal values here are repeats of the same distribution."""
TABLE_COLUMNS = (
    "kind",
    "rho",
    "mu",
    "minority_rule",
    "given",
    "method",
    "imbalance_ratio",
    "decision",
    "part",
    "picked_on",
    "n",
    "n_test",
    *(f"{score}{what}" for score in SCORES for what in ("", "_sd", "_low", "_high")),
    "auc_over",
)
PAIR_COLUMNS = (
    "over", "first", "second", "score", "part", "picked_on", "n", "difference", "low", "high", "p",
)  # fmt: skip
_PAIR_WORDS = ("over", "first", "second", "score", "part", "n")
_DIVIDED = ", prior divided out"

ONE_NETWORK = "Intervals are over the repeats. Where n is 1, the interval of the AUC is over the images."

PUBLISHED_TABLE4: Mapping[tuple[float, float], Mapping[str, tuple[float, ...]]] = {
    (0.1, 10.0): {"baseline": (99.41,), "oversample": (99.35,), "undersample": (96.85,)},
    (0.8, 50.0): {"baseline": (96.31,), "oversample": (95.06,), "undersample": (94.98,)},
    (0.9, 100.0): {
        "baseline": (90.74, 90.46, 90.05),
        "oversample": (88.38, 88.39, 88.17),
        "undersample": (88.35, 84.08, 83.74),
    },
}
"""Buda et al. 2018, table 4: AUC in percent by (mu, rho), method and redraw."""


@dataclass(frozen=True)
class StudyTable:
    """The tables of a study.

    Attributes:
        means: one row for each distribution, method, decision, part and rule that picks among runs; keys
            `TABLE_COLUMNS`.
        pairs: one row for each comparison of networks with the same set and for each rule that picks among
            runs; keys `PAIR_COLUMNS`.
        published: lines of a Markdown table with the published values and ours; empty if no table was
            published.
        n_missing: number of cells of the study that are not finished.
    """

    means: tuple[Row, ...]
    pairs: tuple[Row, ...]
    published: tuple[str, ...]
    n_missing: int = 0


def make_table(rows: Sequence[Row], *, published: str | None = None, n_missing: int = 0) -> StudyTable:
    """Aggregate the rows of a study, of which `n_missing` cells are not finished.

    If a set and a method were trained several times, `pickings` picks one training. The intervals are 95 %
    intervals of the mean over the repeats, by bootstrap of the repeats. With one repeat the AUC has the
    interval of its row, over the images.
    """
    picked = pickings(_sorted(rows))
    return StudyTable(
        means=tuple(mean for name, chosen in picked.items() for mean in _means(chosen, picked_on=name)),
        pairs=tuple(
            pair | {"picked_on": name} for name, chosen in picked.items() for pair in _comparisons(chosen)
        ),
        published=tuple(beside_table4(next(iter(picked.values())))) if published == "table4" else (),
        n_missing=n_missing,
    )


def write_table(table: StudyTable, out: Path) -> tuple[Path, ...]:
    """Write `table.csv`, `pairs.csv` and `table.md`. Return the paths."""
    paths = (out / "table.csv", out / "pairs.csv", out / "table.md")
    write_text(paths[0], csv_text(table.means, TABLE_COLUMNS))
    write_text(paths[1], csv_text(table.pairs, PAIR_COLUMNS))
    write_text(paths[2], to_markdown(table))
    return paths


def to_markdown(table: StudyTable) -> str:
    """The tables as Markdown, with scores in percent and 95 % intervals."""
    picked = ["picked on"] if any(row["picked_on"] for row in table.means) else []
    lines = ["# Scores", ""]
    if table.n_missing:
        lines += [
            f"**{table.n_missing} cells of the study are not finished; the means are over the others.**",
            "",
        ]
    means = [
        [
            _distribution(row),
            _method(row),
            row["decision"],
            f"{row['part']} ({row['n_test']})",
            row["n"],
            *(_percent(row, score) for score in SCORES),
            *(row["picked_on"] for _ in picked),
        ]
        for row in table.means
    ]
    head = ("distribution", "method", "decision", "part", "n", "AUC", "accuracy", "balanced accuracy")
    over_images = any(row["auc_over"] == "images" for row in table.means)
    lines += [
        *([f"{ONE_NETWORK}\n"] if over_images else []),
        *markdown_table([*head, *picked], means),
        "",
        "# Paired differences (percentage points, 95 % interval over networks that share their set)",
        "",
    ]
    note = few_note(
        intervals=[row["n"] for row in table.pairs if row["low"] is not None],
        tests=[row["n"] for row in table.pairs],
        units="pairs of networks",
    )
    pairs = [
        [*(row["picked_on"] for _ in picked), *(row[name] for name in _PAIR_WORDS), _difference_text(row)]
        for row in table.pairs
    ]
    lines += [note, ""] if note else []
    lines += markdown_table([*picked, *_PAIR_WORDS, "first - second"], pairs)
    if table.published:
        lines += ["", "# Beside the published table 4", "", *table.published]
    return "\n".join(lines) + "\n"


def pickings(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of one training of each set and method, by the rule that picked the training: "" if each set
    and method has only one training.

    If a set and a method have several trainings (rates, runs), "test" is the training with the best AUC on
    the test images, as in the publication. If validation images exist, "validation" is the training with the
    best score on these images. Picking by validation does not make the scores on the test images too high.
    """
    trainings = {(*_network(row), row["rate"], row["run"]) for row in rows}
    if len(trainings) == len({_network(row) for row in rows}):
        return {"": list(rows)}
    with_validation = any(row["validation"] is not None for row in rows)
    return {on: pick(rows, on=on) for on in ("test", "validation") if on == "test" or with_validation}


def pick(rows: Sequence[Row], *, on: str) -> list[Row]:
    """The rows of one training for each set and method: the training with the best test AUC, or with the best
    validation score (higher is better).
    """

    def quality(rows_of_one: list[Row]) -> float:
        first = next(row for row in rows_of_one if row["decision"] == ARGMAX and row["part"] == "test")
        value = first["auc"] if on == "test" else first["validation"]
        return float("-inf") if value is None else float(value)

    chosen: list[Row] = []
    for of_network in grouped(rows, _network).values():
        trainings = grouped(of_network, lambda row: (row["rate"], row["run"]))
        best = max(trainings.values(), key=quality)
        chosen += best
    return chosen


def beside_table4(rows: Sequence[Row]) -> list[str]:
    """Table 4 of the systematic study as lines of Markdown: the published values, and our values below
    them.
    """
    points = sorted(PUBLISHED_TABLE4)
    lines = []
    for method in ("baseline", "oversample", "undersample"):
        theirs = [" ".join(f"{a:.2f}" for a in PUBLISHED_TABLE4[point][method]) for point in points]
        ours = [
            " ".join(
                f"{100 * r['auc']:.2f}"
                for r in _sorted(rows)
                if _is(r, method) and (r["mu"], r["rho"]) == point and r["kind"] == "step"
            )
            for point in points
        ]
        lines += [[f"{method}, published", *theirs], [f"{method}, ours", *(text or "-" for text in ours)]]
    return markdown_table(["method", *(f"mu {mu:g}, rho {rho:g}" for mu, rho in points)], lines)


def _means(rows: Sequence[Row], *, picked_on: str) -> list[Row]:
    names = ("method", "imbalance_ratio", "decision", "part")
    groups = grouped(rows, lambda row: (*_point(row), *(row[name] for name in names)))
    return [_mean(group, picked_on) for group in groups.values()]


def _mean(group: Sequence[Row], picked_on: str) -> Row:
    first = group[0]
    mean = {name: first[name] for name in TABLE_COLUMNS if name in first and name not in SCORES}
    mean |= {"given": "-".join(map(str, first["given"] or ())), "picked_on": picked_on, "n": len(group)}
    for score in SCORES:
        scored = [row for row in group if row[score] is not None]
        over = describe([row[score] for row in scored], [str(row["repeat"]) for row in scored])
        mean[score], mean[f"{score}_sd"] = over["mean"], over["sd"]
        mean[f"{score}_low"], mean[f"{score}_high"] = over["interval95"] or (None, None)
    mean["auc_over"] = "repeats" if mean["auc_low"] is not None else ""
    if len(group) == 1 and (over_images := first.get("auc_interval95")):
        (mean["auc_low"], mean["auc_high"]), mean["auc_over"] = over_images, "images"
    return {name: mean[name] for name in TABLE_COLUMNS}


def _comparisons(rows: Sequence[Row]) -> list[Row]:
    """The paired differences that the studies report, over all their distributions and for each mu and
    rho.
    """
    table = _sides([r for r in rows if r["part"] == "test" and r["imbalance_ratio"] == 1])
    sides = set(table["side"])
    names = sorted(
        {r["method"] for r in rows if r["method"] in sides},
        key=lambda name: (name.startswith("two_phase_"), name),
    )
    asked = [
        *((name, "baseline", "auc") for name in names if name != "baseline"),
        *((f"two_phase_{name}", name, "auc") for name in names),
        ("undersample", "oversample", "auc"),
        *((f"{name}{_DIVIDED}", name, "accuracy") for name in names),
    ]
    pairs = [
        _pair(table[kept], first=first, second=second, score=score, over=over)
        for over, kept in _scopes(table)
        for first, second, score in asked
        if {first, second} <= sides
    ]
    for name in names:
        own = table[table["side"] == name]
        pairs += [*_steps(own, name), _equal_totals(own, name)]
    return [row for row in pairs if row is not None]


def _sides(rows: Sequence[Row]) -> pd.DataFrame:
    """The rows with two more columns: `side` (the method and its decision rule) and `unit` (the training
    set).
    """
    table = pd.DataFrame(list(rows)).astype({"mu": float, "rho": float})
    decided = {ARGMAX: "", "prior_set": _DIVIDED}
    side = [r["method"] + decided[r["decision"]] if r["decision"] in decided else "" for r in rows]
    units: Any = [_cell(r) for r in rows]  # pandas-stubs know no tuples in a column
    return table.assign(side=side, unit=units)


def _scopes(table: pd.DataFrame) -> list[tuple[str, Bool[np.ndarray, " row"]]]:
    """The scopes of the comparisons: all sets of a kind, and for 'step' also the sets of each mu and each
    rho. Each scope is a name and a mask of its rows.
    """
    kinds = table["kind"].to_numpy()
    scopes = [(kind, kinds == kind) for kind in sorted(set(kinds))]
    for name in ("mu", "rho"):
        of_rows = table[name].to_numpy()
        values = sorted(set(of_rows[kinds == "step"]))
        if len(values) > 1:
            scopes += [(f"step {name} {v:g}", (kinds == "step") & (of_rows == v)) for v in values]
    return scopes


def _steps(rows: pd.DataFrame, method: str) -> list[Row | None]:
    """The difference in AUC of one method between the largest and the smallest rho, and between the largest
    and the smallest mu. Each set has newly drawn images.
    """
    step = rows[rows["kind"] == "step"]
    pairs = []
    for name, other in (("rho", "mu"), ("mu", "rho")):
        values = sorted(set(step[name]))
        if len(values) > 1:
            sides = [f"{method} at {name} {value:g}" for value in step[name]]
            units: Any = list(zip(step[other], step["repeat"], strict=True))
            first, second = (f"{method} at {name} {value:g}" for value in (values[-1], values[0]))
            table = step.assign(side=sides, unit=units)
            pairs.append(_pair(table, first=first, second=second, score="auc", over="step"))
    return pairs


def _equal_totals(rows: pd.DataFrame, method: str) -> Row | None:
    """The difference in AUC between step imbalance with half of the classes rare and linear imbalance with
    the same rho. Both have equally many images in total, but another shape.
    """
    names = {"step": f"{method}, step mu 0.5", "linear": f"{method}, linear"}
    half = rows[(rows["kind"] == "linear") | ((rows["kind"] == "step") & (rows["mu"] == 0.5))]
    units: Any = list(zip(half["rho"], half["repeat"], strict=True))
    table = half.assign(side=half["kind"].map(names), unit=units)
    return _pair(table, first=names["step"], second=names["linear"], score="auc", over="equal totals")


def _pair(table: pd.DataFrame, *, first: str, second: str, score: str, over: str) -> Row | None:
    """First minus second over the units that both sides have. A pair with a network that diverged is left
    out.
    """
    numbers = {unit: str(i) for i, unit in enumerate(dict.fromkeys(table["unit"]))}
    units = [numbers[unit] for unit in table["unit"]]
    values = table.assign(unit=units, patient=units, value=table[score].astype(float))
    pairs = compare_sides(values, first=second, second=first).get((), NO_PAIRS)
    if not pairs["n"]:
        return None
    low, high = pairs["interval95"] or (None, None)
    cells = (over, first, second, score, "test", "", pairs["n"], pairs["mean"], low, high, pairs["p"])
    return dict(zip(PAIR_COLUMNS, cells, strict=True))


def _is(row: Row, method: str) -> bool:
    return bool(
        row["method"] == method
        and row["decision"] == ARGMAX
        and row["part"] == "test"
        and row["imbalance_ratio"] == 1
    )


def _point(row: Row) -> tuple[Any, ...]:
    return tuple(tuple(row[name]) if isinstance(row[name], list) else row[name] for name in POINT)


def _cell(row: Row) -> tuple[Any, ...]:
    return (*_point(row), row["repeat"])


def _network(row: Row) -> tuple[Any, ...]:
    return (row.get("images"), *_cell(row), row["method"], row["imbalance_ratio"])


def _sorted(rows: Sequence[Row]) -> list[Row]:
    """The rows, sorted by distribution and repeat, then the baseline, then each method with its second phase.
    The order in which they finished does not matter.
    """
    return sorted(
        rows,
        key=lambda r: (
            *(r["kind"], r["rho"], r["mu"] or 0, str(r["given"]), r["minority_rule"], r["repeat"]),
            *(
                r["method"] != "baseline",
                r["method"].removeprefix("two_phase_"),
                r["phase"],
                r["imbalance_ratio"],
                r["rate"],
                r["run"],
            ),
        ),
    )


def _distribution(row: Row) -> str:
    rho, mu = (f", {name} {row[name]:g}" if row[name] and row[name] != 1 else "" for name in ("rho", "mu"))
    lowest = (
        ", lowest classes rare"
        if row["minority_rule"] == "lowest" and row["kind"] in ("step", "linear")
        else ""
    )
    return row["kind"] + rho + mu + lowest + (f" {row['given']}" if row["given"] else "")


def _method(row: Row) -> str:
    return row["method"] + (f" to {row['imbalance_ratio']:g}" if row["imbalance_ratio"] != 1 else "")


def _percent(row: Row, score: str) -> str:
    if row[score] is None:
        return "-"
    return f"{100 * row[score]:.2f}" + _interval(row[f"{score}_low"], row[f"{score}_high"])


def _difference_text(row: Row) -> str:
    text = f"{100 * row['difference']:+.2f}"
    if row["low"] is None:
        return text
    return f"{text}{_interval(row['low'], row['high'], sign='+')}, p {row['p']:.2g}"


def _interval(low: float | None, high: float | None, *, sign: str = "") -> str:
    ends = None if low is None or high is None else (100 * low, 100 * high)
    return interval_text({"interval95": ends}, digits=2, sign=sign)
