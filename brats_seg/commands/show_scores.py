"""Terminal output about scores of predictions and of an experiment."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from brats_seg.commands.console import make_table, show_first_that_fits
from brats_seg.core.errors import count_words
from brats_seg.evaluation.comparison import MEAN, differences_to
from brats_seg.evaluation.table import METRICS, few_patients
from brats_seg.reporting.style import digits_of
from brats_seg.scans.labels import REGIONS

if TYPE_CHECKING:
    from brats_seg.studies.grid import GridReport


def show_scores(summary: Mapping[str, Any], *, console: Console) -> None:
    """The headline figures: region by region the mean, its interval and n, by convention."""
    for name, convention in summary["conventions"].items():
        console.print(f"[bold]{name}[/]: {escape(convention['source'])}")
        regions = {
            r: figures for r in convention["ranked"] if (figures := convention["regions"].get(r)) is not None
        }
        headline = convention["headline"]
        show_first_that_fits(_scores_by_row(regions, headline), _blocks(regions, headline), console=console)
    n = summary["n_cases"]
    console.print(f"{count_words(n, 'case')} of {count_words(summary['n_patients'], 'patient')}; mean +- sd")
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
        pairs = f"{count_words(test['n_scans'], 'shared scan')} of {count_words(test['n'], 'patient')}"
        console.print(
            f"{test['convention']} {test['region']} {test['metric']}: {difference} ({pairs}, Wilcoxon p "
            f"{test['p']:.3g})"
        )
    note = few_patients(summary)
    if note:
        console.print(note)


def _scores_by_row(regions: Mapping[str, Any], headline: Sequence[str]) -> Table:
    columns = [text for metric in headline for text in (_title(metric), "95 % interval", "n")]
    table = make_table("region", *columns, "Dice where present", "n", "false-positive", "missed")
    for region, figures in regions.items():
        cells = [cell for metric in headline for cell in _mean_cells(figures.get(metric), metric)]
        present = _mean_cells(figures["dice_where_present"], "dice")
        counts = (str(figures["n_false_positive_cases"]), str(figures["n_missed_cases"]))
        table.add_row(region, *cells, present[0], present[2], *counts)
    return table


def _blocks(regions: Mapping[str, Any], headline: Sequence[str]) -> Table:
    """A block for each region, a row for each score: for a narrow terminal."""
    table = make_table("region", "score", "mean +- sd", "95 % interval", "n", n_text=2)
    for region, figures in regions.items():
        named = region
        for metric in (*headline, "dice_where_present"):
            mean, interval, n = _mean_cells(figures.get(metric), metric)
            table.add_row(named, _title(metric), mean, interval, n)
            named = ""
        table.add_row("", "false-positive cases", "", "", str(figures["n_false_positive_cases"]))
        table.add_row("", "missed cases", "", "", str(figures["n_missed_cases"]))
    return table


def show_experiment(
    summary: Mapping[str, Any], grid: "GridReport", *, against: str | None, console: Console
) -> None:
    """Dice of each strategy, its paired differences to the first or to `against`, and what failed."""
    names = (*REGIONS, MEAN, "healthy")
    means = make_table("strategy", *names, "n")
    for variant in summary["variants"]:
        cells = [
            _mean_cells(variant["regions"][r]["dice"], "dice")[0].replace(" +- ", "\n+- ") for r in names
        ]
        means.add_row(_named(variant, "label"), *cells, str(variant["regions"]["whole"]["dice"]["n"]))
    show_first_that_fits(means, console=console)
    differences = make_table("difference (95 % interval)", *REGIONS, MEAN)
    for difference in differences_to(summary, against=against):
        cells = []
        for region in (*REGIONS, MEAN):
            mean, interval, _ = _mean_cells(difference["regions"][region]["dice"], "dice", signed=True)
            cells.append(mean.partition(" ")[0] + (f"\n{interval}" if interval else ""))
        differences.add_row(f"{_named(difference, 'to')} - {difference['from']}", *cells)
    show_first_that_fits(differences, console=console)
    for key, reason in grid.failed:
        console.print(f"[red]failed[/] {escape(key)}: {escape(reason)}", soft_wrap=True)
    console.print(
        f"{count_words(grid.n_new, 'run')} finished now, {grid.n_kept} before; mean +- sd over cases"
    )
    if summary["n_runs"] < summary["n_runs_asked"]:
        console.print(
            f"{summary['n_runs']} of {summary['n_runs_asked']} runs are finished; all numbers here are of "
            "these runs"
        )


def _named(tree: Mapping[str, Any], key: str) -> str:
    return f"{tree['data']}: {tree[key]}" if tree["data"] else str(tree[key])


def _mean_cells(
    figure: Mapping[str, Any] | None, metric: str, *, signed: bool = False
) -> tuple[str, str, str]:
    if figure is None or figure["mean"] is None:
        return "-", "", "0"
    digits = digits_of(metric)
    sign = "+" if signed else ""
    mean = f"{figure['mean']:{sign}.{digits}f}" + (
        f" +- {figure['sd']:.{digits}f}" if figure["sd"] is not None else ""
    )
    interval = figure["interval95"]
    shown = f"{interval[0]:{sign}.{digits}f} to {interval[1]:{sign}.{digits}f}" if interval else ""
    return mean, shown, str(figure["n"])


def _title(metric: str) -> str:
    return METRICS[metric].words if metric in METRICS else "Dice where present"
