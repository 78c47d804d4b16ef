"""The verb `predict-case`."""

from pathlib import Path
from typing import Annotated

import typer

from brats_seg.commands.console import loading, make_console
from brats_seg.commands.options import (
    AllowSameScan,
    AllowSkull,
    Device,
    Resample,
    RunOrName,
    Tuned,
    allowed_flaws,
)


def predict_case(
    run: RunOrName,
    out: Annotated[Path, typer.Argument(help="Label map to write.")],
    t1n: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="T1-weighted, native.")
    ] = None,
    t1c: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="T1-weighted, after contrast.")
    ] = None,
    t2w: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="T2-weighted.")] = None,
    t2f: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="T2 FLAIR.")] = None,
    tta: Annotated[bool, typer.Option("--tta", help="Average over mirrored copies.")] = False,
    tuned: Tuned = None,
    allow_missing: Annotated[
        bool,
        typer.Option(
            "--allow-missing",
            help="Accept fewer than four files (networks trained with augment.modality_dropout).",
        ),
    ] = False,
    device: Device = "auto",
    resample: Resample = False,
    allow_skull: AllowSkull = False,
    allow_same_scan: AllowSameScan = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file OUT if it exists.")
    ] = False,
) -> None:
    """Segment one case from four named files (fewer with --allow-missing), in the label values of BraTS 2023
    (1, 2, 3).
    """
    from brats_seg.commands.show_runs import show_predictions

    with loading():
        from brats_seg import pipeline
        from brats_seg.inference.options import PredictOptions

    given = {"t1n": t1n, "t1c": t1c, "t2w": t2w, "t2f": t2f}
    files = {name: file for name, file in given.items() if file is not None}
    options = PredictOptions(
        device=device,
        tuned=tuned,
        mirroring="all_axes" if tta else "none",
        allow_missing=allow_missing,
        resample=resample,
        allowed=allowed_flaws(skull=allow_skull, same_scan=allow_same_scan),
    )
    predicted = pipeline.predict_files(run, out, files, options=options, overwrite=overwrite)
    show_predictions(predicted, out, console=make_console())
    raise typer.Exit(predicted.exit_code)
