"""The figures and tables of the studies: figures 1 and 3 to 8 of the systematic study, from the rows of
ours.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from brats_seg.core.files import atomic
from brats_seg.imbalance.distributions import Distribution, class_counts
from brats_seg.reporting import style
from brats_seg.reporting.figures import png
from brats_seg.studies.store import Row
from brats_seg.studies.study_table import ARGMAX, pickings

TEST = "test"
THRESHOLDED = "prior_set"
MNIST_REDUCED_RHO = 1000
CONVERGENCE = (0.5, 50.0)
"""mu and rho of figure 8."""
FEW_CLASSES = (0.2, 0.5, 0.8)
"""mu of the panels of figures 3 and 6."""
LOG_FROM = 4
"""An axis of imbalance ratios is logarithmic where the largest is so many times the smallest."""
N_PANELS = 3
MANY_LINES = 8
"""Lines of a panel that are too many to tell apart where each is a single point."""

_THRESHOLDED = ", thresholding"
_SCORES = {"auc": "multi-class ROC AUC, %", "accuracy": "accuracy, %"}
SETS = {"mnist": "MNIST", "cifar10": "CIFAR-10", "folder": "image folder", "npz": "images"}
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
    """A line of a panel: mean and standard deviation over repeats at each x.

    Attributes:
        name: in the legend.
        look: color, dashes, marker.
        points: x -> the values of the repeats.
    """

    name: str
    look: tuple[str, str, str]
    points: Mapping[float, Sequence[float]]


def study_figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """Every figure that the rows of a study, or of several together, have the networks for, by the name of
    its file.

    Where a set and method were trained several times, `by_picking` says which training is drawn.
    """
    return by_picking(rows, _study_figures)


def by_picking(
    rows: Sequence[Row], draw: Callable[[Sequence[Row]], Mapping[str, Figure]]
) -> dict[str, Figure]:
    """The figures of the rows that `table.pickings` gives; those picked by validation have a name that ends
    in `_picked_on_validation`.

    A line at the head of a figure says what picked its runs, where something did.
    """
    heads = {
        "test": "runs picked by their AUC on the test images",
        "validation": "runs picked by their score on the validation images",
    }
    figures: dict[str, Figure] = {}
    for name, chosen in pickings(rows).items():
        for file, figure in draw(chosen).items():
            if name:
                style.head_line(figure, heads[name])
            figures[file + "_picked_on_validation" * (name == "validation")] = figure
    return figures


def _study_figures(rows: Sequence[Row]) -> dict[str, Figure]:
    chosen = [row for row in rows if row["part"] == TEST]
    step, linear = ([row for row in chosen if row["kind"] == kind] for kind in ("step", "linear"))
    full = [row for row in step if row["imbalance_ratio"] == 1]
    drawn = {
        "figure1_distributions": figure1() if step or linear else None,
        "figure3_auc_over_rho": over_ratio(full, score="auc"),
        "figure4_auc_over_mu": over_minority(full),
        "figure5_linear": over_linear([row for row in linear if row["imbalance_ratio"] == 1]),
        "figure6_accuracy": over_ratio(full, score="accuracy"),
        "figure7_reduced_ratio": reduced_ratio(step),
        "figure8_convergence": convergence(full),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def write_figures(figures: Mapping[str, Figure], out: Path) -> tuple[Path, ...]:
    """Write each as a PNG of 150 dots an inch; gives their paths."""
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        paths.append(out / f"{name}.png")
        with atomic(paths[-1]) as part:
            part.write_bytes(png(figure))
    return tuple(paths)


def figure1() -> Figure:
    """Figure 1: images of each of ten classes under step imbalance (rho 10, mu 0.5; rho 2, mu 0.9) and linear
    imbalance (rho 10).
    """
    shapes = (
        Distribution("step", rho=10, mu=0.5),
        Distribution("step", rho=2, mu=0.9),
        Distribution("linear", rho=10),
    )
    titles = ("(a) step, ρ = 10, μ = 0.5", "(b) step, ρ = 2, μ = 0.9", "(c) linear, ρ = 10")
    full = np.full(10, 5000)
    figure, axes = style.panels(1, 3)
    for ax, shape, title in zip(axes[0], shapes, titles, strict=True):
        counts = class_counts(shape, available=full, most=None, order=np.arange(10))
        colors = [style.ORANGE if n < 5000 else style.BLUE for n in counts]
        ax.bar(np.arange(10), counts, width=0.75, color=colors)
        style.title(ax, f"{title}: {counts.sum():,} images")
        ax.set(xlabel="class", xticks=range(10), ylim=(0, 5400))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.0f}"))
    axes[0][0].set_ylabel("training images")
    return figure


def over_ratio(rows: Sequence[Row], *, score: str) -> Figure | None:
    """Figure 3 (AUC) or 6 (accuracy, with and without thresholding): over rho, a panel for each share of
    minority classes.
    """
    panels = []
    for name, of_set in _by_set(rows):
        for mu in _three({row["mu"] for row in of_set}, preferred=FEW_CLASSES):
            here = [row for row in of_set if row["mu"] == mu]
            lines = _method_lines(
                here,
                x="rho",
                score=score,
                decisions=(ARGMAX, THRESHOLDED) if score == "accuracy" else (ARGMAX,),
            )
            panels.append((f"{name}, {_n_minority(here)}", lines))
    return _lines_figure(panels, x_label="imbalance ratio ρ", score=score)


def over_minority(rows: Sequence[Row]) -> Figure | None:
    """Figure 4: AUC over the number of minority classes, a panel for each imbalance ratio."""
    panels = []
    for name, of_set in _by_set(rows):
        for rho in _three({row["rho"] for row in of_set}):
            here = [row | {"n_minority": len(row["minority"])} for row in of_set if row["rho"] == rho]
            panels.append((f"{name}, ρ = {rho:g}", _method_lines(here, x="n_minority", score="auc")))
    return _lines_figure(panels, x_label="minority classes", score="auc")


def over_linear(rows: Sequence[Row]) -> Figure | None:
    """Figure 5: AUC over rho under linear imbalance, a panel for each image set."""
    panels = [
        (f"{name}, linear", _method_lines(of_set, x="rho", score="auc")) for name, of_set in _by_set(rows)
    ]
    return _lines_figure(panels, x_label="imbalance ratio ρ", score="auc")


def reduced_ratio(rows: Sequence[Row]) -> Figure | None:
    """Figure 7: AUC over the imbalance ratio that over- or undersampling left, a line for each number of
    minority classes.

    The baseline stands at the ratio the set had.
    """
    panels = []
    for name, of_set in _by_set([row for row in rows if row["decision"] == ARGMAX]):
        reduced = {row["rho"] for row in of_set if row["imbalance_ratio"] > 1}
        for method in ("oversample", "undersample"):
            for rho in sorted(reduced, key=lambda rho: abs(rho - MNIST_REDUCED_RHO))[:1]:
                here = [row for row in of_set if row["rho"] == rho and row["method"] in (method, "baseline")]
                if any(row["imbalance_ratio"] > 1 for row in here):
                    panels.append((f"{name}, ρ = {rho:g}, {METHODS[method]}", _minority_lines(here)))
    return _lines_figure(panels, x_label="imbalance ratio that is left", score="auc")


def convergence(rows: Sequence[Row]) -> Figure | None:
    """Figure 8: accuracy on the training and the test images over the iterations, a panel for each method."""
    curved = [row for row in rows if row["decision"] == ARGMAX and row.get("curve")]
    panels, what = [], []
    for name, of_set in _by_set(curved):
        wanted = min(
            ((row["mu"] or 0, row["rho"]) for row in of_set),
            key=lambda p: (p != CONVERGENCE, -p[1], abs(p[0] - CONVERGENCE[0])),
        )
        here = [row for row in of_set if (row["mu"] or 0, row["rho"]) == wanted]
        what.append(f"{name}: {here[0]['kind']}, ρ = {wanted[1]:g}, {_n_minority(here)}")
        for method in _methods(here)[:N_PANELS]:
            panels.append(
                (
                    f"{name}, {method_name(method)}",
                    curve_lines([row for row in here if row["method"] == method]),
                )
            )
    return _lines_figure(panels, x_label="iteration", score="accuracy", what="; ".join(what), y_axes="shared")


def curve_lines(rows: Sequence[Row], *, score: Literal["accuracy", "loss"] = "accuracy") -> list[Series]:
    """Accuracy (percent) or loss on training and test images over the iterations; a point that lacks the
    score is left out.
    """
    looks = {"train": (style.BLUE, "-", ""), TEST: (style.VERMILION, "-", "")}
    lines = []
    for part, look in looks.items():
        points: dict[float, list[float]] = defaultdict(list)
        for row in rows:
            for point in row["curve"]:
                if (value := point.get(f"{part}_{score}")) is not None:
                    points[float(point["iteration"])].append(value if score == "loss" else 100 * value)
        lines.append(Series({"train": "training images", TEST: "test images"}[part], look, points))
    return lines


def method_name(method: str) -> str:
    """A method as a person writes it."""
    return METHODS.get(method, style.words(method).replace("two phase ", "two-phase, "))


def method_look(method: str, among: Sequence[str]) -> tuple[str, str, str]:
    """Color, dashes and marker of a method; one of its own for each of those named."""
    if method in _LOOKS:
        return _LOOKS[method]
    place = [m for m in among if m not in _LOOKS].index(method)
    turn = place // len(_OTHERS)
    return (
        _OTHERS[place % len(_OTHERS)],
        ("-", "--", "-.")[turn % 3],
        _MARKERS[(place + turn) % len(_MARKERS)],
    )


def _lines_figure(
    panels: Sequence[tuple[str, Sequence[Series]]],
    *,
    x_label: str,
    score: str,
    what: str = "",
    y_axes: Literal["own", "shared"] = "own",
) -> Figure | None:
    """Panels three to a row, lettered as in the paper; None without any point. `what` is said of all
    panels.
    """
    panels = [(title, lines) for title, lines in panels if any(line.points for line in lines)]
    if not panels:
        return None
    most = max(len(values) for _, lines in panels for line in lines for values in line.points.values())
    if max(len(lines) for _, lines in panels) > MANY_LINES and all(
        len(line.points) == 1 for _, lines in panels for line in lines
    ):
        return _dots_figure(panels, score=score, what=what, n_repeats=most)
    n_columns = min(N_PANELS, len(panels))
    figure, axes = style.panels(-(-len(panels) // n_columns), n_columns)
    handles: dict[str, Line2D] = {}
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    for number, (ax, (title, lines)) in enumerate(zip(axes.flat[: len(panels)], panels, strict=True)):
        for line in lines:
            handles.setdefault(line.name, _draw(ax, line))
        _dress(ax, lines, title=f"({chr(ord('a') + number)}) {title}", x_label=x_label)
        if number % n_columns == 0:
            ax.set_ylabel(_SCORES[score])
        if y_axes == "shared" and number:
            ax.sharey(axes.flat[0])
    band = f"line: mean; band: ± 1 standard deviation over up to {most} repeats" if most > 1 else ""
    style.legend_below(
        figure, handles, n_columns=min(3, len(handles)), note="; ".join(filter(None, (what, band)))
    )
    return figure


def _dots_figure(
    panels: Sequence[tuple[str, Sequence[Series]]], *, score: str, what: str, n_repeats: int
) -> Figure:
    """Panels of many methods on one training set each: a line of dots for each method, in place of a curve of
    one point.
    """
    names = list(dict.fromkeys(line.name.removesuffix(_THRESHOLDED) for _, lines in panels for line in lines))
    n_columns = min(N_PANELS, len(panels))
    figure, axes = style.panels(-(-len(panels) // n_columns), n_columns, height=0.7 + 0.22 * len(names))
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    handles: dict[str, Line2D] = {}
    for number, (ax, (title, lines)) in enumerate(zip(axes.flat[: len(panels)], panels, strict=True)):
        for line in lines:
            place, is_thresholded = (
                names.index(line.name.removesuffix(_THRESHOLDED)),
                line.name.endswith(_THRESHOLDED),
            )
            ((_, values),) = line.points.items()
            color = style.VERMILION if is_thresholded else style.BLUE
            ax.scatter(values, [place] * len(values), s=8, color=color, alpha=0.35, linewidths=0)
            (drawn,) = ax.plot(
                [np.mean(values)], [place], "D" if is_thresholded else "o", color=color, markersize=5
            )
            handles.setdefault("thresholding" if is_thresholded else "largest probability", drawn)
        style.title(ax, f"({chr(ord('a') + number)}) {title}")
        ax.set(xlabel=_SCORES[score], ylim=(len(names) - 0.4, -0.6))
        ax.set_yticks(range(len(names)), names if number % n_columns == 0 else [""] * len(names))
    dots = f"large: mean; small: each of up to {n_repeats} repeats" if n_repeats > 1 else ""
    style.legend_below(figure, handles, n_columns=len(handles), note="; ".join(filter(None, (what, dots))))
    return figure


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


def _method_lines(
    rows: Sequence[Row], *, x: str, score: str, decisions: Iterable[str] = (ARGMAX,)
) -> list[Series]:
    methods = _methods(rows)
    lines = []
    for method in methods:
        for decision in decisions:
            points = _points(
                [row for row in rows if (row["method"], row["decision"]) == (method, decision)],
                x=x,
                score=score,
            )
            color, dashes, marker = method_look(method, methods)
            plain = decision == ARGMAX
            name = method_name(method) + ("" if plain else _THRESHOLDED)
            if points:
                lines.append(Series(name, (color, dashes if plain else ":", marker), points))
    # Figure 6 of the paper: two-phase training is left out where thresholding is drawn.
    return (
        [line for line in lines if not line.name.startswith("two-phase")]
        if THRESHOLDED in decisions
        else lines
    )


def _minority_lines(rows: Sequence[Row]) -> list[Series]:
    colors = (style.INK, style.BLUE, style.VERMILION, style.GREEN, style.PINK)
    looks = [(color, "-", marker) for color, marker in zip(colors, "os^Dv", strict=True)]
    numbers = sorted({len(row["minority"]) for row in rows})
    placed = [
        row | {"left": row["rho"] if row["method"] == "baseline" else row["imbalance_ratio"]} for row in rows
    ]
    return [
        Series(
            f"{n} minority class{'es' if n != 1 else ''}",
            looks[i % len(looks)],
            _points(of_number, x="left", score="auc"),
        )
        for i, n in enumerate(numbers)
        if (of_number := [row for row in placed if len(row["minority"]) == n])
    ]


def _points(rows: Sequence[Row], *, x: str, score: str) -> dict[float, list[float]]:
    points: dict[float, list[float]] = defaultdict(list)
    for row in rows:
        if row[score] is not None:
            points[float(row[x])].append(100 * row[score])
    return dict(points)


def _methods(rows: Sequence[Row]) -> list[str]:
    """The published ones first, in the paper's order."""
    present = dict.fromkeys(row["method"] for row in rows)
    return [m for m in METHODS if m in present] + sorted(m for m in present if m not in METHODS)


def _by_set(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    names = sorted(
        {row["images"] for row in rows},
        key=lambda name: (name not in SETS, list(SETS).index(name) if name in SETS else name),
    )
    return [(SETS.get(name, name), [row for row in rows if row["images"] == name]) for name in names]


def _three(values: set[float], *, preferred: Sequence[float] = ()) -> list[float]:
    """Three of the values: the preferred where all are there, else the first, the middle and the last."""
    if preferred and set(preferred) <= values:
        return list(preferred)
    ordered = sorted(values)
    return (
        [ordered[i] for i in sorted({round(share * (len(ordered) - 1)) for share in (0, 0.5, 1)})]
        if ordered
        else []
    )


def _n_minority(rows: Sequence[Row]) -> str:
    numbers = sorted({len(row["minority"]) for row in rows})
    return f"{' or '.join(map(str, numbers))} minority class{'es' if numbers != [1] else ''}"
