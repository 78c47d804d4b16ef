"""The verb `view`."""

from pathlib import Path
from typing import Annotated

import typer

from brats_seg.commands.options import PredictionSchema, Schema


def view(
    case: Annotated[Path, typer.Argument(help="Folder of one case.", exists=True, file_okay=False)],
    output: Annotated[Path, typer.Option(help="HTML page to write; opens offline in any browser.")],
    prediction: Annotated[
        Path | None, typer.Option(help="Label map to lay over the scans.", exists=True, dir_okay=False)
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="Expert's label map; the case's own by default.", exists=True, dir_okay=False),
    ] = None,
    schema: Schema = None,
    prediction_schema: PredictionSchema = None,
) -> None:
    """Write one page to look at a case: three planes, four modalities, label maps over them."""
    from brats_seg import pipeline

    page = pipeline.view(
        case,
        prediction=prediction,
        reference=reference,
        output=output,
        schema=schema,
        prediction_schema=prediction_schema,
    )
    typer.echo(page)
