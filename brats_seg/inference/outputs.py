"""What lies beside the label maps: predictions.csv and the ITK-SNAP label file."""

import csv
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from brats_seg.core.files import atomic, lock, write_text
from brats_seg.errors import InputError
from brats_seg.scans.labels import MERGED, SCHEMAS, TISSUE_COLORS, TISSUES, LabelSchema

TABLE = "predictions.csv"
LABELS = "labels.txt"

_PATIENCE_S = 60.0


def add_row(out: Path, row: Mapping[str, str | float]) -> None:
    """Add a case's row to `OUT/predictions.csv`, in place of an older one, and bring `OUT/labels.txt` up to date.

    Several processes may do so at once (parts of one job). Rows of cases whose label map is gone are dropped.

    Raises:
        InputError: another process has held the table for a minute.
    """
    start = time.monotonic()
    while True:
        try:
            with lock(out / f".{TABLE}.lock"):
                rows = {str(r["case"]): r for r in read_rows(out) if (out / str(r["file"])).is_file()} | {str(row["case"]): row}
                ordered = [rows[case] for case in sorted(rows)]
                _write_rows(out / TABLE, ordered)
                write_text(out / LABELS, label_file(SCHEMAS[name] for name in sorted({str(r["schema"]) for r in ordered})))
            return
        except InputError:
            if time.monotonic() - start > _PATIENCE_S:
                raise
            time.sleep(0.05)


def read_rows(out: Path) -> list[dict[str, str]]:
    """The rows of `OUT/predictions.csv`; none where it is not there. Raises `InputError` where it is a table of something else."""
    path = out / TABLE
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if any(row.get(name) is None for row in rows for name in ("case", "file", "schema")):
        raise InputError(f"{path}: not a table that `brats-seg predict` wrote; give another output folder")
    return rows


def label_file(schemas: Iterable[LabelSchema]) -> str:
    """ITK-SNAP's label description of every value of the schemas.

    Where a value means different tissues in different schemas, its name lists them, and the color is that of the first.
    """
    lines = [
        "# ITK-SNAP label description file",
        "# columns: value, R, G, B, opacity, visible, mesh visible, name",
        _label_line(0, "#000000", shown=False, name="Clear Label"),
    ]
    meanings: dict[int, list[str]] = {}
    for schema in schemas:
        for value, tissue in schema.values.items():
            if value and tissue not in meanings.setdefault(value, []):
                meanings[value].append(tissue)
    for value, tissues in sorted(meanings.items()):
        lines.append(_label_line(value, TISSUE_COLORS[tissues[0]], shown=True, name=" / ".join(t.replace("_", " ") for t in tissues)))
    return "\n".join(lines) + "\n"


def _label_line(value: int, color: str, *, shown: bool, name: str) -> str:
    red, green, blue = bytes.fromhex(color[1:])
    return f'{value:5d} {red:5d} {green:4d} {blue:4d} {int(shown):8d} {int(shown):2d} {int(shown):2d}    "{name}"'


def _write_rows(path: Path, rows: Sequence[Mapping[str, str | float]]) -> None:
    seen = dict.fromkeys(key for row in rows for key in row)
    tissues = [f"{tissue}_ml" for tissue in (*TISSUES, MERGED)]
    first = ["case", "file", "schema", "seconds"]
    columns = [*first, *(c for c in seen if c not in first and c not in tissues and c != "warnings"), *(c for c in tissues if c in seen)]
    with atomic(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*columns, "warnings"], restval="")
        writer.writeheader()
        writer.writerows(rows)
