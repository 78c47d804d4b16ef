"""The verb `report`."""

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
def report(
    out: Predictions,
    reference: Reference,
    output: Annotated[
        Path, typer.Option(help="HTML page to write; a Markdown copy is written to the same folder.")
    ],
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
    """Write one self-contained page: scores, worst and best cases, training, sampled classes. Exit 1 if it
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
