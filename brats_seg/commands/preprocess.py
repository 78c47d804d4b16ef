"""The verb `preprocess`."""

from pathlib import Path
from typing import Annotated

import typer

from brats_seg.commands.console import make_console
from brats_seg.commands.options import (
    ClusterAddress,
    Data,
    Modalities,
    Part,
    Resample,
    Schema,
    Synthetic,
    Workers,
    joined_cluster,
    parse_part,
)
from brats_seg.core.cores import n_cores


def preprocess(
    data: Data,
    bank: Annotated[Path, typer.Argument(help="Patch bank to create or continue.")],
    workers: Workers = 0,
    part: Part = None,
    n4: Annotated[
        bool, typer.Option("--n4", help="Correct the bias field first (N4; about 90 times slower, cached).")
    ] = False,
    folds: Annotated[
        int, typer.Option(min=2, help="Folds for cross-validation; all cases of a patient are in one fold.")
    ] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the folds.")] = 0,
    percentiles: Annotated[
        tuple[float, float], typer.Option(help="Percentiles of the brain at which each modality is clipped.")
    ] = (0.5, 99.5),
    resample: Resample = False,
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild",
            help="Change the settings or folds of a finished bank; make cases with damaged files again.",
        ),
    ] = False,
    synthetic: Synthetic = False,
    schema: Schema = None,
    modality: Modalities = None,
    cluster: ClusterAddress = None,
) -> None:
    """Normalize scans into a patch bank indexed per tissue class. The same command continues an interrupted
    build.
    """
    from brats_seg.bank.build import BuildOptions, build_bank
    from brats_seg.commands.show_scans import show_build

    console = make_console()
    options = BuildOptions(
        n4=n4,
        percentiles=percentiles,
        resample=resample,
        n_folds=folds,
        seed=seed,
        part=parse_part(part) or (1, 1),
        rebuild=rebuild,
        synthetic=synthetic,
        schema=schema,
        modalities=tuple(modality or ()),
    )
    with joined_cluster(cluster, needs=[data], shared=bank, workers=workers, part=part) as joined:
        built = build_bank(
            data, bank, options=options, workers=workers or n_cores(), cluster=joined, say=console.print
        )
    show_build(built, bank, console=console)
    raise typer.Exit(built.exit_code)
