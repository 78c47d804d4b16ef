"""Arguments and options that several verbs take."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from inspect import Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from brats_seg.core.dask_engine import Cluster, open_cluster
from brats_seg.core.errors import UsageError

if TYPE_CHECKING:
    from brats_seg.evaluation.folders import ScoreOptions

STOPPED = 130
"""Exit code after Ctrl-C or SIGTERM, as in shells."""

Data = Annotated[
    Path,
    typer.Argument(
        help="Folder of scans (any BraTS release, MSD, nnU-Net raw, BIDS, plain names such as "
        "case/t1.nii.gz) or a manifest CSV.",
        exists=True,
    ),
]
Bank = Annotated[Path, typer.Argument(help="Patch bank folder.", exists=True, file_okay=False)]
Run = Annotated[Path, typer.Argument(help="Run folder of a training.", exists=True, file_okay=False)]
RunOrName = Annotated[
    str,
    typer.Argument(
        help="Run folder of a training, or the name of a network of the package (`brats-seg models`)."
    ),
]
Tuned = Annotated[
    bool | None,
    typer.Option(
        "--tuned/--untuned",
        help="Prior correction, thresholds and clean-up found by `brats-seg tune`; by default only for "
        "packaged networks.",
        show_default=False,
    ),
]
Scans = Annotated[
    Path, typer.Argument(help="Folder of scans, with or without labels, or a manifest CSV.", exists=True)
]
Predictions = Annotated[Path, typer.Argument(help="Folder of predictions.", exists=True, file_okay=False)]
Reference = Annotated[
    Path, typer.Argument(help="Folder of scans with expert labels, or a manifest CSV.", exists=True)
]
Modalities = Annotated[
    list[str] | None,
    typer.Option(
        "--modality",
        help="t1n, t1c, t2w or t2f; repeat for several. A case must have these, and a network uses these; by "
        "default the modalities that the layout of every case has.",
        show_default=False,
    ),
]
Workers = Annotated[int, typer.Option(min=0, help="Processes; 0 for one per core.")]
ClusterAddress = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="ADDRESS",
        envvar="BRATS_SEG_CLUSTER",
        help="Share the work among the workers of a Dask cluster: tcp://HOST:PORT, a scheduler file, or "
        "local for a test.",
        show_default=False,
    ),
]
Part = Annotated[str | None, typer.Option(metavar="I/N", help="Do the I-th of N parts only (job arrays).")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
PrecisionName = Annotated[
    Literal["auto", "float32", "bf16"],
    typer.Option(
        metavar="KIND", help="Arithmetic of the network: float32, bf16, or auto (what suits the device)."
    ),
]
InferenceName = Annotated[
    Literal["auto", "whole", "windowed"],
    typer.Option(
        metavar="MODE",
        help="whole (slices), windowed (overlapping windows of the patch size), or auto (what suits the "
        "network).",
    ),
]
Resample = Annotated[
    bool,
    typer.Option(
        "--resample", help="Resample cases whose spacing is over 5 % off, instead of refusing them."
    ),
]
Synthetic = Annotated[
    bool, typer.Option("--synthetic", help="Include the synthetic (SimBRATS) cases of 2013.")
]
Conventions = Annotated[
    list[str] | None,
    typer.Option(
        "--convention",
        help="Scoring rules, such as brats2020 (the default), brats2023, brats2024_gli, brats2026_met or "
        "nnunet; docs/data-formats.md lists all. Repeat for several.",
    ),
]
CavityIn = Annotated[
    list[str] | None,
    typer.Option(
        "--cavity-in",
        metavar="REGION",
        help="Count the resection cavity in whole, core or active. Repeat for several.",
    ),
]
PredictionSchema = Annotated[
    str | None,
    typer.Option(
        "--prediction-schema",
        metavar="NAME",
        help="Label schema of predictions of other programs, such as msd; by default the schema of the case.",
    ),
]
Schema = Annotated[
    str | None,
    typer.Option(
        "--schema",
        metavar="NAME",
        help="Label schema of the cases whose layout does not determine it, such as brats2017.",
    ),
]
AllowSkull = Annotated[
    bool, typer.Option("--allow-skull", help="Accept scans that seem to contain the skull.")
]
AllowSameScan = Annotated[
    bool, typer.Option("--allow-same-scan", help="Accept cases with the same scan in two modalities.")
]
HeldOut = Annotated[
    Path | None,
    typer.Option(
        metavar="RUN", help="Score only the cases that this run held out.", exists=True, file_okay=False
    ),
]


@dataclass(frozen=True)
class LabelOptions:
    """The label options of verbs that score label maps."""

    cavity_in: CavityIn = None
    schema: Schema = None
    prediction_schema: PredictionSchema = None


@dataclass(frozen=True)
class Machines:
    """Where a grid of trainings runs."""

    device: Device = "auto"
    cluster: ClusterAddress = None


def spread(verb: Callable[..., None]) -> Callable[..., None]:
    """Replace each dataclass argument of a verb by an option for each of its fields."""
    own = signature(verb).parameters
    nouns: dict[str, Any] = {
        name: one.annotation for name, one in own.items() if is_dataclass(one.annotation)
    }

    @wraps(verb)
    def call(**given: Any) -> None:
        made = {
            name: noun(**{one.name: given.pop(one.name) for one in fields(noun)})
            for name, noun in nouns.items()
        }
        verb(**given, **made)

    vars(call)["__signature__"] = Signature(
        [
            option
            for name, one in own.items()
            for option in (signature(nouns[name]).parameters.values() if name in nouns else [one])
        ]
    )
    return call


def allowed_flaws(*, skull: bool, same_scan: bool) -> frozenset[Literal["skull", "same_scan"]]:
    """The flaws that are accepted."""
    flaws: dict[Literal["skull", "same_scan"], bool] = {"skull": skull, "same_scan": same_scan}
    return frozenset(name for name, is_allowed in flaws.items() if is_allowed)


def score_options(
    conventions: list[str] | None, held_out: Path | None, labels: LabelOptions
) -> "ScoreOptions":
    """The options that `evaluate` and `report` share."""
    from brats_seg.commands.held_out import held_out_cases
    from brats_seg.evaluation.folders import ScoreOptions

    return ScoreOptions(
        conventions=tuple(conventions or ScoreOptions.conventions),
        cavity_in=tuple(labels.cavity_in or ()),
        only=held_out_cases(held_out),
        schema=labels.schema,
        prediction_schema=labels.prediction_schema,
    )


def joined_cluster(
    address: str | None,
    *,
    needs: Sequence[Path] = (),
    shared: Path | None = None,
    workers: int = 0,
    part: str | None = None,
) -> AbstractContextManager[Cluster | None]:
    """The cluster of a verb, as `core.dask_engine.open_cluster`. Raises `UsageError` with `--part`."""
    if address and part:
        raise UsageError(
            "--part with --cluster: the cluster already divides the cases; leave out one of the two"
        )
    return open_cluster(
        address, needs=needs, shared=shared, workers=workers, say=lambda line: typer.echo(line, err=True)
    )


def parse_part(text: str | None) -> tuple[int, int] | None:
    """`I/N` as two numbers."""
    if text is None:
        return None
    first, slash, n = text.partition("/")
    if not (slash and first.isdecimal() and n.isdecimal() and 1 <= int(first) <= int(n)):
        raise UsageError(f"--part {text}: write I/N with I in 1..N, such as 1/4")
    return int(first), int(n)
