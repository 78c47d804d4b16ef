"""The verbs `configs`, `knobs` and `models`: what travels with the package."""

import sys
from shutil import get_terminal_size
from textwrap import fill
from typing import Annotated

import typer
from rich.markup import escape

from brats_seg.commands.console import make_console, show_place
from brats_seg.core.errors import UsageError

SHELVES = {"training": "", "experiments": "experiments", "studies": "studies", "remedies": "remedies"}
"""What `configs` lists by each word, and the folder of `configs/` that it lies in."""
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
    """List the configs that travel with the package: what each is for, its time and its score."""
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
    """Whether a line of a comment is the command that the config is used by: it is said once for all."""
    return line.strip().startswith("brats-seg ") and any(word in line for word in ("--config", "OUT", "BANK"))


def knobs(
    section: Annotated[
        str | None, typer.Argument(help="A section such as sampler; without it the sections are listed.")
    ] = None,
) -> None:
    """List the knobs of a training: name, values, default and meaning."""
    from brats_seg.core.config import Config
    from brats_seg.core.knobs import knob_sections, knobs_of, one_line

    console, sections = make_console(), knob_sections(Config)
    if section is None:
        for name, model in sections.items():
            console.print(f"[bold]{name}[/]: {escape(one_line(model.__doc__ or '').partition(chr(10))[0])}")
        console.print("the knobs of one: brats-seg knobs SECTION")
        return
    if section not in sections:
        raise UsageError(f"knobs {section}: no such section; the sections are {', '.join(sections)}")
    for knob in knobs_of(section, sections[section]):
        console.print(f"[bold]{knob.name}[/]", soft_wrap=True)
        for words in (knob.meaning, f"values: {knob.values.replace('`', '')}", f"default: {knob.default}"):
            for line in escape(words).splitlines():
                console.print(f"  {line}")
    console.print(
        f"change one: brats-seg train BANK RUN --config NAME --set {section}.KNOB=VALUE", markup=False
    )


def models(
    name: Annotated[str | None, typer.Argument(help="Print the whole card of this one.")] = None,
) -> None:
    """List the networks that travel with the package: data, recipe, scores, and what each is not for."""
    from brats_seg.models.packaged import find_packaged, packaged_names, read_card

    if name is not None:
        _echo_lines(read_card(find_packaged(name)).text())
        return
    for one in packaged_names():
        _echo_lines(read_card(find_packaged(one)).summary())
    if not packaged_names():
        typer.echo("this build carries no network")


def _echo_lines(text: str) -> None:
    """Print lines; in a terminal, a line that is too long is broken between words."""
    width = get_terminal_size().columns if sys.stdout.isatty() else None
    for line in text.splitlines():
        indent = line[: len(line) - len(line.lstrip())]
        if width is not None and not line.startswith("|"):  # no row of a table
            line = fill(
                line, width, subsequent_indent=2 * indent, break_long_words=False, break_on_hyphens=False
            )
        typer.echo(line)
