"""The verb `configs`."""

from typing import Annotated

import typer

from brats_seg.commands.console import make_console, show_place
from brats_seg.core.errors import UsageError

SHELVES = {"training": "", "experiments": "experiments", "studies": "studies", "remedies": "remedies"}
"""The argument of `configs` -> the folder of `configs/` that is listed."""
USES = {
    "training": "brats-seg train BANK RUN --config NAME",
    "experiments": "brats-seg experiment BANK OUT --config NAME",
    "studies": "brats-seg study run NAME OUT",
    "remedies": "names in `strategies` of an experiment, and in `methods` of a study",
}


def configs(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[KIND|NAME]",
            help="training (default), experiments, studies or remedies; or the name of one config.",
        ),
    ] = None,
) -> None:
    """List the configs of the package: the purpose, the time and the score of each."""
    from brats_seg.core.settings import config_names, config_path, opening_comment

    console = make_console()
    kind = what or "training"
    if kind in SHELVES:
        console.print(f"used by: {USES[kind]}", markup=False)
        for name in config_names(SHELVES[kind]):
            lines = opening_comment(config_path(name, SHELVES[kind]))
            console.print(f"\n[bold]{name}[/]")
            console.print(" ".join(line.strip() for line in lines if not _is_command(line)), markup=False)
        others = ", ".join(f"brats-seg configs {one}" for one in SHELVES if one != kind)
        console.print(f"\nmore: {others}; one config: brats-seg configs NAME", markup=False)
        return
    shelf = next((shelf for shelf in SHELVES.values() if what in config_names(shelf)), None)
    if shelf is None:
        raise UsageError(f"configs {what}: no such config; `brats-seg configs` lists them")
    path = config_path(kind, shelf)
    console.print(path.read_text(), end="", markup=False, soft_wrap=True)
    show_place("file:", path, console=console)


def _is_command(line: str) -> bool:
    """Whether a line of a comment is the command that uses the config; this command is printed once for all
    configs.
    """
    return line.strip().startswith("brats-seg ") and any(word in line for word in ("--config", "OUT", "BANK"))
