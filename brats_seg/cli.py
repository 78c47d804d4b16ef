"""The door: verbs; parse, load the config, call one function, print. Heavy imports inside the commands
only.
"""

import sys
from pathlib import Path
from shutil import get_terminal_size
from textwrap import fill
from typing import Annotated, Literal

import typer

from brats_seg.cli_options import (
    AllowSameScan,
    AllowSkull,
    Bank,
    CavityIn,
    Conventions,
    Data,
    Device,
    HeldOut,
    InferenceName,
    Part,
    PrecisionName,
    Predictions,
    PredictionSchema,
    Reference,
    Resample,
    Run,
    RunOrName,
    Scans,
    Schema,
    Synthetic,
    Tuned,
    Workers,
    parse_part,
)
from brats_seg.cli_study import study_app
from brats_seg.core.errors import InputError, UsageError, is_disk_full, is_out_of_memory, printable

app = typer.Typer(
    name="brats-seg",
    help="Brain-tumor segmentation on multimodal MRI that takes class imbalance seriously.",
    epilog="Start with: brats-seg demo    (synthetic scans, three minutes, no network)",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"brats-seg {version('brats-seg')}")
        raise typer.Exit


@app.callback()
def _door(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    pass


STOPPED = 130
"""Exit code after Ctrl-C or SIGTERM, as shells have it."""


@app.command(epilog="Example: brats-seg demo demo    (your own scans: brats-seg demo out --real scans)")
def demo(
    out: Annotated[Path, typer.Argument(help="An empty or new folder.")] = Path("brats_seg_demo"),
    real: Annotated[
        Path | None,
        typer.Option(
            "--real",
            metavar="SCANS",
            help="Segment these scans with the network that travels with the package.",
            exists=True,
        ),
    ] = None,
) -> None:
    """Everything once, offline: phantom scans, verify, preprocess, train, predict, evaluate, report."""
    from brats_seg.console import make_console
    from brats_seg.demo import run_demo, run_real_demo

    if real is None:
        run_demo(out, console=make_console())
    else:
        raise typer.Exit(run_real_demo(real, out, console=make_console()).exit_code)


@app.command(epilog="Example: brats-seg phantom scans --cases 8 --layout brats2021")
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
    from brats_seg import pipeline

    pipeline.phantom(
        out, n_cases=cases, layout=layout, size=size, seed=seed, traits=_parse_traits(trait or [])
    )
    typer.echo(f"{cases} phantom cases in {out}")


@app.command(epilog="Example: brats-seg verify BraTS2021 --json problems.json")
def verify(
    data: Annotated[
        Path, typer.Argument(help="Folder of scans, a manifest CSV, or a patch bank.", exists=True)
    ],
    json: Annotated[Path | None, typer.Option(help="Write the findings here, for machines.")] = None,
    workers: Workers = 0,
    synthetic: Synthetic = False,
    schema: Schema = None,
) -> None:
    """List everything that is wrong with a data set, at once. Exit 1 if a case must be refused."""
    from brats_seg import console as screen
    from brats_seg import pipeline
    from brats_seg.bank.format import is_bank
    from brats_seg.core.files import write_json

    console = screen.make_console()
    if is_bank(data):
        problems = pipeline.verify_built(data)
        found = {"problems": [problem.to_dict() for problem in problems]}
        screen.show_problems(problems, console=console)
        console.print(f"{len(problems)} problems" if problems else "every file is as it was built")
        code = int(bool(problems))
    else:
        report = pipeline.verify_scans(data, workers=workers, synthetic=synthetic, schema=schema)
        found, code = report.to_dict(), report.exit_code
        screen.show_verification(report.rows, report.problems, console=console)
    if json is not None:
        write_json(json, found)
    raise typer.Exit(code)


@app.command(epilog="Example: brats-seg preprocess BraTS2021 bank --workers 2")
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
) -> None:
    """Normalize scans into a patch bank indexed per tissue class. Goes on where it was stopped."""
    from brats_seg import console as screen
    from brats_seg import pipeline

    console = screen.make_console()
    built = pipeline.preprocess(
        data,
        bank,
        workers=workers,
        part=parse_part(part),
        n4=n4,
        n_folds=folds,
        seed=seed,
        percentiles=percentiles,
        resample=resample,
        rebuild=rebuild,
        synthetic=synthetic,
        schema=schema,
        say=console.print,
    )
    screen.show_build(built, bank, console=console)
    raise typer.Exit(built.exit_code)


@app.command(epilog="Example: brats-seg train bank run --config unet2d_cpu --fold 0 --set sampler.kind=hard")
def train(
    bank: Bank,
    run: Annotated[Path, typer.Argument(help="Run folder to write.")],
    config: Annotated[
        str, typer.Option(help="A YAML file, or the name of a config that comes with the package.")
    ],
    fold: Annotated[
        str, typer.Option(help="Fold to hold out, from 0; or 'all' to train on every case.")
    ] = "0",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one knob. Repeat for several."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run (or start it).")
    ] = False,
    initial: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="RUN",
            help="Begin with the weights of a run, a checkpoint file or a packaged network; with starter, "
            "give --config recipe3d.",
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Train a network on a bank. The held-out fold is never opened."""
    from brats_seg.core.config import load_config

    loaded, number = load_config(config, overrides=tuple(overrides or ())), _parse_fold(fold)
    from brats_seg import console as screen
    from brats_seg import pipeline

    result = pipeline.train(bank, run, loaded, fold=number, resume=resume, initial=initial, device=device)
    screen.show_run(result, console=screen.make_console())
    raise typer.Exit(STOPPED if result.ended == "stopped" else 0)


@app.command(
    epilog="Example: brats-seg cascade detector classifier run    (then predict, tune and evaluate with run)"
)
def cascade(
    detector: Annotated[
        Path,
        typer.Argument(
            help="Run trained with --set task.classes=healthy_or_tumor.", exists=True, file_okay=False
        ),
    ],
    classifier: Annotated[
        Path, typer.Argument(help="Run trained with --set task.classes=tumor.", exists=True, file_okay=False)
    ],
    run: Annotated[Path, typer.Argument(help="Run folder to write.")],
) -> None:
    """Compose two trained networks: the first finds tumor, the second says which. The result is a run like
    any other.
    """
    from brats_seg import pipeline

    typer.echo(pipeline.compose(detector, classifier, run))


@app.command(
    epilog="Example: brats-seg tune run bank    (then: brats-seg predict run scans predictions --tuned)"
)
def tune(
    run: Run,
    bank: Bank,
    also: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN",
            help="Pool the inner cases of this run too, a run of another fold. Repeat for several.",
        ),
    ] = None,
    objective: Annotated[
        Literal["dice", "lesion_dice"],
        typer.Option(
            help="What to raise: mean Dice of the three regions, or lesion-wise Dice of the whole tumor."
        ),
    ] = "dice",
    device: Device = "auto",
    precision: PrecisionName = "auto",
) -> None:
    """Find prior correction, region thresholds and clean-up on inner cases. Cases that a run held out are not
    used for its settings.
    """
    from brats_seg import console as screen
    from brats_seg import pipeline

    runs, console = (run, *(also or ())), screen.make_console()
    found = pipeline.tune(run, bank, also=runs[1:], objective=objective, device=device, precision=precision)
    for path, tuning in zip(runs, found, strict=True):
        screen.show_tuning(tuning, path, console=console)


@app.command(
    epilog="Example: brats-seg predict starter scans predictions    (a network of your own: its run folder "
    "instead of starter)"
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
            help="Undo the sampled class mix: 0 not, 1 in full, often too much; `tune` finds it.",
        ),
    ] = 0.0,
    min_component_mm3: Annotated[
        float, typer.Option(min=0, metavar="MM3", help="Connected tumor smaller than this becomes healthy.")
    ] = 0.0,
    min_enhancing_mm3: Annotated[
        float,
        typer.Option(
            min=0, metavar="MM3", help="Less enhancing core than this in a case becomes necrotic core."
        ),
    ] = 0.0,
    tuned: Tuned = None,
    allow_missing: Annotated[
        bool,
        typer.Option(
            "--allow-missing",
            help="Take cases that lack modalities (networks trained with modality dropout).",
        ),
    ] = False,
    device: Device = "auto",
    precision: PrecisionName = "auto",
    file_type: Annotated[
        Literal[".nii.gz", ".nii", ".mha"],
        typer.Option(metavar="ENDING", help="Of the label maps: .nii.gz, .nii or .mha."),
    ] = ".nii.gz",
    save_probabilities: Annotated[
        bool, typer.Option("--save-probabilities", help="Also write class probabilities.")
    ] = False,
    continue_: Annotated[
        bool, typer.Option("--continue", help="Skip the cases that are there already.")
    ] = False,
    part: Part = None,
    resample: Resample = False,
    synthetic: Synthetic = False,
    allow_skull: AllowSkull = False,
    allow_same_scan: AllowSameScan = False,
) -> None:
    """Segment a folder of scans."""
    from brats_seg import console as screen
    from brats_seg import pipeline

    predicted = pipeline.predict(
        run,
        scans,
        out,
        held_out=held_out,
        also=tuple(also or ()),
        tta=tta,
        inference=inference,
        correct_priors=correct_priors,
        min_component_mm3=min_component_mm3,
        min_enhancing_mm3=min_enhancing_mm3,
        tuned=tuned,
        allow_missing=allow_missing,
        device=device,
        precision=precision,
        suffix=file_type,
        save_probabilities=save_probabilities,
        skip_finished=continue_,
        part=parse_part(part),
        resample=resample,
        synthetic=synthetic,
        allow_skull=allow_skull,
        allow_same_scan=allow_same_scan,
    )
    screen.show_predictions(predicted, out, console=screen.make_console())
    raise typer.Exit(predicted.exit_code)


@app.command(
    "predict-case",
    epilog="Example: brats-seg predict-case run out.nii.gz --t1n a.nii.gz --t1c b.nii.gz --t2w c.nii.gz "
    "--t2f d.nii.gz",
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
            help="Take fewer than four files (networks trained with augment.modality_dropout).",
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
    from brats_seg import console as screen
    from brats_seg import pipeline

    given = {"t1n": t1n, "t1c": t1c, "t2w": t2w, "t2f": t2f}
    files = {name: file for name, file in given.items() if file is not None}
    predicted = pipeline.predict_files(
        run,
        out,
        files,
        tta=tta,
        tuned=tuned,
        allow_missing=allow_missing,
        device=device,
        resample=resample,
        allow_skull=allow_skull,
        allow_same_scan=allow_same_scan,
        overwrite=overwrite,
    )
    screen.show_predictions(predicted, out, console=screen.make_console())
    raise typer.Exit(predicted.exit_code)


@app.command(epilog="Example: brats-seg models    (then: brats-seg predict starter scans predictions)")
def models(
    name: Annotated[str | None, typer.Argument(help="Print the whole card of this one.")] = None,
) -> None:
    """List the networks that travel with the package: data, recipe, scores, and what each is not for."""
    from brats_seg.models.packaged import find_packaged, packaged_names, read_card

    if name is not None:
        _echo_lines(read_card(find_packaged(name)).text())
        return
    for one in packaged_names():
        _echo_lines(read_card(find_packaged(one)).summary())
    if not packaged_names():
        typer.echo("this build carries no network")


@app.command(
    epilog="Example: brats-seg evaluate predictions BraTS2021 --convention brats2020 --convention nnunet"
)
def evaluate(
    out: Predictions,
    reference: Reference,
    convention: Conventions = None,
    against: Annotated[
        Path | None,
        typer.Option(help="Another folder of predictions: paired test.", exists=True, file_okay=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for scores.csv and summary.json; the predictions' own by default."),
    ] = None,
    held_out: HeldOut = None,
    cavity_in: CavityIn = None,
    schema: Schema = None,
    prediction_schema: PredictionSchema = None,
) -> None:
    """Score predictions: whole, core and active Dice, HD95 and more, by named conventions."""
    from brats_seg import console as screen
    from brats_seg import pipeline

    console = screen.make_console()
    only = pipeline.held_out_cases(held_out) if held_out is not None else None
    scored = pipeline.evaluate(
        out,
        reference,
        conventions=tuple(convention or ()),
        against=against,
        output=output,
        cavity_in=tuple(cavity_in or ()),
        only=only,
        schema=schema,
        prediction_schema=prediction_schema,
    )
    screen.show_problems(scored.problems, console=console)
    screen.show_scores(scored.summary, console=console)
    if scored.scores:
        screen.show_place("scores:", (output or out) / "scores.csv", console=console)
    raise typer.Exit(scored.exit_code)


@app.command(epilog="Example: brats-seg report predictions BraTS2021 --run run --output report.html")
def report(
    out: Predictions,
    reference: Reference,
    output: Annotated[Path, typer.Option(help="HTML page to write; a Markdown twin lies beside it.")],
    run: Annotated[
        Path | None,
        typer.Option(
            help="Run folder: adds the training curves and the ledger.", exists=True, file_okay=False
        ),
    ] = None,
    held_out: HeldOut = None,
    convention: Conventions = None,
    cavity_in: CavityIn = None,
    schema: Schema = None,
    prediction_schema: PredictionSchema = None,
) -> None:
    """Write one self-contained page: scores, worst and best cases, training, what was sampled. Exit 1 if it
    lists an error.
    """
    from brats_seg import pipeline

    only = pipeline.held_out_cases(held_out) if held_out is not None else None
    written = pipeline.report(
        out,
        reference,
        run=run,
        output=output,
        conventions=tuple(convention or ()),
        cavity_in=tuple(cavity_in or ()),
        only=only,
        schema=schema,
        prediction_schema=prediction_schema,
    )
    typer.echo(written.page)
    raise typer.Exit(written.exit_code)


@app.command(
    epilog="Example: brats-seg view BraTS2021/BraTS2021_00006 --prediction out/BraTS2021_00006.nii.gz "
    "--output page.html"
)
def view(
    case: Annotated[Path, typer.Argument(help="Folder of one case.", exists=True, file_okay=False)],
    output: Annotated[Path, typer.Option(help="HTML page to write; opens offline in any browser.")],
    prediction: Annotated[
        Path | None, typer.Option(help="Label map to lay over the scans.", exists=True, dir_okay=False)
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="Expert's label map; the case's own by default.", exists=True, dir_okay=False),
    ] = None,
    schema: Schema = None,
) -> None:
    """Write one page to look at a case: three planes, four modalities, label maps over them."""
    from brats_seg import pipeline

    typer.echo(pipeline.view(case, prediction=prediction, reference=reference, output=output, schema=schema))


@app.command(epilog="Example: brats-seg experiment bank out --config sampling_quick --workers 2")
def experiment(
    bank: Annotated[
        Path,
        typer.Argument(
            help="Patch bank; for a config with phantoms of its own, a folder to make their banks in."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Folder to write into, or to go on with.")],
    config: Annotated[
        str, typer.Option(help="A YAML file, or the name of an experiment that comes with the package.")
    ],
    workers: Workers = 0,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="STRATEGY", help="Train this strategy alone; rows of others are kept. Repeat."),
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
            help="Rows of runs finished elsewhere, taken over.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Compare strategies on one bank: folds x seeds, one table with error bars. Killed, it goes on. Exit 1 if
    a run failed.
    """
    from brats_seg import console as screen
    from brats_seg import experiment as room
    from brats_seg.strategies import load_experiment

    settings = load_experiment(config, overrides=tuple(overrides or ()))
    console = screen.make_console()
    report = room.run_experiment(
        bank,
        out,
        settings,
        title=Path(config).stem,
        workers=workers,
        only=tuple(only or ()),
        known=known,
        device=device,
        say=typer.echo,  # a path may hold what rich reads as markup
    )
    screen.show_experiment(report.summary, report.grid, against=settings.against, console=console)
    screen.show_place("table: ", out / "table.md", console=console)
    screen.show_place("report:", report.page, console=console)
    raise typer.Exit(report.exit_code)


def _echo_lines(text: str) -> None:
    """Print lines; in a terminal, a line that is too long is broken between words."""
    width = get_terminal_size().columns if sys.stdout.isatty() else None
    for line in text.splitlines():
        indent = line[: len(line) - len(line.lstrip())]
        if width is not None and not line.startswith("|"):  # no row of a table
            line = fill(
                line, width, subsequent_indent=2 * indent, break_long_words=False, break_on_hyphens=False
            )
        typer.echo(line)


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


def _parse_fold(text: str) -> int | None:
    """A fold's number, or None for all."""
    if text == "all":
        return None
    if not text.isdecimal():
        raise UsageError(f"--fold {text}: give a number from 0, or 'all'")
    return int(text)


app.add_typer(study_app)


def main(argv: list[str] | None = None) -> None:
    """Run the command line; every known problem is one line and an exit code (0 done, 1 input, 2 usage)."""
    try:
        app(args=argv)
    except (InputError, UsageError) as error:
        typer.echo(f"brats-seg: {error}", err=True)
        sys.exit(1 if isinstance(error, InputError) else 2)
    except OSError as error:  # a full disk, a folder that may not be written, a file that went away
        where = f"{printable(str(error.filename))}: " if error.filename else ""
        why = "the disk is full" if is_disk_full(error) else error.strerror
        typer.echo(f"brats-seg: {where}{why}; mend that and give the same command again", err=True)
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        first = (str(error) or "out of memory").splitlines()[0]
        typer.echo(
            f"brats-seg: memory does not suffice: {first}; a smaller patch, batch or network needs less",
            err=True,
        )
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(STOPPED)
