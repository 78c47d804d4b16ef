"""The verbs `verify`, `preprocess` and `phantom`."""

from pathlib import Path
from typing import Annotated

import typer

from brats_seg.commands.console import loading, make_console, show_problems
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
from brats_seg.core.errors import UsageError


def verify(
    data: Annotated[
        Path, typer.Argument(help="Folder of scans, a manifest CSV, or a patch bank.", exists=True)
    ],
    json: Annotated[Path | None, typer.Option(help="Write the findings here, for machines.")] = None,
    draft: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="Write the draft of a manifest here, with a row for each case and all columns.",
        ),
    ] = None,
    workers: Workers = 0,
    synthetic: Synthetic = False,
    schema: Schema = None,
    modality: Modalities = None,
    cluster: ClusterAddress = None,
) -> None:
    """List everything that is wrong with a data set, at once. Exit 1 if a case must be refused."""
    from brats_seg.bank.records import is_bank
    from brats_seg.core.files import write_json

    console = make_console()
    if is_bank(data):
        from brats_seg.bank.listing import verify_bank

        problems = verify_bank(data)
        findings = {"problems": [problem.to_dict() for problem in problems]}
        show_problems(problems, console=console)
        console.print(f"{len(problems)} problems" if problems else "every file is as it was built")
        code = int(bool(problems))
    else:
        from brats_seg.commands.show_scans import show_verification
        from brats_seg.scans.layouts import find_cases
        from brats_seg.scans.verify import verify_cases

        cases = find_cases(data, synthetic=synthetic, required=modality, schema=schema)
        with joined_cluster(cluster, needs=[data], workers=workers) as joined:
            report = verify_cases(cases, workers=workers or n_cores(), cluster=joined)
        findings, code = report.to_dict(), report.exit_code
        show_verification(report.rows, report.problems, console=console)
        if draft is not None:
            from brats_seg.commands.show_scans import show_draft
            from brats_seg.scans.draft import draft_manifest

            named_cases = (*cases.cases, *cases.incomplete)
            rows, unplaced = draft_manifest(draft, cases=named_cases, strangers=cases.strangers)
            show_draft(draft, rows, unplaced, console=console)
    if json is not None:
        write_json(json, findings)
    raise typer.Exit(code)


def preprocess(
    data: Data,
    bank: Annotated[Path, typer.Argument(help="Patch bank to make or go on with.")],
    workers: Workers = 0,
    part: Part = None,
    n4: Annotated[
        bool, typer.Option("--n4", help="Correct the bias field first (N4; some 90 times slower, cached).")
    ] = False,
    folds: Annotated[
        int, typer.Option(min=2, help="Folds for cross-validation; a patient is never split.")
    ] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the folds.")] = 0,
    percentiles: Annotated[
        tuple[float, float], typer.Option(help="Of the brain, where each modality is clipped.")
    ] = (0.5, 99.5),
    resample: Resample = False,
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild",
            help="Give a finished bank other settings or folds; make cases with damaged files again.",
        ),
    ] = False,
    synthetic: Synthetic = False,
    schema: Schema = None,
    modality: Modalities = None,
    cluster: ClusterAddress = None,
) -> None:
    """Normalize scans into a patch bank indexed per tissue class. Goes on where it was stopped."""
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


def phantom(
    out: Annotated[Path, typer.Argument(help="Folder to write into.")],
    cases: Annotated[int, typer.Option(min=1, help="How many cases.")] = 8,
    layout: Annotated[
        str,
        typer.Option(
            help="Naming and label convention, for example brats2013, brats2021, brats2023, msd, bids."
        ),
    ] = "brats2021",
    size: Annotated[int, typer.Option(min=48, help="Voxels along the longest axis.")] = 96,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same files.")] = 0,
    trait: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="Change one trait, such as enhancing=0.002 or contrast=0.5. Repeat."
        ),
    ] = None,
) -> None:
    """Write a synthetic cohort that looks and fails like BraTS."""

    with loading("SciPy and pandas"):
        from brats_seg.phantoms.cohort import make_traits, write_cohort

    traits = make_traits(_parse_traits(trait or []))
    write_cohort(out, n_cases=cases, layout=layout, size=size, seed=seed, traits=traits)
    typer.echo(f"{cases} phantom cases in {out}")


def _parse_traits(texts: list[str]) -> dict[str, float]:
    """`NAME=VALUE` each, as numbers by name."""
    traits: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            traits[name] = float(value)
        except ValueError:
            raise UsageError(f"--trait {text}: write NAME=VALUE, such as contrast=0.5") from None
    return traits
