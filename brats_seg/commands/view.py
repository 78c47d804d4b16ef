"""The verb `view`."""

from pathlib import Path
from typing import Annotated

import typer

from brats_seg.commands.console import loading
from brats_seg.commands.options import PredictionSchema, Schema
from brats_seg.core.errors import UsageError

Scan = Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="A scan, in place of CASE.")]


def view(
    output: Annotated[
        Path,
        typer.Option(help="HTML page to write, which opens offline in any browser; a folder for many pages."),
    ],
    case: Annotated[
        Path | None,
        typer.Argument(
            help="Folder of a case; with --case or a folder of predictions, a folder or manifest of many.",
            exists=True,
        ),
    ] = None,
    case_id: Annotated[
        str | None,
        typer.Option("--case", metavar="ID", help="Id of the case in a folder or manifest of many."),
    ] = None,
    t1n: Scan = None,
    t1c: Scan = None,
    t2w: Scan = None,
    t2f: Scan = None,
    prediction: Annotated[
        Path | None,
        typer.Option(
            help="Label map to show over the scans; a folder of predictions gives a page for each case.",
            exists=True,
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="Expert's label map; by default the label of the case.", exists=True, dir_okay=False
        ),
    ] = None,
    schema: Schema = None,
    prediction_schema: PredictionSchema = None,
) -> None:
    """Write a page to look at a case: three planes, four modalities, label maps over them. With a folder of
    predictions: a page for each case, with a link to the next page.
    """
    given = {"t1n": t1n, "t1c": t1c, "t2w": t2w, "t2f": t2f}
    files = {name: file for name, file in given.items() if file is not None}
    if (case is None) == (not files):
        raise UsageError("view: give the folder of a case, or scans by --t1n, --t1c, --t2w and --t2f")

    with loading("SciPy and matplotlib"):
        from brats_seg.reporting.view_pages import case_of_scans, find_case, label_map_in, write_pages
        from brats_seg.reporting.viewer import write_page

    if case is not None and case_id is None and prediction is not None and prediction.is_dir():
        if reference is not None:
            raise UsageError(
                "--reference: goes with one case; a folder of predictions uses the labels of the cases"
            )
        pages = write_pages(
            case, prediction, output=output, schema=schema, prediction_schema=prediction_schema
        )
        typer.echo(f"{len(pages)} pages; the first: {pages[0]}")
        return
    if case is not None:
        shown = find_case(case, id=case_id, schema=schema)
    else:
        shown = case_of_scans(files, reference=reference, schema=schema)
    if prediction is not None and prediction.is_dir():
        prediction = label_map_in(prediction, shown.id)
    typer.echo(
        write_page(
            shown,
            prediction=prediction,
            reference=reference,
            output=output,
            prediction_schema=prediction_schema,
        )
    )
