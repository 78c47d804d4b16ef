"""Panels of lines, as the studies draw them: mean and spread over the repeats of a score of several
methods.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter

from brats_seg.reporting import style

LOG_FROM = 4
"""An axis of imbalance ratios is logarithmic if the largest ratio is at least so many times the smallest
ratio.
"""
N_PANELS = 3
MANY_LINES = 8
"""If a panel has more lines than this and each line is a single point, the lines cannot be told apart."""

THRESHOLDING = ", thresholding"
_SCORES = {"auc": "multi-class ROC AUC, %", "accuracy": "accuracy, %"}
METHODS = {
    "baseline": "baseline",
    "oversample": "oversampling",
    "undersample": "undersampling",
    "two_phase_oversample": "two-phase, oversampled",
    "two_phase_undersample": "two-phase, undersampled",
}
# Markers and dashes tell the methods apart in gray.
_OTHERS = (style.GREEN, style.PINK, style.OLIVE, style.INDIGO, style.QUIET)
_LOOKS: dict[str, tuple[str, str, str]] = {
    "baseline": (style.INK, "-", "o"),
    "oversample": (style.BLUE, "-", "s"),
    "undersample": (style.VERMILION, "-", "^"),
    "two_phase_oversample": (style.SKY, "--", "s"),
    "two_phase_undersample": (style.ORANGE, "--", "^"),
}
_MARKERS = "DvPXd"


@dataclass(frozen=True)
class Series:
    """A line of a panel: mean and standard deviation over the repeats at each x.

    Attributes:
        name: name in the legend.
        look: color, dashes and marker.
        points: x -> the values of the repeats.
    """

    name: str
    look: tuple[str, str, str]
    points: Mapping[float, Sequence[float]]


def method_name(method: str) -> str:
    """The name of a method for people."""
    return METHODS.get(method, style.words(method).replace("two phase ", "two-phase, "))


def method_look(method: str, among: Sequence[str]) -> tuple[str, str, str]:
    """Color, dashes and marker of a method. Each method of `among` has its own."""
    if method in _LOOKS:
        return _LOOKS[method]
    place = [m for m in among if m not in _LOOKS].index(method)
    turn = place // len(_OTHERS)
    return (
        _OTHERS[place % len(_OTHERS)],
        ("-", "--", "-.")[turn % 3],
        _MARKERS[(place + turn) % len(_MARKERS)],
    )


def panel_grid(n: int, *, most: int, width: float = 3.1, height: float = 2.5) -> tuple[Figure, list[Axes]]:
    """`n` empty panels, at most `most` in a row. `width` and `height` of a panel are in inches."""
    n_columns = min(most, n)
    figure, axes = style.panels(-(-n // n_columns), n_columns, width=width, height=height)
    for ax in axes.flat[n:]:
        ax.set_visible(False)
    return figure, list(axes.flat[:n])


def lines_figure(
    panels: Sequence[tuple[str, Sequence[Series]]],
    *,
    x_label: str,
    score: str,
    what: str = "",
    y_axes: Literal["own", "shared"] = "own",
) -> Figure | None:
    """At most three panels in a row, with letters as in the paper; None without any point. `what` is
    a note below all panels.
    """
    panels = [(title, lines) for title, lines in panels if any(line.points for line in lines)]
    if not panels:
        return None
    most = max(len(values) for _, lines in panels for line in lines for values in line.points.values())
    if max(len(lines) for _, lines in panels) > MANY_LINES and all(
        len(line.points) == 1 for _, lines in panels for line in lines
    ):
        return _dots_figure(panels, score=score, what=what, n_repeats=most)
    figure, axes = panel_grid(len(panels), most=N_PANELS)
    handles: dict[str, Line2D] = {}
    for number, (ax, (title, lines)) in enumerate(zip(axes, panels, strict=True)):
        for line in lines:
            handles.setdefault(line.name, _draw(ax, line))
        _dress(ax, lines, title=_lettered(title, number), x_label=x_label)
        if number % N_PANELS == 0:
            ax.set_ylabel(_SCORES[score])
        if y_axes == "shared" and number:
            ax.sharey(axes[0])
    band = f"line: mean; band: ± 1 standard deviation over up to {most} repeats" if most > 1 else ""
    style.legend_below(
        figure, handles, n_columns=min(3, len(handles)), note="; ".join(filter(None, (what, band)))
    )
    return figure


def _dots_figure(
    panels: Sequence[tuple[str, Sequence[Series]]], *, score: str, what: str, n_repeats: int
) -> Figure:
    """Panels of many methods on one training set. Each method has a row of dots instead of a curve with one
    point.
    """
    names = list(dict.fromkeys(line.name.removesuffix(THRESHOLDING) for _, lines in panels for line in lines))
    figure, axes = panel_grid(len(panels), most=N_PANELS, height=0.7 + 0.22 * len(names))
    handles: dict[str, Line2D] = {}
    for number, (ax, (title, lines)) in enumerate(zip(axes, panels, strict=True)):
        for line in lines:
            place, is_thresholded = (
                names.index(line.name.removesuffix(THRESHOLDING)),
                line.name.endswith(THRESHOLDING),
            )
            ((_, values),) = line.points.items()
            color = style.VERMILION if is_thresholded else style.BLUE
            ax.scatter(values, [place] * len(values), s=8, color=color, alpha=0.35, linewidths=0)
            (drawn,) = ax.plot(
                [np.mean(values)], [place], "D" if is_thresholded else "o", color=color, markersize=5
            )
            handles.setdefault("thresholding" if is_thresholded else "largest probability", drawn)
        style.title(ax, _lettered(title, number))
        ax.set(xlabel=_SCORES[score], ylim=(len(names) - 0.4, -0.6))
        ax.set_yticks(range(len(names)), names if number % N_PANELS == 0 else [""] * len(names))
    dots = f"large: mean; small: each of up to {n_repeats} repeats" if n_repeats > 1 else ""
    style.legend_below(figure, handles, n_columns=len(handles), note="; ".join(filter(None, (what, dots))))
    return figure


def _lettered(title: str, number: int) -> str:
    """A title with its letter; titles from the 27th panel on have no letter."""
    return f"({ascii_lowercase[number]}) {title}" if number < len(ascii_lowercase) else title


def _draw(ax: Axes, line: Series) -> Line2D:
    x = np.array(sorted(line.points), np.float64)
    values = [np.array(line.points[v], np.float64) for v in sorted(line.points)]
    mean = np.array([v.mean() for v in values])
    spread = np.array([v.std(ddof=1) if len(v) > 1 else 0.0 for v in values])
    color, dashes, marker = line.look
    if spread.any():
        ax.fill_between(x, mean - spread, mean + spread, color=color, alpha=0.13, linewidth=0)
    (drawn,) = ax.plot(x, mean, color=color, linestyle=dashes, marker=marker, markersize=4, linewidth=1.5)
    return drawn


def _dress(ax: Axes, lines: Sequence[Series], *, title: str, x_label: str) -> None:
    style.title(ax, title)
    ax.set_xlabel(x_label)
    x = sorted({float(v) for line in lines for v in line.points})
    if x_label.startswith("imbalance ratio") and x[-1] >= LOG_FROM * x[0]:
        ax.set_xscale("log")
        shown = x if len(x) <= 5 else [x[0], *x[2:-2:2], x[-1]]
        ax.set_xticks(shown, [f"{v:g}" for v in shown])
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.minorticks_off()
    elif len(x) <= 9:
        ax.set_xticks(x, [f"{v:g}" for v in x])
    else:
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if len(x) == 1:
        ax.set_xlim(x[0] * 0.5, x[0] * 2)
