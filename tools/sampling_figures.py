"""The three figures of docs/experiments/sampling.md, drawn from the committed rows.

python tools/sampling_figures.py docs/experiments/data docs/images
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from brats_seg.core.files import atomic
from brats_seg.evaluation.comparison import differences_to, summarize_runs
from brats_seg.evaluation.run_rows import Row, read_finished
from brats_seg.reporting import style
from brats_seg.reporting.figures import mix_chart
from brats_seg.reporting.plots import png
from brats_seg.scans.labels import REGIONS

COHORTS = {
    "a79243c6a4492caf": "24 phantoms (seed 1)",
    "75ebf34b21bac391": "24 phantoms (seed 2)",
    "3d7f3b221427baeb": "24 phantoms (seed 3)",
    "f840c57b50e90b3b": "15 patients",
    "367c2d1c268ade17": "8 patients",
}
"""What was scored on held-out folds, by the digest of its bank, in the order of the rows of a figure."""
PATIENTS = ("15 patients", "8 patients")
NAMES = {
    "random": "random",
    "balanced": "balanced",
    "case_first": "balanced, a case first",
    "lesion_first": "balanced, a lesion first",
    "hard": "hard",
    "hard_no_recycle": "hard, pool drawn once",
    "drifting": "drift",
    "best": "drift and Dice",
}
"""What a figure calls a strategy, in the order of its rows."""
POOL_DRAWN_ONCE = "15 patients"
"""Where the strategy `hard` is that with the pool drawn once, today's default."""
LEDGERS = ("random", "balanced", "balanced, a case first")
"""The strategies whose ledger is drawn."""


def committed_rows(data: Path) -> list[Row]:
    """The rows of the runs on phantoms and patients."""
    files = (data / "runs.csv", data / "sampling_real.csv")
    return [row for path in files for rows in read_finished(path).values() for row in rows]


def summary_of(rows: Sequence[Row]) -> dict[str, Any]:
    """The summary of the runs on held-out folds, each cohort as data of its own."""
    cohorts = []
    for row in rows:
        if row["bank"] in COHORTS and row["cases"] == "held_out":
            cohort, strategy = COHORTS[row["bank"]], row["strategy"]
            once = cohort == POOL_DRAWN_ONCE and strategy == "hard"
            cohorts.append(row | {"data": cohort, "strategy": NAMES["hard_no_recycle" if once else strategy]})
    places = {name: place for place, name in enumerate((*COHORTS.values(), *NAMES.values()))}
    cohorts.sort(key=lambda row: (places[row["data"]], places[row["strategy"]]))
    return summarize_runs(cohorts, against="random")


def interval_chart(found: Mapping[tuple[str, str], Any], *, score: str, zero: float, axis: str) -> Figure:
    """Means with 95 % intervals: a column for each region; phantoms in the upper panels, patients below,
    since their scales differ.

    Args:
        found: by cohort and strategy, the regions of summary.json.
        score: which score of a region.
        zero: where the line of no effect stands.
        axis: name of the axis.
    """
    groups = [[key for key in found if (key[0] in PATIENTS) == patients] for patients in (False, True)]
    figure, axes = style.panels(
        2, len(REGIONS), width=2.7, height=2.2, grid="x", sharey="row", height_ratios=list(map(len, groups))
    )
    for keys, panels in zip(groups, axes, strict=True):
        for panel, region in zip(panels, REGIONS, strict=True):
            panel.axvline(zero, color=style.QUIET, linewidth=0.9)
            for place, key in enumerate(keys):
                mean, (low, high) = (found[key][region][score][part] for part in ("mean", "interval95"))
                color = style.QUIET if low <= zero <= high else style.LESS if high < zero else style.MORE
                panel.plot([low, high], [place, place], color=color, linewidth=1.8)
                panel.plot([mean], [place], marker="o", markersize=4.5, color=color)
            style.title(panel, region)
            panel.xaxis.set_major_locator(MaxNLocator(4))
            panel.tick_params(axis="y", length=0)
        panels[0].set_yticks(range(len(keys)), [f"{cohort}: {strategy}" for cohort, strategy in keys])
        panels[0].set_ylim(len(keys) - 0.5, -0.5)
    axes[1][1].set_xlabel(axis)
    return figure


def ledger_chart(variants: Sequence[Mapping[str, Any]]) -> Figure:
    """What was drawn, and what the patches around it hold, for three strategies on the 15 patients."""
    shares, classes = {}, []
    for variant in variants:
        if variant["data"] == "15 patients" and variant["label"] in LEDGERS:
            drawn = {name: mix for name, mix in variant["ledger"].items() if mix["center_share"] is not None}
            classes = sorted(drawn, key=lambda name: name != "healthy")
            for what, column in (("drawn voxels", "center_share"), ("patch voxels", "voxel_share")):
                shares[f"{variant['label']}: {what}"] = [drawn[name][column] for name in classes]
    return mix_chart(shares, classes=classes)


def main(data: Path, images: Path) -> None:
    """Write sampling_differences.png, sampling_volumes.png and sampling_ledger.png."""
    summary = summary_of(committed_rows(data))
    differences = {(d["data"], d["to"]): d["regions"] for d in differences_to(summary, against="random")}
    volumes = {(v["data"], v["label"]): v["regions"] for v in summary["variants"]}
    figures = {
        "differences": interval_chart(differences, score="dice", zero=0, axis="Dice minus that of random"),
        "volumes": interval_chart(volumes, score="volume_ratio", zero=1, axis="predicted over true volume"),
        "ledger": ledger_chart(summary["variants"]),
    }
    for name, figure in figures.items():
        with atomic(images / f"sampling_{name}.png") as part:
            part.write_bytes(png(figure))
        typer.echo(images / f"sampling_{name}.png")


if __name__ == "__main__":
    typer.run(main)
