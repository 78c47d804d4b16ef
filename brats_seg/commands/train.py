"""The verb `train`."""

from pathlib import Path
from typing import Annotated

import typer

from brats_seg.commands.console import loading, make_console
from brats_seg.commands.options import STOPPED, Bank, Device
from brats_seg.core.errors import UsageError


def train(
    bank: Bank,
    run: Annotated[Path, typer.Argument(help="Run folder to write.")],
    config: Annotated[
        str, typer.Option(help="A YAML file, or the name of a config that comes with the package.")
    ],
    fold: Annotated[
        str, typer.Option(help="Fold to hold out, from 0; or 'all' to train on every case.")
    ] = "0",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one knob. Repeat for several."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run (or start it).")
    ] = False,
    initial: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="RUN",
            help="Begin with the weights of a run, a checkpoint file or a packaged network; with starter, "
            "give --config recipe3d.",
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Train a network on a bank. The held-out fold is never opened."""
    from brats_seg.core.config import load_config

    loaded, number = load_config(config, overrides=tuple(overrides or ())), _parse_fold(fold)
    from brats_seg.commands.show_runs import show_run

    with loading():
        from brats_seg import pipeline

    result = pipeline.train(bank, run, loaded, fold=number, resume=resume, initial=initial, device=device)
    show_run(result, console=make_console())
    raise typer.Exit(STOPPED if result.ended == "stopped" else 0)


def _parse_fold(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal():
        raise UsageError(f"--fold {text}: give a number from 0, or 'all'")
    return int(text)
