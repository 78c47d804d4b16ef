"""The verbs `evaluate`, `report` and `rank`."""

from pathlib import Path
from typing import Annotated

import typer

from brats_seg.commands.console import (
    loading,
    make_console,
    make_table,
    show_first_that_fits,
    show_place,
    show_problems,
)
from brats_seg.commands.options import (
    ClusterAddress,
    Conventions,
    HeldOut,
    LabelOptions,
    Predictions,
    Reference,
    joined_cluster,
    score_options,
    spread,
)
from brats_seg.core.errors import UsageError, count_words


@spread
def evaluate(
    out: Predictions,
    reference: Reference,
    convention: Conventions = None,
    against: Annotated[
        Path | None,
        typer.Option(help="Another folder of predictions: paired test.", exists=True, file_okay=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for scores.csv and summary.json; the predictions' own by default."),
    ] = None,
    held_out: HeldOut = None,
    labels: LabelOptions = LabelOptions(),
    cluster: ClusterAddress = None,
) -> None:
    """Score predictions: whole, core and active Dice, HD95 and more, by named conventions."""

    with loading("SciPy and pandas"):
        from brats_seg.commands.show_scores import show_scores
        from brats_seg.evaluation.folders import NO_PREDICTION, evaluate_folders

    console = make_console()
    options = score_options(convention, held_out, labels)
    needs = [out, reference, *([against] if against else [])]
    with joined_cluster(cluster, needs=needs, shared=output or out) as joined:
        scored = evaluate_folders(
            out, reference, options=options, against=against, output=output or out, cluster=joined
        )
    show_problems(scored.problems, console=console)
    n_missing = sum(problem.what == NO_PREDICTION for problem in scored.problems)
    if n_missing and held_out is None:
        console.print(
            f"{n_missing} references have no prediction; to score only the cases that a run held out: "
            f"brats-seg evaluate {out} {reference} --held-out RUN",
            soft_wrap=True,
            markup=False,
        )
    show_scores(scored.summary, console=console)
    if scored.scores:
        show_place("scores:", (output or out) / "scores.csv", console=console)
    raise typer.Exit(scored.exit_code)


@spread
def report(
    out: Predictions,
    reference: Reference,
    output: Annotated[Path, typer.Option(help="HTML page to write; a Markdown twin lies beside it.")],
    run: Annotated[
        Path | None,
        typer.Option(
            help="Run folder: adds the training curves and the ledger.", exists=True, file_okay=False
        ),
    ] = None,
    held_out: HeldOut = None,
    convention: Conventions = None,
    labels: LabelOptions = LabelOptions(),
    cluster: ClusterAddress = None,
) -> None:
    """Write one self-contained page: scores, worst and best cases, training, what was sampled. Exit 1 if it
    lists an error.
    """

    with loading("SciPy and matplotlib"):
        from brats_seg.reporting.report import write_report

    options = score_options(convention, held_out, labels)
    with joined_cluster(cluster, needs=[out, reference], shared=output.parent) as joined:
        written = write_report(out, reference, output=output, run=run, options=options, cluster=joined)
    console = make_console()
    show_problems(written.problems, console=console)
    show_place("report:", written.page, console=console)
    raise typer.Exit(written.exit_code)


def rank(
    table: Annotated[
        list[Path],
        typer.Argument(
            help="Two or more scores.csv of `brats-seg evaluate`, or the folders that hold them.", exists=True
        ),
    ],
    convention: Annotated[
        str | None, typer.Option(metavar="NAME", help="The scoring rules whose metrics are ranked.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the ranking as CSV.")
    ] = None,
) -> None:
    """Rank several sets of predictions as the BraTS challenge does."""

    with loading("SciPy and pandas"):
        from dataclasses import asdict

        from brats_seg.core.files import write_text
        from brats_seg.core.tables import csv_text
        from brats_seg.evaluation.ranking import rank_tables

    files = [path / "scores.csv" if path.is_dir() else path for path in table]
    names = [str(path) for path in table]
    if len(set(names)) < len(names):
        raise UsageError("rank: the same table is given twice")
    ranking = rank_tables(dict(zip(names, files, strict=True)), convention=convention)
    shown = make_table("predictions", "place", "mean rank", "95 % of places", "p to next")
    for place in ranking.places:
        p = "" if place.p_to_next is None else f"{place.p_to_next:.4f}"
        between = f"{place.place_low} to {place.place_high}"
        shown.add_row(place.name, str(place.place), f"{place.mean_rank:.3f}", between, p)
    console = make_console()
    show_first_that_fits(shown, console=console)
    n, n_patients = ranking.n_cases, ranking.n_patients
    console.print(
        f"{count_words(n, 'case')} of {count_words(n_patients, 'patient')}, {ranking.convention}: "
        f"{', '.join(ranking.metrics)}; {ranking.n_incomplete} cases are not in all tables: "
        "each ranks last for a table without it",
        soft_wrap=True,
    )
    if output is not None:
        write_text(output, csv_text([asdict(place) for place in ranking.places]))
