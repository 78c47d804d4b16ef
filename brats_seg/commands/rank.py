"""The verb `rank`."""

from pathlib import Path
from typing import Annotated

import typer

from brats_seg.commands.console import loading, make_console, make_table, show_first_that_fits
from brats_seg.core.errors import UsageError, count_words


def rank(
    table: Annotated[
        list[Path],
        typer.Argument(help="Two or more scores.csv of `brats-seg evaluate`, or their folders.", exists=True),
    ],
    convention: Annotated[
        str | None, typer.Option(metavar="NAME", help="The scoring rules whose metrics are ranked.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the ranking as CSV.")
    ] = None,
) -> None:
    """Rank several sets of predictions as the BraTS challenge does."""

    with loading("SciPy and pandas"):
        from dataclasses import asdict

        from brats_seg.core.files import write_text
        from brats_seg.core.tables import csv_text
        from brats_seg.evaluation.ranking import rank_tables

    files = [path / "scores.csv" if path.is_dir() else path for path in table]
    names = [str(path) for path in table]
    if len(set(names)) < len(names):
        raise UsageError("rank: the same table is given twice")
    ranking = rank_tables(dict(zip(names, files, strict=True)), convention=convention)
    shown = make_table("predictions", "place", "mean rank", "95 % of places", "p to next")
    for place in ranking.places:
        p = "" if place.p_to_next is None else f"{place.p_to_next:.4f}"
        between = f"{place.place_low} to {place.place_high}"
        shown.add_row(place.name, str(place.place), f"{place.mean_rank:.3f}", between, p)
    console = make_console()
    show_first_that_fits(shown, console=console)
    n, n_patients = ranking.n_cases, ranking.n_patients
    console.print(
        f"{count_words(n, 'case')} of {count_words(n_patients, 'patient')}, {ranking.convention}: "
        f"{', '.join(ranking.metrics)}; {ranking.n_incomplete} cases are not in all tables: "
        "a table without a case ranks last for this case",
        soft_wrap=True,
    )
    if output is not None:
        write_text(output, csv_text([asdict(place) for place in ranking.places]))
