"""The verb `evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from brats_seg.commands.console import loading, make_console, show_place, show_problems
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


@spread
def evaluate(
    out: Predictions,
    reference: Reference,
    convention: Conventions = None,
    against: Annotated[
        Path | None,
        typer.Option(
            help="Another folder of predictions to compare by a paired test.", exists=True, file_okay=False
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for scores.csv and summary.json; the folder of predictions by default."),
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
