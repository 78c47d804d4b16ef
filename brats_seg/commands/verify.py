"""The verb `verify`."""

from pathlib import Path
from typing import Annotated

import typer

from brats_seg.commands.console import make_console, show_problems
from brats_seg.commands.options import ClusterAddress, Modalities, Schema, Synthetic, Workers, joined_cluster
from brats_seg.core.cores import n_cores


def verify(
    data: Annotated[
        Path, typer.Argument(help="Folder of scans, a manifest CSV, or a patch bank.", exists=True)
    ],
    json: Annotated[Path | None, typer.Option(help="Write all problems to this JSON file.")] = None,
    draft: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="Write the draft of a manifest to this file, with a row for each case and all columns.",
        ),
    ] = None,
    workers: Workers = 0,
    synthetic: Synthetic = False,
    schema: Schema = None,
    modality: Modalities = None,
    cluster: ClusterAddress = None,
) -> None:
    """List all problems of a data set at once. Exit 1 if a case must be refused."""
    from brats_seg.bank.records import is_bank
    from brats_seg.core.files import write_json

    console = make_console()
    if is_bank(data):
        from brats_seg.bank.listing import verify_bank

        problems = verify_bank(data)
        findings = {"problems": [problem.to_dict() for problem in problems]}
        show_problems(problems, console=console)
        console.print(f"{len(problems)} problems" if problems else "every file is unchanged")
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
