"""predictions.csv: which label maps were written, and in which label schema each was."""

from pathlib import Path

from brats_seg.core.files import decode, parse_table, read_bytes, shown
from brats_seg.errors import InputError
from brats_seg.scans.case import Case
from brats_seg.scans.labels import SCHEMAS

TABLE = "predictions.csv"
KEYS = ("case", "file", "schema")
"""Columns that each table has."""


def read_rows(out: Path) -> list[dict[str, str]]:
    """The rows of `OUT/predictions.csv`, the last one of each case; none where the table is not there.

    The last line does not count where it lacks its end: a process was killed while it wrote the line.

    Raises:
        InputError: it is a table of something else.
    """
    path = out / TABLE
    if not path.is_file():
        return []
    whole, newline, _ = read_bytes(path).rpartition(b"\n")
    columns, rows = parse_table(decode(whole + newline, name=str(path)), name=str(path))
    if newline and not set(KEYS) <= set(columns):
        raise InputError(f"{path}: not a table that `brats-seg predict` wrote; give another output folder")
    unknown = next((row["schema"] for row in rows if row["schema"] not in SCHEMAS), None)
    if unknown is not None:
        raise InputError(f"{path}: has the label schema {shown(unknown)}; the schemas are {', '.join(SCHEMAS)}; give another output folder")
    return list({row["case"]: row for row in rows}.values())


def written_schema(case: Case, prediction: Path) -> str:
    """The label schema of a prediction: the one that `predictions.csv` beside it names for this file, else the case's own."""
    try:
        rows = read_rows(prediction.parent)
    except InputError:  # the table of another program
        return case.schema
    return next((row["schema"] for row in rows if (row["case"], row["file"]) == (case.id, prediction.name)), case.schema)
