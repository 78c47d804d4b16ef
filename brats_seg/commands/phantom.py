"""The verb `phantom`."""

from pathlib import Path
from typing import Annotated

import typer

from brats_seg.commands.console import loading
from brats_seg.core.errors import UsageError


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
    """Write a synthetic cohort that resembles BraTS, with the same difficulties."""

    with loading("SciPy and pandas"):
        from brats_seg.phantoms.cohort import make_traits, write_cohort

    traits = make_traits(_parse_traits(trait or []))
    write_cohort(out, n_cases=cases, layout=layout, size=size, seed=seed, traits=traits)
    typer.echo(f"{cases} phantom cases in {out}")


def _parse_traits(texts: list[str]) -> dict[str, float]:
    traits: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            traits[name] = float(value)
        except ValueError:
            raise UsageError(f"--trait {text}: write NAME=VALUE, such as contrast=0.5") from None
    return traits
