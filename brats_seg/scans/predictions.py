"""A folder of predictions: the names of its files, and in which label schema each label map was written."""

from functools import lru_cache
from pathlib import Path

from brats_seg.core.errors import InputError
from brats_seg.core.files import decode, parse_table, read_bytes, shown
from brats_seg.scans.case import Case
from brats_seg.scans.labels import SCHEMAS
from brats_seg.scans.volume import SUFFIXES

TABLE = "predictions.csv"
PROBABILITIES = "probabilities"
"""The folder of class probabilities inside a folder of label maps: `<case>.nii.gz`, a volume for each class,
and `CLASSES`.
"""
CLASSES = "classes.txt"
"""File with the names of the volumes, one name per line, healthy first."""
KEYS = ("case", "file", "schema")
"""Columns of every table."""


def label_map_of(folder: Path, case_id: str) -> Path | None:
    """The label map of a case in a folder of predictions, of any file type; None if it does not exist."""
    paths = (folder / f"{case_id}{suffix}" for suffix in SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def read_rows(out: Path) -> list[dict[str, str]]:
    """The rows of `OUT/predictions.csv`, the last one of each case; empty if the table does not exist.

    The last line is ignored if it has no line end: a process was killed while writing it.

    Raises:
        InputError: the file is not a table of predictions.
    """
    path = out / TABLE
    if not path.is_file():
        return []
    whole, newline, _ = read_bytes(path).rpartition(b"\n")
    columns, rows = parse_table(decode(whole + newline, name=str(path)), name=str(path))
    if newline and not set(KEYS) <= set(columns):
        raise InputError(f"{path}: is not a table that `brats-seg predict` wrote; give another output folder")
    unknown = next((row["schema"] for row in rows if row["schema"] not in SCHEMAS), None)
    if unknown is not None:
        raise InputError(
            f"{path}: has the label schema {shown(unknown)}; the schemas are {', '.join(SCHEMAS)}; give "
            "another folder of predictions"
        )
    return list({row["case"]: row for row in rows}.values())


def written_schema(case: Case, prediction: Path, *, untold: str | None = None) -> str:
    """The label schema of a prediction: from `predictions.csv` in its folder; else `untold`, else that of the
    case.

    Raises:
        InputError: a damaged `predictions.csv`, or one with an unknown schema. The table of another program
            is ignored.
    """
    table = prediction.parent / TABLE
    if not table.is_file():
        return untold or case.schema
    status = table.stat()
    schemas = _schemas(prediction.parent, status.st_mtime_ns, status.st_size)
    return schemas.get((case.id, prediction.name)) or untold or case.schema


@lru_cache(maxsize=4)
def _schemas(out: Path, modified_ns: int, size: int) -> dict[tuple[str, str], str]:
    """By case and file; read once for all cases of a folder, and again if the table has changed."""
    try:
        return {(row["case"], row["file"]): row["schema"] for row in read_rows(out)}
    except InputError:
        header = read_bytes(out / TABLE).partition(b"\n")[0].decode(errors="replace").strip()
        if set(KEYS) <= set(header.split(",")):
            raise
        return {}  # the table of another program
