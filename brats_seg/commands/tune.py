"""The verb `tune`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from brats_seg.commands.console import loading, make_console
from brats_seg.commands.options import Bank, Device, PrecisionName, Run


def tune(
    run: Run,
    bank: Bank,
    also: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN",
            help="Also use the inner cases of this run of another fold. Repeat for several.",
        ),
    ] = None,
    objective: Annotated[
        Literal["dice", "lesion_dice"],
        typer.Option(
            help="Score to maximize: mean Dice of the three regions, or lesion-wise Dice of the whole tumor."
        ),
    ] = "dice",
    device: Device = "auto",
    precision: PrecisionName = "auto",
) -> None:
    """Find prior correction, region thresholds and clean-up on inner cases. Cases that a run held out are not
    used for its settings.
    """
    from brats_seg.commands.show_runs import show_tuning

    with loading():
        from brats_seg import pipeline

    runs, console = (run, *(also or ())), make_console()
    tunings = pipeline.tune(run, bank, also=runs[1:], objective=objective, device=device, precision=precision)
    for path, tuning in zip(runs, tunings, strict=True):
        show_tuning(tuning, path, console=console)
