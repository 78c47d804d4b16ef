"""What a terminal shows of each stage: tables and lines, no color where nobody watches."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from brats_seg.bank.build import BuildReport
from brats_seg.core.grid import GridReport
from brats_seg.core.progress import is_first_rank
from brats_seg.core.run_folder import TUNED
from brats_seg.evaluation.comparison import MEAN, differences_to
from brats_seg.evaluation.table import few_patients
from brats_seg.inference.options import Settings
from brats_seg.inference.outcome import PredictReport
from brats_seg.inference.tuned import Tuning
from brats_seg.reporting.style import TERMINAL, digits_of
from brats_seg.scans.labels import REGIONS
from brats_seg.scans.problem import Problem
from brats_seg.training.loop import RunResult


def make_console() -> Console:
    """Standard output; wide where it is a file or a pipe, so that no line of a table is broken there.

    Of several ranks that `torchrun` started the first alone prints.
    """
    console = Console(highlight=False, quiet=not is_first_rank())
    return console if console.is_terminal else Console(highlight=False, width=160, quiet=console.quiet)


def show_problems(problems: Iterable[Problem], *, console: Console) -> None:
    """One line for each problem, errors first."""
    for problem in sorted(problems, key=lambda p: p.severity):
        style = TERMINAL[problem.severity]
        console.print(f"[{style}]{problem.severity}[/] {escape(str(problem))}", soft_wrap=True)


def show_verification(
    rows: Sequence[Mapping[str, Any]], problems: Sequence[Problem], *, console: Console
) -> None:
    """A row for each case of `Report.rows`, then the problems, then the count of good cases."""
    table = _table("case", "patient", "layout", "shape", "tissue voxels", "errors", "warnings")
    for row in rows:
        counts = ", ".join(f"{name} {n:,}" for name, n in row["class_counts"].items()) or (
            "not counted" if row["has_label"] else "no label"
        )
        shape = " x ".join(map(str, row["shape"])) if row["shape"] else "?"
        flags = [str(row[name]) if row[name] else "" for name in ("n_errors", "n_warnings")]
        table.add_row(row["case"], row["patient"], row["layout"], shape, counts, *flags)
    if rows:
        console.print(table)
    show_problems(problems, console=console)
    n_bad = len({p.case or p.file for p in problems if p.severity == "error"})
    n_good = sum(not row["n_errors"] for row in rows)
    console.print(f"{n_good} good {_plural('case', n_good)}" + (f", {n_bad} refused" if n_bad else ""))


def show_build(built: BuildReport, bank: Path, *, console: Console) -> None:
    """What a build did, and what it refused."""
    show_problems(built.problems, console=console)
    n_refused = len({problem.case for problem in built.refused})
    n = len(built.done)
    console.print(
        f"{n} {_plural('case', n)} prepared, {len(built.skipped)} there already, {n_refused} refused"
    )
    if built.complete:
        show_place("bank:", bank, console=console)
    else:
        n = len(built.missing)
        console.print(
            f"{n} {_plural('case', n)} of other parts still to come; the last part to end assembles the bank"
        )


def show_run(result: RunResult, *, console: Console) -> None:
    """The last epoch's numbers and where the run lies."""
    if result.ended == "stopped":
        console.print("stopped and saved; the same command with --resume goes on")
    last = result.rows[-1] if result.rows else None
    if last is not None:
        console.print(f"epoch {last['epoch']}: loss {last['loss']:.4f}")
    if result.best_epoch is not None:
        best = next(row for row in result.rows if row["epoch"] == result.best_epoch)
        scored = {region: best[f"dice_{region}"] for region in REGIONS}
        dice = ", ".join(
            f"{region} {value:.3f}"
            for region, value in scored.items()
            if value is not None and not math.isnan(value)
        )
        shown = f"Dice on the inner split {dice}" if dice else f"score on the inner split {best['score']:.3f}"
        console.print(f"best epoch {result.best_epoch}: {shown}")
    show_place("run:", result.run_dir, console=console)


def show_tuning(tuning: Tuning, run: Path, *, console: Console) -> None:
    """The settings found, what they gain, and where they lie."""
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
    console.print(
        f"smallest component {cleanup.min_component_mm3:g} mm3, of core {cleanup.min_core_component_mm3:g} "
        "mm3, "
        f"of active {cleanup.min_active_component_mm3:g} mm3; smallest enhancing core "
        f"{cleanup.min_enhancing_mm3:g} mm3"
    )
    for note in tuning.notes:
        console.print(escape(note), soft_wrap=True)
    score = {"dice": "mean Dice", "lesion_dice": "lesion-wise Dice of whole"}[tuning.objective]
    n = tuning.n_cases
    where = f"{n} inner {_plural('case', n)}" + (f" of {tuning.n_runs} runs" if tuning.n_runs > 1 else "")
    low, high = tuning.gain_interval95 or (None, None)
    interval = (
        ""
        if low is None or tuning.settings == Settings()
        else f", gain with 95 % interval {low:+.4f} to {high:+.4f}"
    )
    console.print(f"{score} on {where}: {tuning.score:.4f}, without them {tuning.score_before:.4f}{interval}")
    show_place("settings:", run / TUNED, console=console)


def show_predictions(predicted: PredictReport, out: Path, *, console: Console) -> None:
    """How many cases were segmented, what was refused, and where the label maps lie."""
    show_problems(predicted.problems, console=console)
    for prediction in predicted.predictions:
        for warning in prediction.warnings:
            console.print(escape(f"warning: {prediction.case}: {warning}"))
    console.print(predicted.summary())
    show_place("label maps:", out, console=console)


def show_scores(summary: Mapping[str, Any], *, console: Console) -> None:
    """The headline figures: region by region the mean, its interval and n, by convention."""
    for name, convention in summary["conventions"].items():
        headline = convention["headline"]
        columns = [text for metric in headline for text in (_title(metric), "95 % interval", "n")]
        table = _table(
            "region",
            *columns,
            "Dice where present",
            "n",
            "false-positive",
            "missed",
            title=f"{name}: {convention['source']}",
        )
        for region in REGIONS:
            figures = convention["regions"].get(region)
            if figures is None:
                continue
            cells = [cell for metric in headline for cell in _mean_cells(figures.get(metric), metric)]
            present = _mean_cells(figures["dice_where_present"], "dice")
            table.add_row(
                region,
                *cells,
                present[0],
                present[2],
                str(figures["n_false_positive_cases"]),
                str(figures["n_missed_cases"]),
            )
        console.print(table)
    n = summary["n_cases"]
    console.print(
        f"{n} {_plural('case', n)} of {summary['n_patients']} {_plural('patient', summary['n_patients'])}; "
        "mean +- sd"
    )
    if summary["cavity_in"]:
        console.print(f"the resection cavity belongs to {', '.join(summary['cavity_in'])}")
    if "calibration" in summary:
        errors = ", ".join(
            f"{region} {found['ece']:.4f}"
            for region, found in summary["calibration"]["regions"].items()
            if found["ece"] is not None
        )
        console.print(f"expected calibration error: {errors}")
    for test in summary.get("against", {}).get("tests", ()):
        difference = f"{test['mean_difference']:+.4f}"
        pairs = (
            f"{test['n_scans']} shared {_plural('scan', test['n_scans'])} of {test['n']} "
            f"{_plural('patient', test['n'])}"
        )
        console.print(
            f"{test['convention']} {test['region']} {test['metric']}: {difference} ({pairs}, Wilcoxon p "
            f"{test['p']:.3g})"
        )
    note = few_patients(summary)
    if note:
        console.print(note)


def show_experiment(
    summary: Mapping[str, Any], grid: GridReport, *, against: str | None, console: Console
) -> None:
    """Dice of each variant, its paired differences to the first, and what failed."""
    names = (*REGIONS, MEAN, "healthy")
    table = _table("strategy", *names, "n")
    for variant in summary["variants"]:
        cells = [_mean_cells(variant["regions"][region]["dice"], "dice")[0] for region in names]
        table.add_row(_named(variant, "label"), *cells, str(variant["regions"]["whole"]["dice"]["n"]))
    console.print(table)
    for difference in differences_to(summary, against=against):
        parts = []
        for region in (*REGIONS, MEAN):
            mean, interval, _ = _mean_cells(difference["regions"][region]["dice"], "dice")
            parts.append(f"{region} {mean.partition(' ')[0]}" + (f" ({interval})" if interval else ""))
        console.print(
            f"{_named(difference, 'to')} - {difference['from']}: {', '.join(parts)}", soft_wrap=True
        )
    for key, reason in grid.failed:
        console.print(f"[red]failed[/] {escape(key)}: {escape(reason)}", soft_wrap=True)
    console.print(
        f"{grid.n_new} {_plural('run', grid.n_new)} finished now, {grid.n_kept} before; mean +- sd over cases"
    )
    if summary["n_runs"] < summary["n_runs_asked"]:
        console.print(
            f"{summary['n_runs']} of {summary['n_runs_asked']} runs are finished; everything here is over "
            "these"
        )


def _named(tree: Mapping[str, Any], key: str) -> str:
    return f"{tree['data']}: {tree[key]}" if tree["data"] else str(tree[key])


def show_place(label: str, path: Path, *, console: Console) -> None:
    """Where something lies; never broken over two lines."""
    console.print(f"{label} {escape(str(path))}", soft_wrap=True)


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        is_text = column in (
            "case",
            "patient",
            "layout",
            "region",
            "strategy",
            "shape",
            "tissue voxels",
            "95 % interval",
        )
        table.add_column(column, justify="left" if is_text else "right", overflow="fold")
    return table


def _mean_cells(figure: Mapping[str, Any] | None, metric: str) -> tuple[str, str, str]:
    if figure is None or figure["mean"] is None:
        return "-", "", "0"
    digits = digits_of(metric)
    mean = f"{figure['mean']:.{digits}f}" + (
        f" +- {figure['sd']:.{digits}f}" if figure["sd"] is not None else ""
    )
    interval = figure["interval95"]
    return mean, f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}" if interval else "", str(figure["n"])


def _title(metric: str) -> str:
    return {
        "dice": "Dice",
        "hd95_mm": "HD95 (mm)",
        "lesion_dice": "lesion Dice",
        "lesion_hd95_mm": "lesion HD95 (mm)",
    }.get(metric, metric)


def _plural(noun: str, n: int) -> str:
    return noun if n == 1 else f"{noun}s"
