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
    from brats_seg.core.errors import InputError
    from brats_seg.reporting.viewer import write_page
    from brats_seg.scans.layouts import find_cases

    found = find_cases(case, required=(), schema=schema)
    if len(found.cases) != 1:
        names = ", ".join([one.id for one in found.cases[:5]] + ["..."] * (len(found.cases) > 5)) or "none"
        raise InputError(f"{case}: holds {len(found.cases)} cases ({names}); give the folder of one case")
    page = write_page(
        found.cases[0],
        prediction=prediction,
        reference=reference,
        output=output,
        prediction_schema=prediction_schema,
    )
    typer.echo(page)
