"""The verbs `experiment` and `experiment advise`."""

from pathlib import Path
from typing import Annotated

import typer

from brats_seg.commands.console import loading, make_console, show_advice, show_place
from brats_seg.commands.options import Device, Machines, Workers, joined_cluster, spread


@spread
def experiment(
    bank: Annotated[
        Path,
        typer.Argument(help="Patch bank; for a config with phantoms, a folder for their banks."),
    ],
    out: Annotated[
        Path, typer.Argument(help="New folder, or the folder of an interrupted command to continue.")
    ],
    config: Annotated[
        str, typer.Option(help="A YAML file, or the name of an experiment that comes with the package.")
    ],
    workers: Workers = 0,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STRATEGY", help="Train only this strategy; rows of others are kept. Repeat for several."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change one setting, such as seeds=[0]. Repeat for several."
        ),
    ] = None,
    known: Annotated[
        Path | None,
        typer.Option(
            metavar="RUNS.CSV",
            help="Copy the rows of runs that are finished in this runs.csv.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    machines: Machines = Machines(),
) -> None:
    """Compare strategies on one bank: folds x seeds, one table with error bars. The same command continues an
    interrupted experiment. Exit 1 if a run failed.
    """

    with loading():
        from brats_seg.commands.show_scores import show_experiment
        from brats_seg.studies.experiment import run_experiment
        from brats_seg.studies.grid import GridWorkers
        from brats_seg.studies.strategies import load_experiment

    settings = load_experiment(config, overrides=tuple(overrides or ()))
    console = make_console()
    if settings.phantoms:  # every worker must see the folder of their banks, also before the first bank
        bank.mkdir(parents=True, exist_ok=True)
    with joined_cluster(machines.cluster, needs=[bank], shared=out, workers=workers) as joined:
        report = run_experiment(
            bank,
            out,
            settings,
            on=GridWorkers(n=workers, device=machines.device, cluster=joined),
            only=tuple(only or ()),
            known=known,
            say=typer.echo,  # a path may contain characters that rich reads as markup
        )
    show_experiment(report.summary, report.grid, against=settings.against, console=console)
    show_place("table: ", out / "table.md", console=console)
    show_place("report:", report.page, console=console)
    raise typer.Exit(report.exit_code)


def experiment_advise(
    bank: Annotated[Path, typer.Argument(help="Patch bank.", exists=True, file_okay=False)],
    out: Annotated[Path, typer.Argument(help="Folder to write the runs and the page into.")],
    minutes: Annotated[float, typer.Option(help="Budget of the trial, in minutes of one core; 1 or more.")],
    config: Annotated[str, typer.Option(help="Training config, by its name or file.")] = "unet2d_cpu",
    device: Device = "auto",
) -> None:
    """Recommend a remedy against imbalance for a bank: short trials of five remedies on inner cases of fold
    0.
    """

    with loading():
        from brats_seg.studies.advice import advise_on_scans

    advice = advise_on_scans(bank, out, minutes=minutes, base=config, device=device, say=typer.echo)
    show_advice(advice.lines(), advice.page, console=make_console())
