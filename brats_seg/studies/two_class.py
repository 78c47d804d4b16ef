"""The figures of the two-class report: distribution, learning curves, confusion matrices, ROC curves on
training and test images, and scores side by side.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from brats_seg.reporting import style
from brats_seg.reporting.figures import row_shares
from brats_seg.studies.lines import method_look, method_name, panel_grid
from brats_seg.studies.store import Row
from brats_seg.studies.study_figures import TEST, by_picking, curve_lines
from brats_seg.studies.study_table import ARGMAX

POSITIVE = 1
"""The rare class of the report (automobile). Recall and precision are computed for this class."""
TRAIN = "train"
_PARTS = {
    TRAIN: ("training images", style.BLUE, "-"),
    TEST: ("test images", style.VERMILION, "-"),
    "held_out": ("held-out images", style.ORANGE, "--"),
}
_COLUMNS = 4


def two_class_figures(rows: Sequence[Row], *, class_names: Sequence[str] = ("0", "1")) -> dict[str, Figure]:
    """Every figure for which the rows of a study of two classes suffice, by file name; no figure for more
    classes.
    """
    return by_picking(rows, partial(_two_class_figures, class_names=class_names))


def _two_class_figures(rows: Sequence[Row], *, class_names: Sequence[str]) -> dict[str, Figure]:
    chosen = [row for row in rows if row["decision"] == ARGMAX and len(row["counts"]) == 2]
    if not chosen:
        return {}
    parts = [part for part in dict.fromkeys(row["part"] for row in chosen) if part != TRAIN]
    drawn: dict[str, Figure | None] = {
        "two_class_distribution": distribution(chosen, class_names=class_names),
        "two_class_curves": curves(chosen, score="accuracy"),
        "two_class_loss": curves(chosen, score="loss"),
        **{
            f"two_class_confusion_{part}": confusion(chosen, part=part, class_names=class_names)
            for part in parts
        },
        "two_class_roc": roc(chosen, class_names=class_names),
        "two_class_scores": score_bars(chosen, parts=parts, class_names=class_names),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def runs(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by the name of the run in the report: the baseline on a balanced set is called 'balanced', the
    baseline on an unbalanced set 'unbalanced'.
    """
    named: dict[str, list[Row]] = {}
    for row in rows:
        name = row["method"]
        if name == "baseline":
            name = "balanced" if len(set(row["counts"])) == 1 else "unbalanced"
        named.setdefault(name, []).append(row)
    first = [name for name in ("balanced", "unbalanced") if name in named]
    return {name: named[name] for name in [*first, *(name for name in named if name not in first)]}


def distribution(rows: Sequence[Row], *, class_names: Sequence[str]) -> Figure:
    """Images of each class in each training set of the study."""
    sets = sorted({tuple(row["counts"]) for row in rows}, reverse=True)
    figure, axes = style.panels(1, len(sets), width=2.6)
    for ax, counts in zip(axes[0], sets, strict=True):
        bars = ax.bar(range(2), counts, width=0.6, color=[style.BLUE, style.ORANGE])
        ax.bar_label(bars, [f"{n:,}" for n in counts], fontsize=8.5, color=style.INK, padding=2)
        ax.set_xticks(range(2), class_names)
        style.title(ax, "balanced" if counts[0] == counts[1] else "unbalanced")
        ax.set_ylim(0, 1.12 * max(max(c) for c in sets))
    axes[0][0].set_ylabel("training images")
    return figure


def curves(rows: Sequence[Row], *, score: Literal["accuracy", "loss"]) -> Figure | None:
    """Accuracy or loss on training and test images over the iterations: one panel for each run, one line for
    each repeat.

    None if the rows have no curve. Studies of versions that did not record the loss have no loss curve.
    """
    curved = [
        row
        for row in rows
        if row["part"] == TEST and any(f"{TEST}_{score}" in point for point in row.get("curve") or ())
    ]
    named = runs(curved)
    if not named:
        return None
    figure, panels = panel_grid(len(named), most=_COLUMNS, width=2.7, height=2.2)
    for ax, (name, of_run) in zip(panels, named.items(), strict=True):
        for row in of_run:
            for line in curve_lines([row], score=score):
                x = sorted(line.points)
                ax.plot(x, [line.points[v][0] for v in x], color=line.look[0], linewidth=1.2, alpha=0.85)
        ax.set(xlabel="iteration", ylim=(0, 103 if score == "accuracy" else None))
        style.title(ax, method_name(name))
    style.legend_below(
        figure,
        {_PARTS[part][0]: Line2D([], [], color=_PARTS[part][1]) for part in (TRAIN, TEST)},
        n_columns=2,
    )
    panels[0].set_ylabel("accuracy, %" if score == "accuracy" else "loss (cross-entropy)")
    return figure


def confusion(rows: Sequence[Row], *, part: str, class_names: Sequence[str]) -> Figure | None:
    """Confusion matrices at a threshold of 0.5, one panel for each run: the numbers of images (summed over
    repeats) and their shares of each row.
    """
    named = runs([row for row in rows if row["part"] == part and row.get("confusion")])
    if not named:
        return None
    figure, panels = panel_grid(len(named), most=_COLUMNS, height=2.3, width=2.5)
    for ax, (name, of_run) in zip(panels, named.items(), strict=True):
        counts = np.sum([row["confusion"] for row in of_run], axis=0).astype(np.int64)
        _matrix(ax, counts, class_names=class_names)
        style.title(ax, method_name(name))
    n, repeats = of_run[0]["n_test"], max(len(of_run) for of_run in named.values())
    figure.supxlabel(
        f"{_part_name(part)}, n = {n:,}" + (f", {repeats} repeats together" if repeats > 1 else ""),
        fontsize=8,
        color=style.QUIET,
    )
    return figure


def roc(rows: Sequence[Row], *, class_names: Sequence[str]) -> Figure | None:
    """ROC curves of the positive class on the training images (blue) and the test images (red), one panel for
    each run.
    """
    named = runs([row for row in rows if row.get("roc")])
    if not named:
        return None
    figure, panels = panel_grid(len(named), most=_COLUMNS, height=2.6, width=2.6)
    shown = {}
    for ax, (name, of_run) in zip(panels, named.items(), strict=True):
        ax.plot([0, 1], [0, 1], color=style.RULE, linewidth=1)
        for row in of_run:
            _, color, dashes = _PARTS.get(row["part"], (row["part"], style.QUIET, ":"))
            alarms, hits = row["roc"][POSITIVE]
            label = (
                f"{_part_name(row['part'])}, n = {row['n_test']:,}"
                if row["part"] != TRAIN
                else _part_name(TRAIN)
            )
            shown[label] = ax.plot(alarms, hits, color=color, linestyle=dashes, linewidth=1.3, alpha=0.85)[0]
        ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1), aspect="equal")
        ax.set_xlabel("false-positive rate")
        style.title(ax, method_name(name))
    panels[0].set_ylabel(f"true-positive rate ({class_names[POSITIVE]})")
    style.legend_below(figure, shown, n_columns=min(3, len(shown)))
    return figure


def score_bars(rows: Sequence[Row], *, parts: Sequence[str], class_names: Sequence[str]) -> Figure | None:
    """AUC, recall and precision of the positive class by run: a bar for the mean and a point for each repeat,
    one row of panels for each part.
    """
    scores = {
        "AUC": lambda row: row["auc"],
        f"recall of {class_names[POSITIVE]}": lambda row: row["recall_per_class"][POSITIVE],
        f"precision of {class_names[POSITIVE]}": lambda row: row["precision_per_class"][POSITIVE],
    }
    every = list(runs(rows))
    figure, axes = style.panels(len(parts), 3, width=2.7, height=0.6 + 0.27 * len(every))
    for part, line in zip(parts, axes, strict=True):
        named = runs([row for row in rows if row["part"] == part])
        for ax, (title, value) in zip(line, scores.items(), strict=True):
            for place, name in enumerate(every):
                # A class that is never predicted has no precision, so nothing is drawn.
                values = [v for v in map(value, named.get(name, [])) if v is not None]
                color = style.INK if name in ("balanced", "unbalanced") else method_look(name, every)[0]
                if values:
                    ax.barh(place, np.mean(values), height=0.62, color=color, alpha=0.8)
                    ax.scatter(
                        values,
                        np.full(len(values), place),
                        s=9,
                        color=style.PAPER,
                        edgecolors=style.INK,
                        linewidths=0.6,
                        zorder=3,
                    )
            ax.set(xlim=(0, 1.02), ylim=(len(every) - 0.4, -0.6))
            ax.set_yticks(
                range(len(every)),
                [method_name(name) for name in every] if ax is line[0] else [""] * len(every),
            )
            ax.grid(axis="y", visible=False)
            ax.grid(axis="x", color=style.RULE, linewidth=0.7)
            n = next((of_run[0]["n_test"] for of_run in named.values()), 0)
            style.title(ax, f"{title}: {_part_name(part)}, n = {n:,}" if ax is line[0] else title)
    return figure


def _matrix(ax: Axes, counts: np.ndarray, *, class_names: Sequence[str]) -> None:
    shares = row_shares(counts)
    texts = [
        [
            f"{n:,}" + ("" if np.isnan(share) else f"\n{100 * share:.1f} %")
            for n, share in zip(*row, strict=True)
        ]
        for row in zip(counts, shares, strict=True)
    ]
    style.shares_matrix(ax, shares, texts=texts, names=class_names)
    ax.set_yticks(range(2), class_names, rotation=90, va="center")
    ax.set(xlabel="called", ylabel="is")


def _part_name(part: str) -> str:
    return _PARTS[part][0] if part in _PARTS else f"{part} images"
