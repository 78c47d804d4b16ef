"""The verb `prepare`."""

from pathlib import Path
from typing import Annotated

import typer

from brats_seg.commands.console import loading, make_console, show_place, show_problems
from brats_seg.commands.options import Scans
from brats_seg.core.errors import count_words


def prepare(
    scans: Scans,
    out: Annotated[Path, typer.Argument(help="Folder for the prepared scans: a folder for each case.")],
    brain_mask: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Mask of the brain, drawn on the T1c; {case} in the name is replaced by the id of a case.",
        ),
    ] = None,
    atlas: Annotated[
        Path | None,
        typer.Option(help="Register the scans to this volume without skull, on its grid.", exists=True),
    ] = None,
) -> None:
    """Register scans to one grid of 1 mm and remove the skull, as networks need them."""

    with loading("SimpleITK"):
        from brats_seg.clinic.prepare import prepare_scans

    console = make_console()
    done = prepare_scans(scans, out, brain_mask=brain_mask, atlas=atlas)
    show_problems(done.problems, console=console)
    n = len(done.written)
    console.print(f"{count_words(n, 'case')} prepared")
    if n:
        show_place("scans:", out, console=console)
    raise typer.Exit(done.exit_code)
