"""The verb `export`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from brats_seg.commands.console import loading, make_console, show_place, show_problems
from brats_seg.commands.options import Predictions
from brats_seg.core.errors import count_words


def export(
    predictions: Predictions,
    scans: Annotated[
        Path,
        typer.Argument(
            help="Folder of the scans that were segmented, from prepare or import.",
            exists=True,
            file_okay=False,
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Folder for the files.")],
    file_type: Annotated[
        str,
        typer.Option(
            metavar="ENDING",
            help=".nii.gz, .nii, .mha, .seg.nrrd (segments of 3D Slicer), .dcm (DICOM SEG, for scans from "
            "import), or .stl (a surface for each region).",
        ),
    ] = ".seg.nrrd",
    names: Annotated[
        Literal["case", "bids"],
        typer.Option(
            help="bids: the files are named as derivatives of BIDS scans, with a folder for each subject."
        ),
    ] = "case",
) -> None:
    """Resample label maps to the grid of the original T1c, and write them in a file type for viewers."""

    with loading("SimpleITK"):
        from brats_seg.clinic.export import export_labels

    console = make_console()
    done = export_labels(predictions, scans, out, file_type=file_type, names=names)
    show_problems(done.problems, console=console)
    n = len(done.written)
    console.print(f"{count_words(n, 'file')} written")
    if n:
        show_place("files:", out, console=console)
    raise typer.Exit(done.exit_code)
