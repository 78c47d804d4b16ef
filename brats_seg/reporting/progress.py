"""progress.png: loss, inner Dice and the class mix of a run, epoch by epoch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from brats_seg.core.files import atomic
from brats_seg.reporting import style
from brats_seg.scans.labels import REGIONS

Row = Mapping[str, Any]
_DOTS_AN_INCH = 110


def draw_progress(
    path: Path, *, epochs: Sequence[Row], ledger: Sequence[Row], classes: Sequence[str]
) -> None:
    """Draw loss, inner Dice, and the class mix of patch centers and of patch voxels inside the brain, over
    the epochs.
    """
    figure, axes = style.panels(2, 2, width=5.85, height=3.35, sharex=True)
    x = [row["epoch"] for row in epochs]
    _draw_loss(axes[0, 0], x, epochs)
    _draw_dice(axes[0, 1], epochs)
    for place, part, title in zip(
        axes[1],
        ("center", "voxel"),
        ("Patch centers", "Voxels of the patches, inside the brain"),
        strict=True,
    ):
        shares = [[row[f"{part}_share"] for row in ledger if row["class"] == name] for name in classes]
        _draw_mix(place, x, shares, classes)
        style.title(place, title)
        place.set_xlabel("epoch")
    style.legend_beside(axes[0, 1])
    style.legend_beside(axes[1, 1], reverse=True)
    for place in axes.flat:
        place.xaxis.set_major_locator(MaxNLocator(integer=True))
        place.set_xlim(1, max(2, len(x)))
    with atomic(path) as part_path:
        figure.savefig(part_path, format="png", dpi=_DOTS_AN_INCH)


def _draw_loss(axes: Axes, x: Sequence[int], epochs: Sequence[Row]) -> None:
    style.title(axes, "Training loss")
    axes.plot(x, [row["loss"] for row in epochs], color=style.INK, marker=".")
    axes.set_ylim(bottom=0)


def _draw_dice(axes: Axes, epochs: Sequence[Row]) -> None:
    style.title(axes, "Dice on the inner cases")
    scored = [row for row in epochs if row["score"] is not None]
    for region in REGIONS:
        dice = [row[f"dice_{region}"] for row in scored]
        color = style.color_of(region)
        axes.plot([row["epoch"] for row in scored], dice, color=color, marker=".", label=region)
    if best := [row["epoch"] for row in epochs if row["is_best"]]:
        axes.axvline(
            best[-1], color=style.QUIET, linestyle="--", linewidth=1, label=f"best: epoch {best[-1]}"
        )
    axes.set_ylim(0, 1)


def _draw_mix(
    axes: Axes, x: Sequence[int], shares: Sequence[Sequence[float]], classes: Sequence[str]
) -> None:
    """Stack the classes' shares; a single epoch is drawn as wide as two."""
    wide = [*x, x[-1] + 1] if len(x) == 1 else x
    stacked = [[*values, values[-1]] if len(x) == 1 else values for values in shares]
    colors = [style.color_of(name) for name in classes]
    axes.stackplot(wide, stacked, colors=colors, labels=[style.words(name) for name in classes])
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylim(0, 1)
