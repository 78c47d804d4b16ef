"""The verb `knobs`."""

from typing import Annotated

import typer

from brats_seg.commands.console import make_console
from brats_seg.core.errors import UsageError


def knobs(
    section: Annotated[
        str | None, typer.Argument(help="A section such as sampler; without it the sections are listed.")
    ] = None,
) -> None:
    """List the knobs of a training: name, values, default and meaning."""
    from rich.markup import escape

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
