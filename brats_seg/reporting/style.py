"""The look of every chart, page and picture: colors, axes, legends, numbers as text. No other file names a
color.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch

TISSUE_COLORS = {
    "healthy": "#c3c9d0",
    "necrotic_core": "#7e32a3",
    "necrotic_or_non_enhancing": "#7e32a3",
    "edema": "#6cbaf7",
    "non_enhancing_core": "#870f00",
    "enhancing_core": "#e05217",
    "resection_cavity": "#efde3e",
    "tumor_core": "#e05217",
    "whole_tumor": "#6cbaf7",
    "gross_tumor": "#e05217",
}
"""What a tissue class looks like in every picture, page and label file. Chosen by search: every two tumor
classes stay over 20 CIEDE2000 apart, and each stays over 15 away from every gray of a scan and from the white
of a page, also as seen with each of the three color blindnesses (a test).
"""
REGION_COLORS = {"whole": "#31796d", "core": "#7e32a3", "active": "#e05217"}
"""The color of each nested region in charts, as far from the other colors as those of the tissue classes."""

INK, QUIET, RULE, WASH, PAPER = "#1d2733", "#5d6875", "#d9dee4", "#f5f7f9", "#ffffff"
"""Text and lines; small print; grid and axes; boxes; the page."""
REFERENCE = "#ffffff"
"""The outline of the reference over a prediction."""
SCAN = "#000000"
"""Behind a scan, and label 0."""
# Okabe and Ito 2008: told apart by readers of every color vision.
BLUE, VERMILION, GREEN, PINK, ORANGE, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"
OLIVE, INDIGO = "#8c6d1f", "#5b5b9e"
SERIES = (INK, BLUE, VERMILION, GREEN, PINK, ORANGE, SKY, QUIET)
"""Colors of lines and points that mean neither a tissue class nor a region, in the order of use."""
MARKERS = "osD^vP*X"
LESS, MORE = VERMILION, BLUE
"""A difference below zero, and one above."""
OVER, UNDER, RIGHT = "#ff2fa0", "#22c7e8", "#35c46a"
"""False positive; missed; correct. None is the color of a tissue class."""
SHARES_MAP = "Blues"
"""matplotlib's map of a share: the more, the darker."""

_PAGES = {
    "light": {
        "ink": INK, "quiet": QUIET, "rule": RULE, "wash": WASH, "paper": PAPER, "scan": SCAN,
        "accent": "#1f6fb2", "error": "#c0392b", "warning": "#c79a2b",
    },
    "dark": {
        "ink": "#e8ecf1", "quiet": "#9aa6b4", "rule": "#29313c", "ground": "#0e1116", "panel": "#151a21",
        "raised": "#1f2630", "scan": SCAN, "accent": "#8cc4ff", "error": "#ffb4a2", "shadow": "#00000066",
    },
}  # fmt: skip
_CROSSHAIR = "#bfd1e699"
_TICK, _LABEL, _TITLE = 8.5, 9, 9.5  # points
_NOTE = 7.5
_LEGEND_LINE = 0.2  # inches
_DOTS_AN_INCH = 150
_DARK_SHARE = 0.7  # the share from which on a cell of `shares_chart` needs white letters

Grid = Literal["x", "y", "both", "none"]


def words(name: str) -> str:
    """A class or region name as a person writes it: `necrotic_core` is 'necrotic core'."""
    return name.replace("non_", "non-").replace("_", " ")


def color_of(name: str) -> str:
    """The one color of a tissue class or region, `#rrggbb`; gray for a name without one."""
    return TISSUE_COLORS.get(name) or REGION_COLORS.get(name) or QUIET


def has_color(name: str) -> bool:
    """Whether a name is that of a tissue class or region."""
    return name in TISSUE_COLORS or name in REGION_COLORS


def rgb_bytes(color: str) -> Float[np.ndarray, "3"]:
    """Red, green and blue of a color, 0 to 255."""
    return np.array(to_rgb(color)) * 255


def ink_on(color: str) -> str:
    """The color of letters that are readable on this one."""
    red, green, blue = to_rgb(color)
    return PAPER if 0.299 * red + 0.587 * green + 0.114 * blue < 0.55 else INK


def css_variables(theme: Literal["light", "dark"]) -> str:
    """The colors of a page as CSS variables, to stand in its `:root`."""
    return " ".join(f"--{name}: {color};" for name, color in _PAGES[theme].items())


def viewer_colors() -> dict[str, tuple[float, ...]]:
    """The colors that NiiVue draws with beside the tissue classes: red, green, blue and opacity, 0 to 1."""
    colors = {"backColor": SCAN, "crosshairColor": _CROSSHAIR, "fontColor": _PAGES["dark"]["quiet"]}
    return {name: to_rgba(color) for name, color in colors.items()}


def number(x: float | None, digits: int = 3) -> str:
    """A number with so many decimals; a dash where there is none."""
    return "–" if x is None or math.isnan(x) else f"{x:.{digits}f}"


def signed(x: float | None, digits: int = 3) -> str:
    """A difference with its sign; a dash where there is none."""
    return "–" if x is None else f"{x:+.{digits}f}".replace("-", "\u2212")


def percent(share: float | None, digits: int = 1) -> str:
    """A share in percent, without the sign; a dash where there is none."""
    return "–" if share is None or math.isnan(share) else f"{100 * share:.{digits}f}"


def count(n: int) -> str:
    """A whole number in groups of three digits."""
    return f"{n:,}".replace(",", "\u202f")


def digits_of(metric: str) -> int:
    """Decimals of a score: 1 for a distance in mm, 3 for a share."""
    return 1 if metric.endswith("_mm") else 3


def chart(*, width: float, height: float, grid: Grid = "none") -> tuple[Figure, Axes]:
    """One empty chart of this size in inches."""
    figure = Figure(figsize=(width, height), dpi=_DOTS_AN_INCH, facecolor=PAPER, layout="constrained")
    axes = figure.subplots()
    dress(axes, grid=grid)
    return figure, axes


def panels(
    n_rows: int, n_columns: int, *, width: float = 3.1, height: float = 2.5, grid: Grid = "y", **shared: Any
) -> tuple[Figure, Any]:
    """Empty panels in rows and columns.

    Args:
        n_rows: of panels.
        n_columns: of panels.
        width: of a panel, in inches.
        height: of a panel, in inches.
        grid: the lines behind the data.
        shared: what `Figure.subplots` takes: `sharex`, `sharey`, `height_ratios`.

    Returns:
        The figure, and its axes, (n_rows, n_columns).
    """
    size = (width * n_columns + 0.3, height * n_rows + 0.3)
    figure = Figure(figsize=size, dpi=_DOTS_AN_INCH, facecolor=PAPER, layout="constrained")
    axes = figure.subplots(n_rows, n_columns, squeeze=False, **shared)
    for panel in axes.flat:
        dress(panel, grid=grid)
    return figure, axes


def dress(axes: Axes, *, grid: Grid) -> None:
    """Two quiet axes, small letters, the grid behind everything."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.tick_params(colors=QUIET, labelcolor=INK, labelsize=_TICK)
    axes.xaxis.label.set(color=INK, fontsize=_LABEL)
    axes.yaxis.label.set(color=INK, fontsize=_LABEL)
    axes.set_axisbelow(True)
    if grid != "none":
        axes.grid(axis=grid, color=RULE, linewidth=0.7)


def title(axes: Axes, text: str) -> None:
    """Name a panel."""
    axes.set_title(text, fontsize=_TITLE, color=INK, loc="left")


def legend_inside(axes: Axes, **place: Any) -> None:
    """Name the lines of a chart; `place` is where, in the words of `Axes.legend`."""
    axes.legend(**{"frameon": False, "fontsize": _TICK, "handlelength": 1.2, "borderaxespad": 0.3} | place)


def legend_beside(axes: Axes, **place: Any) -> None:
    """Name the lines of a chart at its right side."""
    legend_inside(axes, loc="upper left", bbox_to_anchor=(1, 1), **place)


def legend_below(figure: Figure, handles: Mapping[str, Any], *, n_columns: int, note: str = "") -> None:
    """One legend for all panels, under them, with a line in small print over it; the figure grows with its
    lines.
    """
    n_lines = -(-len(handles) // n_columns)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + _LEGEND_LINE * max(0, n_lines - 2))
    of_boxes = all(isinstance(handle, Patch) for handle in handles.values())
    legend = figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=n_columns,
        frameon=False,
        fontsize=_TICK,
        handlelength=1.2 if of_boxes else 2.6,  # dashes need the length
        title=note or None,
        title_fontsize=_NOTE,
    )
    legend.get_title().set_color(QUIET)


def head_line(figure: Figure, text: str) -> None:
    """A line in small print over all panels."""
    figure.suptitle(text, fontsize=_NOTE, color=QUIET, x=0.01, ha="left")


def shares_matrix(
    axes: Axes, shares: Float[np.ndarray, "k k"], *, texts: Sequence[Sequence[str]], names: Sequence[str]
) -> None:
    """A confusion matrix: each cell darker by its share of the row, with a text in it.

    Args:
        axes: where to draw.
        shares: 0 to 1; NaN for a row without anything.
        texts: of each cell, row by row.
        names: of the classes.
    """
    k = len(names)
    axes.imshow(np.nan_to_num(shares), cmap=SHARES_MAP, vmin=0, vmax=1.25, aspect="auto")
    for i in range(k):
        for j in range(k):
            letters = PAPER if shares[i, j] > _DARK_SHARE else INK
            axes.text(j, i, texts[i][j], ha="center", va="center", fontsize=_TICK, color=letters)
    axes.set_xticks(range(k), names)
    axes.set_yticks(range(k), names)
    axes.set_xticks(np.arange(k - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(k - 1) + 0.5, minor=True)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    axes.grid(which="minor", color=PAPER, linewidth=2)
