"""The command line: the list of its verbs, and how errors end them."""

import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from brats_seg.commands.cascade import cascade
from brats_seg.commands.configs import configs
from brats_seg.commands.demo import demo
from brats_seg.commands.evaluate import evaluate
from brats_seg.commands.experiment import experiment, experiment_advise
from brats_seg.commands.export import export
from brats_seg.commands.import_ import import_
from brats_seg.commands.knobs import knobs
from brats_seg.commands.models import models
from brats_seg.commands.options import STOPPED
from brats_seg.commands.phantom import phantom
from brats_seg.commands.predict import predict
from brats_seg.commands.predict_case import predict_case
from brats_seg.commands.prepare import prepare
from brats_seg.commands.preprocess import preprocess
from brats_seg.commands.rank import rank
from brats_seg.commands.report import report
from brats_seg.commands.study import study_app
from brats_seg.commands.train import train
from brats_seg.commands.tune import tune
from brats_seg.commands.verify import verify
from brats_seg.commands.view import view
from brats_seg.core.errors import InputError, UsageError, is_disk_full, is_out_of_memory, printable

VERBS: dict[Callable[..., None], str] = {
    demo: "demo demo    (your own scans: brats-seg demo out --real scans)",
    phantom: "phantom scans --cases 8 --layout brats2021",
    import_: "import dicom scans --dry-run    (then: brats-seg import dicom scans)",
    prepare: "prepare scans prepared    (then: brats-seg predict starter prepared predictions)",
    verify: "verify BraTS2021 --json problems.json",
    preprocess: "preprocess BraTS2021 bank --workers 2",
    train: "train bank run --config unet2d_cpu --fold 0 --set sampler.kind=hard",
    cascade: "cascade detector classifier run    (then predict, tune and evaluate with run)",
    tune: "tune run bank    (then: brats-seg predict run scans predictions --tuned)",
    predict: "predict starter scans predictions    "
    "(a network of your own: its run folder instead of starter)",
    predict_case: "predict-case run out.nii.gz --t1n a.nii.gz --t1c b.nii.gz --t2w c.nii.gz --t2f d.nii.gz",
    configs: "configs experiments    (one of them: brats-seg configs unet2d_cpu)",
    knobs: "knobs sampler",
    models: "models    (then: brats-seg predict starter scans predictions)",
    export: "export predictions prepared viewer --file-type .seg.nrrd",
    evaluate: "evaluate predictions BraTS2021 --convention brats2020 --convention nnunet",
    rank: "rank first second third --convention brats2020",
    report: "report predictions BraTS2021 --run run --output report.html",
    view: "view BraTS2021/BraTS2021_00006 --prediction out/BraTS2021_00006.nii.gz --output page.html",
    experiment: "experiment bank out --config sampling_quick --workers 2",
    experiment_advise: "experiment-advise bank advice --minutes 60    (or: brats-seg experiment advise ...)",
}
"""Each verb and its example; a verb imports its modules when it is called."""


class _Verbs(TyperGroup):
    """The verbs; `experiment advise` is a separate verb from `experiment BANK OUT`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The verb at the start of the arguments, and the other arguments."""
        if args[:2] == ["experiment", "advise"]:
            args = ["experiment-advise", *args[2:]]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="brats-seg",
    cls=_Verbs,
    help="Brain-tumor segmentation on multimodal MRI with class imbalance as its focus.",
    epilog="Start with: brats-seg demo    (synthetic scans, three minutes, offline)",
    no_args_is_help=True,
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
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    pass


for verb, example in VERBS.items():
    app.command(verb.__name__.strip("_").replace("_", "-"), epilog=f"Example: brats-seg {example}")(verb)
app.add_typer(study_app)
for command in (*app.registered_commands, *study_app.registered_commands):
    if command.callback is not None:  # the help is wrapped for the terminal, not at the line ends of the code
        command.help = " ".join((command.callback.__doc__ or "").split())


def main(argv: list[str] | None = None) -> None:
    """Run the command line; a known problem gives one line and an exit code (0 done, 1 input, 2 usage)."""
    try:
        app(args=argv)
    except (InputError, UsageError) as error:
        typer.echo(f"brats-seg: {error}", err=True)
        sys.exit(1 if isinstance(error, InputError) else 2)
    except OSError as error:  # a full disk, a folder without write permission, a deleted file
        where = f"{printable(str(error.filename))}: " if error.filename else ""
        why = "the disk is full" if is_disk_full(error) else error.strerror
        typer.echo(f"brats-seg: {where}{why}; correct this and give the same command again", err=True)
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        first = (str(error) or "out of memory").splitlines()[0]
        typer.echo(
            f"brats-seg: not enough memory: {first}; a smaller patch, batch or network needs less",
            err=True,
        )
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(STOPPED)
