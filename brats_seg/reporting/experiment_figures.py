"""Figures of an experiment: strategies side by side on one slice, too much and too little, sensitivity
against precision, differences.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from PIL import Image

from brats_seg.core.comparison import FEWEST
from brats_seg.reporting import style
from brats_seg.reporting.figures import Picture, eroded
from brats_seg.scans.labels import REGIONS

FEW_FINDS = 3
"""A precision over fewer cases than this is uncertain, and is drawn pale."""
SliceMask = Bool[np.ndarray, "y x"]


def error_overlay(
    gray: UInt8[np.ndarray, "y x"], reference: SliceMask, prediction: SliceMask, *, scale: int = 2
) -> Picture:
    """A slice with false-positive voxels in one color and missed voxels in another; correct voxels are
    lightly tinted. The border of the reference is a white line.

    Args:
        gray: 0 black to 255 white.
        reference: voxels of the region.
        prediction: voxels predicted to be in it.
        scale: screen pixels for each voxel.
    """
    size = (gray.shape[1] * scale, gray.shape[0] * scale)
    screen = np.asarray(Image.fromarray(gray).resize(size, Image.Resampling.BICUBIC))
    picture = np.repeat(screen[:, :, None], 3, axis=2).astype(np.float64)
    parts = (
        (prediction & ~reference, style.OVER, 0.4),
        (reference & ~prediction, style.UNDER, 0.4),
        (reference & prediction, style.RIGHT, 0.3),
    )
    for mask, color, opacity in parts:
        inside = np.kron(mask, np.ones((scale, scale), bool))
        picture[inside] = (1 - opacity) * picture[inside] + opacity * style.rgb_bytes(color)
    border = np.kron(reference, np.ones((scale, scale), bool))
    picture[border & ~eroded(border)] = style.rgb_bytes(style.REFERENCE)
    return np.round(picture).astype(np.uint8)


def tradeoff_chart(variants: Sequence[Mapping[str, Any]], *, regions: Sequence[str]) -> Figure:
    """Mean sensitivity against mean precision of each variant, a panel for each tissue class or region; lines
    are 95 % intervals.

    Args:
        variants: of summary.json, all of one data set.
        regions: names of the panels.
    """
    n_columns = min(4, max(1, len(regions)))
    figure, axes = style.panels(
        -(-len(regions) // n_columns) or 1, n_columns, width=2.9, height=2.75, grid="both"
    )
    for panel in axes.flat[len(regions) :]:
        panel.set_visible(False)
    named: dict[str, Line2D] = {}
    for panel, region in zip(axes.flat, regions, strict=False):
        style.title(panel, style.words(region))
        for i, variant in enumerate(variants):
            scores = variant["regions"][region]
            mark = style.MARKERS[(i + i // 8) % 8]  # with its color: no two of 64 look alike
            point = _point(
                panel, scores["precision"], scores["sensitivity"], color=style.SERIES[i % 8], mark=mark
            )
            if point is not None:
                named.setdefault(variant["label"], point)
        panel.set(xlabel="precision", ylabel="sensitivity")
        panel.xaxis.set_major_locator(MaxNLocator(4))
        panel.yaxis.set_major_locator(MaxNLocator(4))
    labels = [variant["label"] for variant in variants if variant["label"] in named]
    style.legend_below(figure, {label: named[label] for label in labels}, n_columns=4)
    return figure


def difference_chart(differences: Sequence[Mapping[str, Any]], *, score: str = "dice") -> Figure:
    """Mean paired difference and its 95 % interval, a panel for each region and a row for each difference.

    Args:
        differences: of summary.json.
        score: whose differences.
    """
    figure, axes = style.panels(
        1, len(REGIONS), width=2.77, height=0.8 + 0.36 * max(1, len(differences)), grid="x", sharey=True
    )
    for panel, region in zip(axes[0], REGIONS, strict=True):
        panel.axvline(0, color=style.QUIET, linewidth=0.9)
        for row, difference in enumerate(differences):
            pairs = difference["regions"][region][score]
            if pairs["mean"] is None:
                continue
            low, high = pairs["interval95"] or (pairs["mean"], pairs["mean"])
            color = _direction_color(low, high, n_patients=pairs["n_patients"])
            panel.plot([low, high], [row, row], color=color, linewidth=1.8)
            panel.plot([pairs["mean"]], [row], marker="o", markersize=5, color=color)
        style.title(panel, region)
        panel.set_xlabel(f"difference of {score.capitalize()}")
        panel.xaxis.set_major_locator(MaxNLocator(4))
        panel.tick_params(axis="y", length=0)
    names = [f"{d['data']}: {d['to']}" if d["data"] else d["to"] for d in differences]
    axes[0][0].set_yticks(range(len(names)), names)
    axes[0][0].set_ylim(len(names) - 0.5, -0.5)
    return figure


def _direction_color(low: float, high: float, *, n_patients: int) -> str:
    """The color of an interval: gray if the interval contains 0, or has too few patients for a conclusion."""
    if n_patients < FEWEST or low <= 0 <= high:
        return style.QUIET
    return style.LESS if high < 0 else style.MORE


def _point(
    axes: Axes, across: Mapping[str, Any], up: Mapping[str, Any], *, color: str, mark: str
) -> Line2D | None:
    """A mean with its two intervals; None, and nothing is drawn, if a score has no mean."""
    if across["mean"] is None or up["mean"] is None:
        return None
    alpha = 0.35 if across["n"] < FEW_FINDS else 1.0
    for average, is_across in ((across, True), (up, False)):
        low, high = average["interval95"] or (average["mean"], average["mean"])
        x, y = ([low, high], [up["mean"]] * 2) if is_across else ([across["mean"]] * 2, [low, high])
        axes.plot(x, y, color=color, linewidth=0.9, alpha=0.6 * alpha)
    (point,) = axes.plot(
        [across["mean"]], [up["mean"]], mark, color=color, markersize=6, linestyle="none", alpha=alpha
    )
    return point
