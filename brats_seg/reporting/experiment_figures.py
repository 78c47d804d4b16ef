"""Figures of an experiment: strategies side by side on one slice, too much and too little, sensitivity
against precision, differences.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from brats_seg.evaluation.comparison import FEWEST
from brats_seg.reporting.figures import INK, QUIET, RULE, Picture, words
from brats_seg.scans.labels import REGIONS

OVER, UNDER, RIGHT = "#ff2fa0", "#22c7e8", "#c9d1d9"
"""Predicted and not there; there and not predicted; there and predicted. None is the color of a tissue class.
"""
_LESS, _MORE = "#e05217", "#1f6fb2"
_COLORS = ("#1d2733", "#1f6fb2", "#e05217", "#328073", "#7e32a3", "#a35a00", "#c2185b", "#66717f")
_MARKS = "osD^vP*X"

SliceMask = Bool[np.ndarray, "y x"]


def error_overlay(
    gray: UInt8[np.ndarray, "y x"], reference: SliceMask, prediction: SliceMask, *, scale: int = 2
) -> Picture:
    """A slice with what was predicted too much in one color and what was missed in another; what both have is
    a light veil.

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
        (prediction & ~reference, OVER, 0.85),
        (reference & ~prediction, UNDER, 0.85),
        (reference & prediction, RIGHT, 0.35),
    )
    for mask, color, opacity in parts:
        inside = np.kron(mask, np.ones((scale, scale), bool))
        picture[inside] = (1 - opacity) * picture[inside] + opacity * 255 * np.array(to_rgb(color))
    return np.round(picture).astype(np.uint8)


def tradeoff_chart(variants: Sequence[Mapping[str, Any]], *, regions: Sequence[str]) -> Figure:
    """Mean sensitivity against mean precision of each variant, a panel for each tissue class or region; lines
    are 95 % intervals.

    Args:
        variants: of summary.json, all of one data set.
        regions: names of the panels.
    """
    n_columns = min(4, max(1, len(regions)))
    n_rows = -(-len(regions) // n_columns)
    figure = Figure(
        figsize=(2.9 * n_columns + 0.2, 2.75 * n_rows + 0.3 + 0.2 * -(-len(variants) // 4)),
        dpi=150,
        facecolor="white",
    )
    panels = figure.subplots(n_rows, n_columns, squeeze=False)
    for axes, region in zip(panels.flat, regions, strict=False):
        _plain_axes(axes)
        axes.set_title(words(region), fontsize=9.5, color=INK)
        for i, variant in enumerate(variants):
            found = variant["regions"][region]
            mark = _MARKS[(i + i // 8) % 8]  # with its color: no two of 64 look alike
            _point(
                axes,
                found["precision"],
                found["sensitivity"],
                color=_COLORS[i % 8],
                mark=mark,
                label=variant["label"],
            )
        axes.set(xlabel="precision", ylabel="sensitivity")
        axes.grid(color=RULE, linewidth=0.6)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_locator(MaxNLocator(4))
    for axes in panels.flat[len(regions) :]:
        axes.set_visible(False)
    named = {
        label: handle
        for axes in panels.flat
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    labels = [variant["label"] for variant in variants if variant["label"] in named]
    figure.legend(
        [named[label] for label in labels],
        labels,
        loc="lower center",
        ncols=4,
        frameon=False,
        fontsize=8.5,
        handletextpad=0.3,
    )
    figure.tight_layout(
        pad=0.5, rect=(0, (0.1 + 0.2 * -(-len(variants) // 4)) / figure.get_figheight(), 1, 1)
    )
    return figure


def difference_chart(differences: Sequence[Mapping[str, Any]], *, score: str = "dice") -> Figure:
    """Mean paired difference and its 95 % interval, a panel for each region and a row for each difference.

    Args:
        differences: of summary.json.
        score: whose differences.
    """
    figure = Figure(figsize=(8.6, 1.1 + 0.36 * max(1, len(differences))), dpi=150, facecolor="white")
    panels = figure.subplots(1, len(REGIONS), sharey=True, squeeze=False)[0]
    for axes, region in zip(panels, REGIONS, strict=True):
        _plain_axes(axes)
        axes.axvline(0, color=QUIET, linewidth=0.9)
        for row, difference in enumerate(differences):
            found = difference["regions"][region][score]
            if found["mean"] is None:
                continue
            low, high = found["interval95"] or (found["mean"], found["mean"])
            color = (
                QUIET if found["n_patients"] < FEWEST else _LESS if high < 0 else _MORE if low > 0 else QUIET
            )
            axes.plot([low, high], [row, row], color=color, linewidth=1.8)
            axes.plot([found["mean"]], [row], marker="o", markersize=5, color=color)
        axes.set_title(region, fontsize=9.5, color=INK)
        axes.set_xlabel(f"difference of {score.capitalize()}")
        axes.grid(axis="x", color=RULE, linewidth=0.6)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.tick_params(axis="y", length=0)
    names = [f"{d['data']}: {d['to']}" if d["data"] else d["to"] for d in differences]
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    figure.tight_layout(pad=0.5)
    return figure


def _point(
    axes: Axes, across: Mapping[str, Any], up: Mapping[str, Any], *, color: str, mark: str, label: str
) -> None:
    if across["mean"] is None or up["mean"] is None:
        return
    for found, is_across in ((across, True), (up, False)):
        low, high = found["interval95"] or (found["mean"], found["mean"])
        x, y = ([low, high], [up["mean"]] * 2) if is_across else ([across["mean"]] * 2, [low, high])
        axes.plot(x, y, color=color, linewidth=0.9, alpha=0.6)
    axes.plot([across["mean"]], [up["mean"]], mark, color=color, markersize=6, label=label, linestyle="none")


def _plain_axes(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.tick_params(colors=QUIET, labelcolor=INK, labelsize=8)
    axes.xaxis.label.set(color=INK, fontsize=8.5)
    axes.yaxis.label.set(color=INK, fontsize=8.5)
    axes.set_axisbelow(True)
