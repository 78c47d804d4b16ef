"""The verb `evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from brats_seg.commands.options import (
    CavityIn,
    Conventions,
    HeldOut,
    Predictions,
    PredictionSchema,
    Reference,
    Schema,
    score_options,
)


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
    cavity_in: CavityIn = None,
    schema: Schema = None,
    prediction_schema: PredictionSchema = None,
) -> None:
    """Score predictions: whole, core and active Dice, HD95 and more, by named conventions."""
    from brats_seg import pipeline
    from brats_seg.commands import console as screen

    console = screen.make_console()
    options = score_options(convention, cavity_in, held_out, schema, prediction_schema)
    scored = pipeline.evaluate(out, reference, options=options, against=against, output=output)
    screen.show_problems(scored.problems, console=console)
    screen.show_scores(scored.summary, console=console)
    if scored.scores:
        screen.show_place("scores:", (output or out) / "scores.csv", console=console)
    raise typer.Exit(scored.exit_code)
