"""The verbs of image studies: `brats-seg study plan | run | table | figures`."""

from pathlib import Path
from typing import Annotated

import typer

from brats_seg.commands.console import loading, make_console, show_advice, show_markdown
from brats_seg.commands.options import Device, Machines, Part, Workers, joined_cluster, parse_part, spread

StudyConfig = Annotated[
    str,
    typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a study that comes with the package."),
]
StudyImages = Annotated[
    Path | None,
    typer.Option(
        "--images", metavar="FOLDER", exists=True, help="Folder of the images (instead of images.folder)."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one knob. Repeat for several."),
]

study_app = typer.Typer(
    name="study",
    help="Class-imbalance studies on images (MNIST, CIFAR-10, ImageNet, your own): plan, run, table, "
    "figures.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@study_app.command("plan", epilog="Example: brats-seg study plan mnist")
def study_plan(
    config: StudyConfig,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the study: finished networks in it are not counted.")
    ] = None,
    images: StudyImages = None,
    overrides: Overrides = None,
    workers: Workers = 0,
    device: Device = "auto",
) -> None:
    """Print the number of networks, the time and the disk space that the study needs."""
    with loading():
        from brats_seg.studies import study
        from brats_seg.studies.kinds import load_study, plan_grid
    from brats_seg.classification.settings import StudySettings

    def say(line: str) -> None:
        typer.echo(line, err=True)

    settings = load_study(config, overrides=tuple(overrides or ()))
    if not isinstance(settings, StudySettings):
        typer.echo(plan_grid(settings, folder=images, store=out, workers=workers, device=device, say=say))
        return
    plan = study.make_plan(settings, folder=images, workers=workers, store=out, device=device, say=say)
    typer.echo(study.describe(plan))


@study_app.command("run", epilog="Example: brats-seg study run mnist_quick out --workers 2")
@spread
def study_run(
    config: StudyConfig,
    out: Annotated[
        Path, typer.Argument(help="New folder, or the folder of an interrupted command to continue.")
    ],
    images: StudyImages = None,
    overrides: Overrides = None,
    workers: Workers = 0,
    part: Part = None,
    machines: Machines = Machines(),
) -> None:
    """Train all unfinished networks, one process per core or GPU. The same command continues an interrupted
    study. Exit 1 if a network failed.
    """
    with loading():
        from brats_seg.classification.bench import image_folder
        from brats_seg.studies import study
        from brats_seg.studies.grid import GridWorkers
        from brats_seg.studies.kinds import load_study, run_own_grid
    from brats_seg.classification.settings import StudySettings

    settings = load_study(config, overrides=tuple(overrides or ()))
    needs = [image_folder(settings.images, images)]
    with joined_cluster(machines.cluster, needs=needs, shared=out, workers=workers, part=part) as joined:
        on = GridWorkers(n=workers, device=machines.device, cluster=joined)
        if isinstance(settings, StudySettings):
            report = study.run_study(
                settings,
                out,
                folder=images,
                on=on,
                part=parse_part(part),
                say=lambda line: typer.echo(line, err=True),
            )
        else:
            report = run_own_grid(settings, out, folder=images, on=on, part=parse_part(part))
    typer.echo(f"{report.n_new} cells finished, {report.n_kept} finished before; rows in {out}")
    diverged = [row for row in report.rows if row.get("diverged")]
    n_diverged = len({(row["seed"], row["method"], row["rate"]) for row in diverged})
    if n_diverged:
        typer.echo(
            f"{n_diverged} networks diverged and score as random guessing; a lower optimizer.lr may help",
            err=True,
        )
    for key, reason in report.failed:
        typer.echo(f"{key}: {reason}", err=True)
    raise typer.Exit(int(bool(report.failed)))


@study_app.command("table", epilog="Example: brats-seg study table out")
def study_table(
    out: Annotated[Path, typer.Argument(help="Folder of a study.", exists=True, file_okay=False)],
) -> None:
    """Print means, paired differences and intervals; write table.csv, pairs.csv and table.md to OUT."""
    with loading():
        from brats_seg.studies import study
        from brats_seg.studies.kinds import has_own_grid, write_own_table
    from brats_seg.studies.study_table import to_markdown, write_table

    if has_own_grid(out):
        text, paths = write_own_table(out)
    else:
        table = study.study_table(out)
        text, paths = to_markdown(table), write_table(table, out)
    show_markdown(text, console=make_console())
    typer.echo(f"written: {', '.join(map(str, paths))}")


@study_app.command("advise", epilog="Example: brats-seg study advise images advice --minutes 20")
def study_advise(
    images: Annotated[
        Path, typer.Argument(help="Labeled images: a folder of them, or an .npz file.", exists=True)
    ],
    out: Annotated[Path, typer.Argument(help="Folder to write the page into.")],
    minutes: Annotated[float, typer.Option(help="Budget of the trial, in minutes of one core; 1 or more.")],
    kind: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="mnist, cifar10, folder or npz; by default npz for a file and folder for a folder.",
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Recommend a remedy against imbalance for your own images: short trials of five remedies on inner
    splits.
    """
    with loading():
        from brats_seg.studies.advice import advise_on_images
    from brats_seg.classification.settings import StudySettings
    from brats_seg.core.settings import parse_settings

    name = kind or ("npz" if images.is_file() else "folder")
    settings = parse_settings(StudySettings, {"images": {"name": name}})
    advice = advise_on_images(settings, images, out, minutes=minutes, device=device, say=typer.echo)
    show_advice(advice.lines(), advice.page, console=make_console())


@study_app.command("figures", epilog="Example: brats-seg study figures out")
def study_figures(
    out: Annotated[Path, typer.Argument(help="Folder of a study.", exists=True, file_okay=False)],
) -> None:
    """Draw the published figures from the finished networks."""
    with loading():
        from brats_seg.studies import study
        from brats_seg.studies.kinds import draw_own_figures, has_own_grid

    own_grid = has_own_grid(out)
    for path in draw_own_figures(out) if own_grid else study.draw_figures(out):
        typer.echo(path)
    n_unfinished = 0 if own_grid else study.n_unfinished(out)
    if n_unfinished:
        typer.echo(
            f"{n_unfinished} cells of the study are not finished; the figures show the finished ones",
            err=True,
        )
