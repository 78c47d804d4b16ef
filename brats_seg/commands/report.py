"""The verb `report`."""

from pathlib import Path
from typing import Annotated

import typer

from brats_seg.commands.options import (
    CavityIn,
    ClusterAddress,
    Conventions,
    HeldOut,
    Predictions,
    PredictionSchema,
    Reference,
    Schema,
    joined_cluster,
    score_options,
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
    cluster: ClusterAddress = None,
) -> None:
    """Write one self-contained page: scores, worst and best cases, training, what was sampled. Exit 1 if it
    lists an error.
    """
    from brats_seg.commands.console import loading, make_console, show_place, show_problems

    with loading("SciPy and matplotlib"):
        from brats_seg.reporting.report import write_report

    options = score_options(convention, cavity_in, held_out, schema, prediction_schema)
    with joined_cluster(cluster, needs=[out, reference], shared=output.parent) as joined:
        written = write_report(out, reference, output=output, run=run, options=options, cluster=joined)
    console = make_console()
    show_problems(written.problems, console=console)
    show_place("report:", written.page, console=console)
    raise typer.Exit(written.exit_code)
