"""The verb `predict`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from brats_seg.commands.console import loading, make_console
from brats_seg.commands.options import (
    AllowSameScan,
    AllowSkull,
    ClusterAddress,
    Device,
    InferenceName,
    Part,
    PrecisionName,
    Resample,
    RunOrName,
    Scans,
    Synthetic,
    Tuned,
    allowed_flaws,
    joined_cluster,
    parse_part,
)


def predict(
    run: RunOrName,
    scans: Scans,
    out: Annotated[Path, typer.Argument(help="Folder for the label maps.")],
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Only the cases that this run's fold held out.")
    ] = False,
    also: Annotated[
        list[str] | None, typer.Option(metavar="RUN", help="Average with this run too. Repeat for several.")
    ] = None,
    tta: Annotated[bool, typer.Option("--tta", help="Average over mirrored copies.")] = False,
    inference: InferenceName = "auto",
    correct_priors: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            metavar="S",
            help="Strength of prior correction: 0 none, 1 full (often too much); `tune` finds it.",
        ),
    ] = 0.0,
    min_component_mm3: Annotated[
        float, typer.Option(min=0, metavar="MM3", help="Connected tumor smaller than this becomes healthy.")
    ] = 0.0,
    min_component_share: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            metavar="S",
            help="Connected tumor smaller than this share of the case's largest becomes healthy.",
        ),
    ] = 0.0,
    min_enhancing_mm3: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="MM3",
            help="If a case has less enhancing core than this, that core becomes necrotic.",
        ),
    ] = 0.0,
    tuned: Tuned = None,
    allow_missing: Annotated[
        bool,
        typer.Option(
            "--allow-missing",
            help="Accept cases that lack modalities (networks trained with modality dropout).",
        ),
    ] = False,
    device: Device = "auto",
    precision: PrecisionName = "auto",
    file_type: Annotated[
        Literal[".nii.gz", ".nii", ".mha"],
        typer.Option(metavar="ENDING", help="File type of the label maps: .nii.gz, .nii or .mha."),
    ] = ".nii.gz",
    save_probabilities: Annotated[
        bool, typer.Option("--save-probabilities", help="Also write class probabilities.")
    ] = False,
    continue_: Annotated[bool, typer.Option("--continue", help="Skip the finished cases.")] = False,
    part: Part = None,
    resample: Resample = False,
    synthetic: Synthetic = False,
    allow_skull: AllowSkull = False,
    allow_same_scan: AllowSameScan = False,
    cluster: ClusterAddress = None,
) -> None:
    """Segment a folder of scans."""
    from brats_seg.commands.show_runs import show_predictions

    with loading():
        from brats_seg import pipeline
        from brats_seg.inference.options import PredictOptions, Settings

    options = PredictOptions(
        also=tuple(also or ()),
        inference=inference,
        device=device,
        precision=precision,
        settings=Settings(
            correct_priors=correct_priors,
            min_component_mm3=min_component_mm3,
            min_component_share=min_component_share,
            min_enhancing_mm3=min_enhancing_mm3,
        ),
        tuned=tuned,
        mirroring="all_axes" if tta else "none",
        held_out=held_out,
        part=parse_part(part) or (1, 1),
        synthetic=synthetic,
        allow_missing=allow_missing,
        resample=resample,
        allowed=allowed_flaws(skull=allow_skull, same_scan=allow_same_scan),
        suffix=file_type,
        save_probabilities=save_probabilities,
        skip_finished=continue_,
    )
    folders = [Path(name) for name in (run, *options.also) if Path(name).is_dir()]
    with joined_cluster(cluster, needs=[scans, *folders], shared=out, part=part) as joined:
        predicted = pipeline.predict(run, scans, out, options=options, cluster=joined)
    show_predictions(predicted, out, console=make_console())
    raise typer.Exit(predicted.exit_code)
