"""Figures 1 and 3 to 8 of the systematic study (Buda et al. 2018), drawn from the rows of our studies."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from brats_seg.core.files import atomic
from brats_seg.imbalance.distributions import Distribution, class_counts
from brats_seg.reporting import style
from brats_seg.reporting.plots import png
from brats_seg.studies.lines import (
    METHODS,
    THRESHOLDING,
    Series,
    lines_figure,
    method_look,
    method_name,
)
from brats_seg.studies.store import Row
from brats_seg.studies.study_table import ARGMAX, pickings

TEST = "test"
THRESHOLDED = "prior_set"
MNIST_REDUCED_RHO = 1000
CONVERGENCE = (0.5, 50.0)
"""mu and rho of figure 8."""
FEW_CLASSES = (0.2, 0.5, 0.8)
"""mu of the panels of figures 3 and 6."""


SETS = {
    "mnist": "MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "imagenet_lt": "ImageNet-LT",
    "omniglot": "Omniglot",
    "folder": "image folder",
    "npz": "images",
}


def study_figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """Every figure for which the rows of one or several studies suffice, by file name.

    If a set and a method were trained several times, `by_picking` says which training is drawn.
    """
    return by_picking(rows, _study_figures)


def by_picking(
    rows: Sequence[Row], draw: Callable[[Sequence[Row]], Mapping[str, Figure]]
) -> dict[str, Figure]:
    """The figures of the rows that `table.pickings` returns. The name of a figure of runs that were picked by
    their validation score ends in `_picked_on_validation`.

    If runs were picked, the first line of the figure says by which score.
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
    tails = [row for row in chosen if row["kind"] in ("long_tail", "exponential", "natural")]
    # `two_class` draws the curves of studies of two classes.
    curved = [row for row in chosen if row["imbalance_ratio"] == 1 and len(row["counts"]) > 2]
    drawn = {
        "figure1_distributions": figure1() if step or linear else None,
        "figure3_auc_over_rho": over_ratio(full, score="auc"),
        "figure4_auc_over_mu": over_minority(full),
        "figure5_linear": over_shape(
            [row for row in linear if row["imbalance_ratio"] == 1], shape="linear", score="auc"
        ),
        "long_tail_accuracy": over_shape(tails, shape="long tail", score="accuracy"),
        "figure6_accuracy": over_ratio(full, score="accuracy"),
        "figure7_reduced_ratio": reduced_ratio(step),
        "figure8_convergence": convergence(curved, score="accuracy"),
        "learning_curves_auc": convergence(curved, score="auc"),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def write_figures(figures: Mapping[str, Figure], out: Path) -> tuple[Path, ...]:
    """Write each figure as a PNG of 150 dots per inch. Return the paths."""
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
    """Figure 3 (AUC) or 6 (accuracy, with and without thresholding): the score over rho, one panel for each
    share of minority classes.
    """
    panels = []
    for name, of_set in _by_set(rows):
        for mu in _three({row["mu"] for row in of_set}, preferred=FEW_CLASSES):
            of_mu = [row for row in of_set if row["mu"] == mu]
            lines = _method_lines(
                of_mu,
                x="rho",
                score=score,
                decisions=(ARGMAX, THRESHOLDED) if score == "accuracy" else (ARGMAX,),
            )
            panels.append((f"{name}, {_n_minority(of_mu)}", lines))
    return lines_figure(panels, x_label="imbalance ratio ρ", score=score)


def over_minority(rows: Sequence[Row]) -> Figure | None:
    """Figure 4: AUC over the number of minority classes, one panel for each imbalance ratio."""
    panels = []
    for name, of_set in _by_set(rows):
        for rho in _three({row["rho"] for row in of_set}):
            of_rho = [row | {"n_minority": len(row["minority"])} for row in of_set if row["rho"] == rho]
            panels.append((f"{name}, ρ = {rho:g}", _method_lines(of_rho, x="n_minority", score="auc")))
    return lines_figure(panels, x_label="minority classes", score="auc")


def over_shape(rows: Sequence[Row], *, shape: str, score: str) -> Figure | None:
    """Figure 5 (linear imbalance), or the same figure for long tails: a score over rho, one panel for each
    set.
    """
    panels = [
        (f"{name}, {shape}", _method_lines(of_set, x="rho", score=score)) for name, of_set in _by_set(rows)
    ]
    return lines_figure(panels, x_label="imbalance ratio ρ", score=score)


def reduced_ratio(rows: Sequence[Row]) -> Figure | None:
    """Figure 7: AUC over the imbalance ratio after over- or undersampling, one line for each number of
    minority classes.

    The baseline is drawn at the imbalance ratio of its set.
    """
    panels = []
    for name, of_set in _by_set([row for row in rows if row["decision"] == ARGMAX]):
        reduced = {row["rho"] for row in of_set if row["imbalance_ratio"] > 1}
        for method in ("oversample", "undersample"):
            for rho in sorted(reduced, key=lambda rho: abs(rho - MNIST_REDUCED_RHO))[:1]:
                of_rho = [
                    row for row in of_set if row["rho"] == rho and row["method"] in (method, "baseline")
                ]
                if any(row["imbalance_ratio"] > 1 for row in of_rho):
                    panels.append((f"{name}, ρ = {rho:g}, {METHODS[method]}", _minority_lines(of_rho)))
    return lines_figure(panels, x_label="imbalance ratio that is left", score="auc")


def convergence(rows: Sequence[Row], *, score: Literal["accuracy", "auc"]) -> Figure | None:
    """Figure 8 (accuracy), or the same figure for the AUC: a score on the training and the test images over
    the iterations, one panel for each method.
    """
    curved = [row for row in rows if row["decision"] == ARGMAX and row.get("curve")]
    panels, what = [], []
    for name, of_set in _by_set(curved):
        chosen = min(
            ((row["kind"], row["mu"] or 0, row["rho"]) for row in of_set),
            key=lambda p: (p[1:] != CONVERGENCE, -p[2], abs(p[1] - CONVERGENCE[0]), p[0]),
        )
        of_point = [row for row in of_set if (row["kind"], row["mu"] or 0, row["rho"]) == chosen]
        what.append(f"{name}: {chosen[0]}, ρ = {chosen[2]:g}, {_n_minority(of_point)}")
        for method in _methods(of_point):
            lines = curve_lines([row for row in of_point if row["method"] == method], score=score)
            panels.append((f"{name}, {method_name(method)}", lines))
    return lines_figure(panels, x_label="iteration", score=score, what="; ".join(what), y_axes="shared")


def curve_lines(
    rows: Sequence[Row], *, score: Literal["accuracy", "auc", "loss"] = "accuracy"
) -> list[Series]:
    """A score (percent) or the loss on training and test images over the iterations. Points without this
    score are left out.
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
            name = method_name(method) + ("" if plain else THRESHOLDING)
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
    """The methods of the rows: the published methods first, in the order of the paper."""
    present = dict.fromkeys(row["method"] for row in rows)
    return [m for m in METHODS if m in present] + sorted(m for m in present if m not in METHODS)


def _by_set(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    names = sorted(
        {row["images"] for row in rows},
        key=lambda name: (name not in SETS, list(SETS).index(name) if name in SETS else name),
    )
    return [(SETS.get(name, name), [row for row in rows if row["images"] == name]) for name in names]


def _three(values: set[float], *, preferred: Sequence[float] = ()) -> list[float]:
    """Three of the values: the preferred values if all of them exist, else the first, the middle and the last
    value.
    """
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
