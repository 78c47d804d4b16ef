"""The verb `demo`."""

from pathlib import Path
from typing import Annotated

import typer

from brats_seg.commands.console import loading, make_console


def demo(
    out: Annotated[Path, typer.Argument(help="An empty or new folder.")] = Path("brats_seg_demo"),
    real: Annotated[
        Path | None,
        typer.Option(
            "--real",
            metavar="SCANS",
            help="Segment these scans with the network of the package.",
            exists=True,
        ),
    ] = None,
) -> None:
    """Everything once, offline: phantom scans, verify, preprocess, train, predict, evaluate, report."""

    with loading():
        from brats_seg.commands.all_stages import run_demo, run_real_demo

    if real is None:
        run_demo(out, console=make_console())
    else:
        raise typer.Exit(run_real_demo(real, out, console=make_console()).exit_code)
