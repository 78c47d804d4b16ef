"""Figures of a report: overlays of a label map on a scan, box plots, curves, ledger, confusion matrix and
reliability.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int64, Num, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter
from PIL import Image

from brats_seg.core.shapes import Shares
from brats_seg.reporting import style
from brats_seg.reporting.style import color_of, words
from brats_seg.scans.labels import OUTSIDE

Slice = Num[np.ndarray, "y x"]
"""One axial slice: row 0 is anterior, column 0 the patient's right (radiological view)."""
Labels = UInt8[np.ndarray, "y x"]
"""Tissue class of each pixel of a slice; 0 healthy, 255 outside the brain."""
Picture = UInt8[np.ndarray, "row column 3"]
"""Red, green and blue of each pixel."""
HEALTHY = 0
MOST_CHART_COLORS = 4096


def gray_levels(pixels: Slice, *, low: float, high: float) -> UInt8[np.ndarray, "y x"]:
    """Map intensities linearly so that `low` is black (0) and `high` white (255), the rest clipped."""
    span = max(float(high) - float(low), 1e-12)
    return np.round(np.clip((pixels.astype(np.float64) - low) / span, 0, 1) * 255).astype(np.uint8)


def overlay(
    gray: UInt8[np.ndarray, "y x"],
    labels: Labels,
    *,
    classes: Sequence[str],
    outline: Labels | None = None,
    opacity: float = 0.3,
    scale: int = 2,
    aspect: float = 1.0,
) -> Picture:
    """Draw the tissue classes over a slice: translucent inside, a solid line one screen pixel wide at every
    border.

    Args:
        gray: the slice, 0 black to 255 white.
        labels: class index of each pixel; 0 and 255 are not drawn.
        classes: name of each class index, healthy first.
        outline: class index of each pixel of another label map, of which only the borders are drawn, in
            white: the reference over a prediction.
        opacity: of the inside of a class, 0 to 1.
        scale: screen pixels for each pixel; gray levels are interpolated, labels are not.
        aspect: height of a pixel over its width (spacing in Y over spacing in X).

    Raises:
        ValueError: a label has no class.
    """
    height, width = max(round(gray.shape[0] * scale * aspect), 1), gray.shape[1] * scale
    screen = _few_grays(
        np.asarray(Image.fromarray(gray).resize((width, height), Image.Resampling.BICUBIC)),
        n_levels=250 // len(classes),
    )
    picture = np.repeat(screen[:, :, None], 3, axis=2).astype(np.float64)
    classes_on_screen = np.asarray(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))
    present = [int(c) for c in np.unique(classes_on_screen) if c not in (HEALTHY, OUTSIDE)]
    if present and present[-1] >= len(classes):
        raise ValueError(f"label {present[-1]} has no class; the classes are {', '.join(classes)}")
    for c in present:
        inside = classes_on_screen == c
        color = style.rgb_bytes(color_of(classes[c]))
        picture[inside] = (1 - opacity) * picture[inside] + opacity * color
        picture[inside & ~eroded(inside)] = color
    if outline is not None:
        drawn = np.asarray(Image.fromarray(outline).resize((width, height), Image.Resampling.NEAREST))
        tumor = (drawn != HEALTHY) & (drawn != OUTSIDE)
        picture[tumor & ~eroded(tumor)] = style.rgb_bytes(style.REFERENCE)
    return np.round(picture).astype(np.uint8)


def _few_grays(gray: UInt8[np.ndarray, "y x"], *, n_levels: int) -> UInt8[np.ndarray, "y x"]:
    """The slice rounded to `n_levels` gray levels, few enough that they and their blends with every class fit
    one palette of 256 colors. This halves the size of a report.
    """
    step = 255 / (n_levels - 1)
    return np.round(np.round(gray / step) * step).astype(np.uint8)


def eroded(mask: Bool[np.ndarray, "y x"]) -> Bool[np.ndarray, "y x"]:
    """The pixels of a mask whose four neighbors are in it too."""
    padded = np.pad(mask, 1)
    return padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:] & mask


def picture_row(pictures: Mapping[str, Picture], *, classes: Sequence[str], inches: float) -> Figure:
    """Pictures side by side with their names above them, and the legend of the tissue classes below.

    Args:
        pictures: by name, all of one size.
        classes: the classes of the legend; healthy is left out of it.
        inches: width of a picture.
    """
    height, width = next(iter(pictures.values())).shape[:2]
    figure, axes = style.panels(
        1, len(pictures), width=inches, height=inches * height / width + 0.3, grid="none"
    )
    for panel, (name, picture) in zip(axes[0], pictures.items(), strict=True):
        panel.imshow(picture, interpolation="lanczos")
        panel.set_axis_off()
        style.title(panel, name)
    style.legend_below(figure, _tissue_patches(classes), n_columns=len(classes))
    return figure


def box_plot(
    values: Mapping[str, Sequence[float]],
    *,
    label: str,
    limits: tuple[float, float] | None = None,
    center: float | None = None,
) -> Figure:
    """One box a group over a strip of its points; the whiskers reach the farthest points within 1.5
    interquartile ranges.

    Args:
        values: the numbers of each group by its name; what is not finite is left out.
        label: of the value axis, with the unit.
        limits: of the value axis; None follows the numbers.
        center: a value to draw a line at.
    """
    figure, axes = style.chart(width=5.4, height=0.75 + 0.62 * len(values), grid="x")
    for row, (name, numbers) in enumerate(values.items()):
        _box(axes, np.array([v for v in numbers if np.isfinite(v)]), row=row, color=color_of(name))
    axes.set_yticks(
        range(len(values)), [f"{words(n)}\nn = {int(np.isfinite(list(v)).sum())}" for n, v in values.items()]
    )
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(label)
    if limits is not None:
        margin = 0.02 * (limits[1] - limits[0])
        axes.set_xlim(limits[0] - margin, limits[1] + margin)
    if center is not None:
        axes.axvline(center, color=style.QUIET, linewidth=0.9, zorder=1)
    return figure


def _box(axes: Axes, points: Float[np.ndarray, " n"], *, row: int, color: str) -> None:
    if len(points) == 0:
        place: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "ha": "center", "va": "center"}
        axes.text(0.5, row, "no value", color=style.QUIET, **place)
        return
    if len(points) > 2:
        line = {"color": color, "linewidth": 1.1}
        axes.boxplot(
            [points],
            positions=[row],
            orientation="horizontal",
            widths=0.44,
            showfliers=False,
            patch_artist=True,
            boxprops={"facecolor": (*to_rgb(color), 0.14), "edgecolor": color, "linewidth": 1.1},
            medianprops={"color": color, "linewidth": 2.2},
            whiskerprops=line,
            capprops=line,
        )
    # Spread by a sine, not at random: the same numbers always give the same picture.
    axes.scatter(
        points,
        row + (0.13 * np.sin(2.4 * np.arange(len(points)))),
        s=20,
        color=color,
        alpha=0.75,
        linewidths=0.6,
        edgecolors=style.PAPER,
        zorder=3,
    )


def line_chart(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x_label: str,
    y_label: str,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Lines over a common x axis, named at their ends by a legend beside the chart.

    Args:
        lines: x and y of each line by its name; what is not finite is a gap.
        x_label: of the x axis.
        y_label: of the y axis, with the unit.
        limits: of the y axis; None follows the numbers.
    """
    figure, axes = style.chart(width=5.4, height=2.7, grid="y")
    spare = iter(style.SERIES)
    for name, (x, y) in lines.items():
        axes.plot(
            x,
            y,
            color=color_of(name) if style.has_color(name) else next(spare, style.QUIET),
            linewidth=1.7,
            marker="o",
            markersize=3 if len(x) <= 40 else 0,
            label=words(name),
        )
    axes.set(xlabel=x_label, ylabel=y_label)
    if limits is not None:
        axes.set_ylim(*limits)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if ends := [x for xs, _ in lines.values() for x in xs]:
        axes.set_xlim(min(ends) - 0.4, max(ends) + 0.4)
    if len(lines) > 1:
        style.legend_beside(axes)
    return figure


def mix_chart(shares: Mapping[str, Shares], *, classes: Sequence[str]) -> Figure:
    """One stacked bar a mix: which share of it each tissue class has.

    Args:
        shares: the share of every class, in the order of `classes`, by the name of the mix ('requested',
            'drawn').
        classes: tissue classes, healthy first.
    """
    figure, axes = style.chart(width=5.4, height=0.95 + 0.52 * len(shares))
    for row, mix in enumerate(shares.values()):
        left = 0.0
        for name, share in zip(classes, mix, strict=True):
            color = color_of(name)
            axes.barh(row, share, left=left, height=0.62, color=color, edgecolor=style.PAPER, linewidth=1)
            if share >= 0.08:
                place: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8}
                axes.text(left + share / 2, row, f"{100 * share:.0f} %", color=style.ink_on(color), **place)
            left += float(share)
    axes.set_yticks(range(len(shares)), list(shares))
    axes.set_ylim(len(shares) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.tick_params(axis="y", length=0)
    style.legend_below(figure, _tissue_patches(classes, healthy="shown"), n_columns=3)
    return figure


def confusion_chart(counts: Int64[np.ndarray, "k k"], *, classes: Sequence[str]) -> Figure:
    """The predicted classes of the voxels of each reference class: shares of the row; darker is more.

    Args:
        counts: voxels by reference class (rows) and predicted class (columns).
        classes: name of each class index.
    """
    shares = row_shares(counts)
    k = len(classes)
    figure, axes = style.chart(width=1.6 + 0.85 * k, height=1.0 + 0.55 * k)
    texts = [["–" if np.isnan(share) else f"{100 * share:.1f} %" for share in row] for row in shares]
    names = ["\n".join(words(c).rsplit(" ", 1)) for c in classes]
    style.shares_matrix(axes, shares, texts=texts, names=names)
    axes.set(xlabel="prediction", ylabel="reference")
    return figure


def row_shares(counts: Int64[np.ndarray, "k k"]) -> Float[np.ndarray, "k k"]:
    """Each row of a confusion matrix over its sum; NaN in the row of a class that the reference never has."""
    sums = counts.sum(axis=1, keepdims=True).astype(np.float64)
    return np.divide(counts, sums, out=np.full(counts.shape, np.nan), where=sums > 0)


def reliability_chart(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Share of voxels inside a region against the probability they were given, bin by bin; below, the number
    of voxels of each bin.

    Args:
        curves: bins of each region, as `evaluation.calibration.Reliability.to_dict` has them.
    """
    figure, ((top,), (bottom,)) = style.panels(
        2, 1, width=4.3, height=2.2, grid="both", sharex=True, height_ratios=(3.4, 1)
    )
    top.plot([0, 1], [0, 1], color=style.QUIET, linewidth=0.9, zorder=1)
    for name, bins in curves.items():
        x, y, n = ([b[key] for b in bins] for key in ("mean_probability", "share_inside", "n_voxels"))
        line = {"color": color_of(name), "linewidth": 1.7, "marker": "o", "label": words(name)}
        top.plot(
            x,
            y,
            markersize=4.5,
            markeredgecolor=style.PAPER,
            markeredgewidth=0.6,
            clip_on=False,
            zorder=3,
            **line,
        )
        bottom.plot(x, n, markersize=2.5, **line)
    counts = [b["n_voxels"] for bins in curves.values() for b in bins] or [1]
    bottom.set(
        xlabel="probability given to it",
        ylabel="voxels",
        yscale="log",
        ylim=(min(counts) / 2, 2 * max(counts)),
    )
    top.set(ylabel="share inside the region", xlim=(0, 1), ylim=(0, 1))
    style.legend_inside(top, loc="upper left")
    bottom.yaxis.set_major_locator(LogLocator(numticks=4))
    bottom.yaxis.set_minor_locator(NullLocator())
    return figure


def volume_chart(volumes: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """Predicted against reference volume of each class, one point a case, on axes that are linear under 1 ml
    and logarithmic over it.

    Args:
        volumes: reference and predicted volumes in ml, case by case, by class or region name.
    """
    figure, axes = style.chart(width=4.2, height=3.5, grid="both")
    top = max([1.0, *(v for pair in volumes.values() for side in pair for v in side)]) * 1.5
    axes.plot([0, top], [0, top], color=style.QUIET, linewidth=0.9, zorder=1)
    for name, (reference, prediction) in volumes.items():
        axes.scatter(
            reference,
            prediction,
            s=30,
            color=color_of(name),
            alpha=0.85,
            edgecolors=style.PAPER,
            linewidths=0.6,
            label=words(name),
            zorder=3,
        )
    ticks = [t for t in (0, 1, 3, 10, 30, 100, 300, 1000) if t <= top]
    axes.set_xscale("symlog", linthresh=1)
    axes.set_yscale("symlog", linthresh=1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(ticks, labels=[f"{t:g}" for t in ticks])
        axis.set_minor_locator(NullLocator())
    axes.set(xlim=(-0.08, top), ylim=(-0.08, top))
    axes.set(xlabel="reference, ml", ylabel="prediction, ml")
    if volumes:
        style.legend_inside(axes, loc="upper left", handletextpad=0.2)
    return figure


def _tissue_patches(
    classes: Sequence[str], *, healthy: Literal["shown", "hidden"] = "hidden"
) -> dict[str, Patch]:
    """The handles of a legend, by the words of each class."""
    return {words(c): Patch(facecolor=color_of(c)) for c in classes if c != "healthy" or healthy == "shown"}
