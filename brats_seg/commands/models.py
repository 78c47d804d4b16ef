"""The verb `models`."""

import sys
from shutil import get_terminal_size
from textwrap import fill
from typing import Annotated

import typer


def models(
    name: Annotated[str | None, typer.Argument(help="Print the whole card of this network.")] = None,
) -> None:
    """List the networks of the package: data, recipe, scores, and unsuitable uses."""
    from brats_seg.models.packaged import find_packaged, packaged_names, read_card

    if name is not None:
        _echo_lines(read_card(find_packaged(name)).text())
        return
    for one in packaged_names():
        _echo_lines(read_card(find_packaged(one)).summary())
    if not packaged_names():
        typer.echo("this package has no network")


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
