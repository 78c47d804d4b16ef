"""Terminal output about a run that was trained, tuned or used."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from brats_seg.commands.console import (
    make_table,
    show_first_that_fits,
    show_place,
    show_problems,
    tissue_head,
)
from brats_seg.core.errors import count_words
from brats_seg.core.files import TUNED
from brats_seg.scans.labels import REGIONS

if TYPE_CHECKING:  # PyTorch takes seconds to import
    from brats_seg.inference.options import Tuning
    from brats_seg.inference.outcome import PredictReport
    from brats_seg.training.split import RunResult

MOST_CASES = 20
"""Number of cases whose volumes are printed; `predictions.csv` has the volumes of all."""


def show_run(result: "RunResult", *, console: Console) -> None:
    """The last epoch's numbers and the path of the run."""
    if result.ended == "stopped":
        console.print("stopped and saved; the same command with --resume continues")
    last = result.rows[-1] if result.rows else None
    if last is not None:
        console.print(f"epoch {last['epoch']}: loss {last['loss']:.4f}")
    if result.best_epoch is not None:
        best = next(row for row in result.rows if row["epoch"] == result.best_epoch)
        dice = ", ".join(
            f"{region} {value:.3f}"
            for region, value in {region: best[f"dice_{region}"] for region in REGIONS}.items()
            if value is not None and not math.isnan(value)
        )
        shown = f"Dice on the inner split {dice}" if dice else f"score on the inner split {best['score']:.3f}"
        console.print(f"best epoch {result.best_epoch}: {shown}")
    show_place("run:", result.run_dir, console=console)


def show_tuning(tuning: "Tuning", run: Path, *, console: Console) -> None:
    """The settings found, their gain, and the path of their file."""
    settings = tuning.settings
    console.print(f"prior correction {settings.correct_priors:g}")
    cut = {
        region: threshold
        for region in REGIONS
        if (threshold := getattr(settings.thresholds, region)) is not None
    }
    console.print(
        f"thresholds: {', '.join(f'P({r}) {t:g}' for r, t in cut.items()) or 'none, the likeliest class'}"
    )
    cleanup = settings.cleanup
    smallest = {
        "smallest component": cleanup.min_component_mm3,
        "of core": cleanup.min_core_component_mm3,
        "of active": cleanup.min_active_component_mm3,
        "smallest enhancing core": cleanup.min_enhancing_mm3,
    }
    kept = [f"{what} {mm3:g} mm3" for what, mm3 in smallest.items() if mm3]
    if cleanup.min_component_share:
        kept.append(f"smallest share of the largest component {cleanup.min_component_share:g}")
    console.print(f"clean-up: {', '.join(kept) or 'none'}")
    for note in tuning.notes:
        console.print(escape(note), soft_wrap=True)
    score = {"dice": "mean Dice", "lesion_dice": "lesion-wise Dice of whole"}[tuning.objective]
    n = tuning.n_cases
    where = f"{count_words(n, 'inner case')}" + (f" of {tuning.n_runs} runs" if tuning.n_runs > 1 else "")
    low, high = tuning.gain_interval95 or (None, None)
    interval = (
        ""
        if low is None or settings == type(settings)()
        else f", gain with 95 % interval {low:+.4f} to {high:+.4f}"
    )
    if tuning.score is not None and tuning.score_before is not None:
        without = f"without them {tuning.score_before:.4f}"
        console.print(f"{score} on {where}: {tuning.score:.4f}, {without}{interval}")
    show_place("settings:", run / TUNED, console=console)


def show_predictions(predicted: "PredictReport", out: Path, *, console: Console) -> None:
    """The volumes of each case, the refused cases, the number of segmented cases, and the path of the label
    maps.
    """
    predictions = predicted.predictions
    names = list(dict.fromkeys(name for one in predictions for name in one.volumes_ml))
    regions = [name for name in names if name in REGIONS]
    tables = []
    for chosen in (names, regions):
        table = make_table("case", *[f"{tissue_head(name)} ml" for name in chosen])
        for one in predictions[:MOST_CASES]:
            table.add_row(one.case, *(f"{one.volumes_ml[name]:,.1f}" for name in chosen))
        tables.append(table)
    show_first_that_fits(*tables, console=console)
    if len(predictions) > MOST_CASES:
        n = len(predictions) - MOST_CASES
        console.print(f"the volumes of {count_words(n, 'more case')} are in predictions.csv")
    show_problems(predicted.problems, console=console)
    for one in predictions:
        for warning in one.warnings:
            console.print(escape(f"warning: {one.case}: {warning}"), soft_wrap=True)
    console.print(predicted.summary())
    show_place("label map:" if out.is_file() else "label maps:", out, console=console)
