"""The verb `import`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brats_seg.commands.console import (
    loading,
    make_console,
    make_table,
    show_first_that_fits,
    show_place,
    show_problems,
)
from brats_seg.core.errors import count_words

if TYPE_CHECKING:
    from rich.console import Console

    from brats_seg.clinic.studies import Study


def import_(
    dicom: Annotated[
        Path,
        typer.Argument(help="Folder or zip file of DICOM series, of one or many patients.", exists=True),
    ],
    out: Annotated[Path, typer.Argument(help="Folder for the scans: a folder for each case.")],
    series: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODALITY=SERIES",
            help="Correct the table: which series is t1n, t1c, t2w or t2f. Give its number, or its "
            "description, with * for any text. Repeat for several.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the modality of each series, and write nothing.")
    ] = False,
) -> None:
    """Convert DICOM series of patients to scans that the other verbs can read."""

    with loading("SimpleITK"):
        from brats_seg.clinic.convert import import_dicom
        from brats_seg.clinic.studies import parse_wanted

    console = make_console()
    done = import_dicom(dicom, None if dry_run else out, wanted=parse_wanted(series or ()))
    _show_studies(done.studies, console=console)
    show_problems(done.problems, console=console)
    if dry_run:
        console.print("nothing is written: --dry-run")
    else:
        n, n_refused = len(done.written), sum(not study.good for study in done.studies)
        console.print(f"{count_words(n, 'case')} written, {n_refused} refused")
    if done.written:
        show_place("scans:", out, console=console)
    raise typer.Exit(done.exit_code)


def _show_studies(studies: "tuple[Study, ...]", *, console: "Console") -> None:
    """A row for each series: its modality, and why."""
    from brats_seg.core.errors import printable

    table = make_table("case", "series", "description", "becomes", "because", "slices", n_text=5)
    for study in studies:
        for row in study.rows:
            one = row.series
            description = printable(one.description, limit=40)
            table.add_row(
                study.case, one.number, description, row.modality or "-", row.note, str(len(one.planes))
            )
    show_first_that_fits(table, console=console)
