"""The verb `report`."""

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
    cavity_in: CavityIn = None,
    schema: Schema = None,
    prediction_schema: PredictionSchema = None,
) -> None:
    """Write one self-contained page: scores, worst and best cases, training, what was sampled. Exit 1 if it
    lists an error.
    """
    from brats_seg import pipeline

    only = pipeline.held_out_cases(held_out) if held_out is not None else None
    written = pipeline.report(
        out,
        reference,
        run=run,
        output=output,
        conventions=tuple(convention or ()),
        cavity_in=tuple(cavity_in or ()),
        only=only,
        schema=schema,
        prediction_schema=prediction_schema,
    )
    typer.echo(written.page)
    raise typer.Exit(written.exit_code)
