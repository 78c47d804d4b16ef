"""Rows of a study -> one table: means over repeats, paired intervals, and the published figures beside
ours.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from brats_seg.core.files import write_text
from brats_seg.core.grid import Row
from brats_seg.core.statistics import bootstrap_interval, paired_difference

SCORES = ("auc", "accuracy", "balanced_accuracy")
ARGMAX = "argmax"
POINT = ("kind", "rho", "mu", "minority_rule", "given")
"""What makes a distribution: rows that share these differ by repeat alone."""
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
)
PAIR_COLUMNS = (
    "over", "first", "second", "score", "part", "picked_on", "n", "difference", "low", "high", "p",
)  # fmt: skip

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
    """What a study came to.

    Attributes:
        means: a row for each distribution, method, decision, part and way of picking among runs; keys
            `TABLE_COLUMNS`.
        pairs: a row for each comparison over networks that share their set, and way of picking; keys
            `PAIR_COLUMNS`.
        published: lines of a Markdown table beside the published one; empty without one.
        n_missing: cells of the study that are not finished.
    """

    means: tuple[Row, ...]
    pairs: tuple[Row, ...]
    published: tuple[str, ...]
    n_missing: int = 0


def make_table(rows: Sequence[Row], *, published: str | None = None, n_missing: int = 0) -> StudyTable:
    """Aggregate the rows of a study, of which `n_missing` cells are not finished.

    Where a set and method were trained several times, one training is taken, as `pickings` says. Intervals
    are of the mean over repeats, 95 %, by bootstrap of the repeats.
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
    """Write `table.csv`, `pairs.csv` and `table.md`; gives their paths."""
    paths = (out / "table.csv", out / "pairs.csv", out / "table.md")
    write_text(paths[0], _csv(table.means, TABLE_COLUMNS))
    write_text(paths[1], _csv(table.pairs, PAIR_COLUMNS))
    write_text(paths[2], to_markdown(table))
    return paths


def to_markdown(table: StudyTable) -> str:
    """The tables as Markdown; scores in percent, intervals 95 %."""
    head = ("distribution", "method", "decision", "part", "n", "AUC", "accuracy", "balanced accuracy")
    several = any(row["picked_on"] for row in table.means)
    unfinished = (
        [f"**{table.n_missing} cells of the study are not finished; the means are over the others.**", ""]
        if table.n_missing
        else []
    )
    lines = [
        "# Scores",
        "",
        *unfinished,
        _line([*head, *(["picked on"] if several else [])]),
        _line(["---"] * (len(head) + several)),
    ]
    for row in table.means:
        scores = [_percent(row, score) for score in SCORES]
        cells = [
            _distribution(row),
            _method(row),
            row["decision"],
            f"{row['part']} ({row['n_test']})",
            row["n"],
            *scores,
        ]
        lines.append(_line([*cells, *([row["picked_on"]] if several else [])]))
    lines += [
        "",
        "# Paired differences (percentage points, 95 % interval over networks that share their set)",
        "",
    ]
    picked = ["picked on"] if several else []
    lines += [
        _line([*picked, "over", "first", "second", "score", "part", "n", "first - second"]),
        _line(["---"] * (7 + several)),
    ]
    for row in table.pairs:
        shown = f"{100 * row['difference']:+.2f}" + (
            f" [{100 * row['low']:+.2f}, {100 * row['high']:+.2f}], p {row['p']:.2g}"
            if row["low"] is not None
            else ""
        )
        cells = [row["picked_on"]] if several else []
        lines.append(
            _line(
                [*cells, row["over"], row["first"], row["second"], row["score"], row["part"], row["n"], shown]
            )
        )
    return (
        "\n".join(
            [
                *lines,
                *(["", "# Beside the published table 4", "", *table.published] if table.published else []),
            ]
        )
        + "\n"
    )


def pickings(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """One training of each set and method, by what picked it: "" where each has one training alone.

    Where a set and method have several (rates, runs), the best by the AUC on the test images comes first, as
    published ("test"). The best by the score on the validation images follows where there are some
    ("validation"): its scores on the test images are not too high by the choice.
    """
    trainings = {(*_network(row), row["rate"], row["run"]) for row in rows}
    if len(trainings) == len({_network(row) for row in rows}):
        return {"": list(rows)}
    with_validation = any(row["validation"] is not None for row in rows)
    return {on: pick(rows, on=on) for on in ("test", "validation") if on == "test" or with_validation}


def pick(rows: Sequence[Row], *, on: str) -> list[Row]:
    """Of each set and method the rows of one training: the best by its test AUC, or by its validation score
    (higher is better).
    """
    trainings: dict[tuple[Any, ...], dict[tuple[Any, ...], list[Row]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row in rows:
        trainings[_network(row)][row["rate"], row["run"]].append(row)

    def quality(rows_of_one: list[Row]) -> float:
        first = next(row for row in rows_of_one if row["decision"] == ARGMAX and row["part"] == "test")
        value = first["auc"] if on == "test" else first["validation"]
        return float("-inf") if value is None else float(value)

    return [row for runs in trainings.values() for row in max(runs.values(), key=quality)]


def beside_table4(rows: Sequence[Row]) -> list[str]:
    """Table 4 of the systematic study, ours under theirs, as lines of Markdown."""
    points = sorted(PUBLISHED_TABLE4)
    heads = [f"mu {mu:g}, rho {rho:g}" for mu, rho in points]
    lines = [_line(["method", *heads]), _line(["---"] * (len(heads) + 1))]
    for method in ("baseline", "oversample", "undersample"):
        lines.append(
            _line(
                [
                    f"{method}, published",
                    *(" ".join(f"{a:.2f}" for a in PUBLISHED_TABLE4[point][method]) for point in points),
                ]
            )
        )
        ours = [
            [
                r["auc"]
                for r in _sorted(rows)
                if _is(r, method) and (r["mu"], r["rho"]) == point and r["kind"] == "step"
            ]
            for point in points
        ]
        lines.append(
            _line([f"{method}, ours", *(" ".join(f"{100 * a:.2f}" for a in found) or "-" for found in ours)])
        )
    return lines


def _means(rows: Sequence[Row], *, picked_on: str) -> list[Row]:
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[(*_point(row), row["method"], row["imbalance_ratio"], row["decision"], row["part"])].append(
            row
        )
    return [_mean(group, picked_on) for group in groups.values()]


def _mean(group: Sequence[Row], picked_on: str) -> Row:
    first = group[0]
    mean = {name: first[name] for name in TABLE_COLUMNS if name in first and name not in SCORES}
    mean |= {"given": "-".join(map(str, first["given"] or ())), "picked_on": picked_on, "n": len(group)}
    for score in SCORES:
        values = [row[score] for row in group if row[score] is not None]
        interval = bootstrap_interval(
            values, [str(row["repeat"]) for row in group if row[score] is not None]
        ) or (None, None)
        mean[score] = float(np.mean(values)) if values else None
        mean[f"{score}_sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
        mean[f"{score}_low"], mean[f"{score}_high"] = interval
    return {name: mean[name] for name in TABLE_COLUMNS}


def _comparisons(rows: Sequence[Row]) -> list[Row]:
    """The paired differences the studies are about, over all their distributions and over each mu and rho."""
    on_test = [row for row in rows if row["part"] == "test" and row["imbalance_ratio"] == 1]
    argmax = {
        method: {_cell(r): r for r in on_test if _is(r, method)} for method in {r["method"] for r in on_test}
    }
    divided = {
        m: {_cell(r): r for r in on_test if r["method"] == m and r["decision"] == "prior_set"} for m in argmax
    }
    names = sorted(argmax, key=lambda name: (name.startswith("two_phase_"), name))
    asked = [
        (argmax[name], argmax["baseline"], name, "baseline", "auc")
        for name in names
        if name != "baseline" and "baseline" in argmax
    ]
    asked += [
        (argmax[f"two_phase_{n}"], argmax[n], f"two_phase_{n}", n, "auc")
        for n in names
        if f"two_phase_{n}" in argmax
    ]
    if {"oversample", "undersample"} <= set(names):
        asked.append((argmax["undersample"], argmax["oversample"], "undersample", "oversample", "auc"))
    asked += [
        (divided[name], argmax[name], f"{name}, prior divided out", name, "accuracy")
        for name in names
        if divided[name]
    ]
    found = []
    for over, keep in _scopes(on_test):
        found += [
            _pair(first, second, keep, over=over, names=(a, b), score=score)
            for first, second, a, b, score in asked
        ]
    for name in names:
        found += [*_steps(argmax[name], name), _equal_totals(argmax[name], name)]
    return [row for row in found if row is not None]


def _scopes(rows: Sequence[Row]) -> list[tuple[str, Callable[[Row], bool]]]:
    """All sets of a kind, and of 'step' those of each mu and each rho."""
    scopes: list[tuple[str, Callable[[Row], bool]]] = [
        (kind, partial(_has, kind=kind)) for kind in sorted({row["kind"] for row in rows})
    ]
    for name in ("mu", "rho"):
        values = sorted({row[name] for row in rows if row["kind"] == "step"})
        if len(values) > 1:
            scopes += [
                (f"step {name} {value:g}", partial(_has, kind="step", name=name, value=value))
                for value in values
            ]
    return scopes


def _has(row: Row, kind: str, name: str | None = None, value: float | None = None) -> bool:
    return bool(row["kind"] == kind and (name is None or row[name] == value))


def _pair(
    first: Mapping[Any, Row],
    second: Mapping[Any, Row],
    keep: Callable[[Row], bool],
    *,
    over: str,
    names: tuple[str, str],
    score: str,
) -> Row | None:
    both = [cell for cell in first if cell in second and keep(first[cell])]
    return _difference(
        [(first[cell][score], second[cell][score]) for cell in both], over=over, names=names, score=score
    )


def _steps(rows: Mapping[Any, Row], method: str) -> list[Row | None]:
    """The AUC of one method from the smallest to the largest rho, and to the largest mu; images are drawn
    anew for each.
    """
    found = []
    for name, other in (("rho", "mu"), ("mu", "rho")):
        step = [row for row in rows.values() if row["kind"] == "step"]
        values = sorted({row[name] for row in step})
        if len(values) < 2:
            continue
        at = {(row[name], row[other], row["repeat"]): row["auc"] for row in step}
        ends = [
            (at[values[-1], o, r], auc)
            for (v, o, r), auc in at.items()
            if v == values[0] and (values[-1], o, r) in at
        ]
        names = (f"{method} at {name} {values[-1]:g}", f"{method} at {name} {values[0]:g}")
        found.append(_difference(ends, over="step", names=names, score="auc"))
    return found


def _equal_totals(rows: Mapping[Any, Row], method: str) -> Row | None:
    """The AUC where half of the classes are rare against linear imbalance of the same rho: as many images in
    all, another shape.
    """
    at = {
        (row["kind"], row["rho"], row["repeat"]): row["auc"]
        for row in rows.values()
        if row["kind"] == "linear" or row["mu"] == 0.5
    }
    both = [
        (auc, at["linear", rho, repeat])
        for (kind, rho, repeat), auc in at.items()
        if kind == "step" and ("linear", rho, repeat) in at
    ]
    names = (f"{method}, step mu 0.5", f"{method}, linear")
    return _difference(both, over="equal totals", names=names, score="auc")


def _difference(
    values: Sequence[tuple[float | None, float | None]], *, over: str, names: tuple[str, str], score: str
) -> Row | None:
    """First minus second of each pair of networks; a pair with a network that diverged is left out."""
    first, second = ({str(i): pair[side] for i, pair in enumerate(values)} for side in (0, 1))
    units = {key: key for key in first}
    found = paired_difference(_known(second), _known(first), patient_of=units)
    if not found["n"]:
        return None
    low, high = found["interval95"] or (None, None)
    cells = (over, *names, score, "test", "", found["n"], found["mean"], low, high, found["p"])
    return dict(zip(PAIR_COLUMNS, cells, strict=True))


def _known(values: Mapping[str, float | None]) -> dict[str, float]:
    return {key: value for key, value in values.items() if value is not None}


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
    """By distribution and repeat, then the baseline and each method with its second phase: not in the order
    they were finished.
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
    low, high = row[f"{score}_low"], row[f"{score}_high"]
    return f"{100 * row[score]:.2f}" + (f" [{100 * low:.2f}, {100 * high:.2f}]" if low is not None else "")


def _line(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _csv(rows: Sequence[Row], columns: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
