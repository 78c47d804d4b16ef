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
    only = pipeline.held_out_cases(held_out) if held_out is not None else None
    scored = pipeline.evaluate(
        out,
        reference,
        conventions=tuple(convention or ()),
        against=against,
        output=output,
        cavity_in=tuple(cavity_in or ()),
        only=only,
        schema=schema,
        prediction_schema=prediction_schema,
    )
    screen.show_problems(scored.problems, console=console)
    screen.show_scores(scored.summary, console=console)
    if scored.scores:
        screen.show_place("scores:", (output or out) / "scores.csv", console=console)
    raise typer.Exit(scored.exit_code)
