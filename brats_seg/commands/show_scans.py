"""Terminal output about checked scans and built banks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from brats_seg.commands.console import (
    make_table,
    show_first_that_fits,
    show_place,
    show_problems,
    tissue_head,
)
from brats_seg.core.errors import count_words
from brats_seg.scans.case import Problem

if TYPE_CHECKING:  # building a bank imports numba
    from brats_seg.bank.build import BuildReport

Row = Mapping[str, Any]


def show_verification(rows: Sequence[Row], problems: Sequence[Problem], *, console: Console) -> None:
    """A row for each case of `Report.rows`, then the problems, then the count of good cases.

    A value that is the same for all cases is printed in one line below the table, not in a column.
    """
    columns: dict[str, list[str]] = {"case": [row["case"] for row in rows]}
    shared = []
    patients = [row["patient"] for row in rows]
    if len(set(patients)) < len(patients):
        columns["patient"] = patients
    for name, texts in (
        ("layout", [row["layout"] for row in rows]),
        ("shape", ["x".join(map(str, row["shape"])) if row["shape"] else "?" for row in rows]),
    ):
        if len(set(texts)) == 1:
            shared.append(f"{name} {texts[0]}")
        else:
            columns[name] = texts
    n_text = len(columns)
    tissues = list(dict.fromkeys(name for row in rows for name in row["class_counts"]))
    for name in tissues:
        columns[tissue_head(name)] = [_count(row, name) for row in rows]
    for name in ("errors", "warnings"):
        if any(row[f"n_{name}"] for row in rows):
            columns[name] = [str(row[f"n_{name}"] or "") for row in rows]
    narrow = {head: texts for head, texts in columns.items() if head not in ("healthy", "layout")}
    tables = []
    for chosen in (columns, narrow):
        table = make_table(*chosen, n_text=len([head for head in chosen if head in list(columns)[:n_text]]))
        for cells in zip(*chosen.values(), strict=True):
            table.add_row(*cells)
        tables.append(table)
    show_first_that_fits(*tables, console=console)
    show_problems(problems, console=console)
    n_bad = len({p.case or p.file for p in problems if p.severity == "error"})
    n_good = sum(not row["n_errors"] for row in rows)
    n_unlabeled = sum(not row["has_label"] for row in rows)
    said = [f"{count_words(n_good, 'good case')}"]
    said += [f"{n_bad} refused"] if n_bad else []
    said += [f"{n_unlabeled} without a label"] if n_unlabeled else []
    said += ["tissue counted in voxels"] if tissues else []
    console.print(", ".join([*said, *shared]), soft_wrap=True)


def _count(row: Row, tissue: str) -> str:
    if not row["class_counts"]:
        return "?" if row["has_label"] else ""
    n = row["class_counts"].get(tissue)
    return "" if n is None else f"{n:,}"


def show_draft(
    path: Path, rows: Sequence[Mapping[str, str]], unplaced: Sequence[Path], *, console: Console
) -> None:
    """The number of empty cells of a drafted manifest, and the next step."""
    for file in unplaced:
        console.print(f"no place in the draft for {file}", soft_wrap=True, markup=False)
    n_empty = sum(not text for row in rows for text in row.values())
    console.print(
        f"draft of {count_words(len(rows), 'case')}, {n_empty} empty cells: {path}",
        soft_wrap=True,
        markup=False,
    )
    console.print(
        f"fill in what is known (label and schema may stay empty), then: brats-seg verify {path}",
        soft_wrap=True,
        markup=False,
    )


def show_build(built: "BuildReport", bank: Path, *, console: Console) -> None:
    """The prepared and the refused cases of a build."""
    show_problems(built.problems, console=console)
    n_refused = len({problem.case for problem in built.refused})
    n = len(built.done)
    console.print(
        f"{count_words(n, 'case')} prepared, {len(built.skipped)} finished before, {n_refused} refused"
    )
    if built.complete:
        show_place("bank:", bank, console=console)
    else:
        n = len(built.missing)
        console.print(
            f"{count_words(n, 'case')} of other parts are not finished; the last part to end writes the bank"
        )
