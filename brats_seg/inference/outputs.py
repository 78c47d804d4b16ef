"""Files written with the label maps: predictions.csv, the ITK-SNAP label file, class probabilities."""

import csv
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from brats_seg.bank.normalize import NormalizedCase, uncrop
from brats_seg.core.errors import InputError
from brats_seg.core.files import lock, read_text, write_text
from brats_seg.core.shapes import TissueMap
from brats_seg.core.tables import csv_text
from brats_seg.inference.dense import Probabilities, brain_mask
from brats_seg.reporting.style import SCAN, TISSUE_COLORS
from brats_seg.scans.case import Case
from brats_seg.scans.geometry import Geometry
from brats_seg.scans.labels import CLASS_ORDER, SCHEMAS, LabelSchema, region_classes, regions_of
from brats_seg.scans.predictions import CLASSES, TABLE, read_rows
from brats_seg.scans.volume import read_header, write_volume

LABELS = "labels.txt"
COLORS = "labels.ctbl"
"""The same for 3D Slicer."""

_PATIENCE_S = 60.0
_SCHEMAS = "# label schemas: "


def add_row(out: Path, row: Mapping[str, str | float]) -> None:
    """Append a case's row to `OUT/predictions.csv`; if a case has several rows, the last one counts
    (`read_rows`).

    Several processes may append at the same time (parts of one job). The whole table is rewritten only if the
    row has other columns or a label schema that is not yet in `OUT/labels.txt`.

    Raises:
        InputError: another process has locked the table for a minute, or the file is not a table of
            predictions.
    """
    path = out / TABLE
    row = {
        name: " ".join(value.splitlines()) if isinstance(value, str) else value for name, value in row.items()
    }
    with _held(out):
        columns = _columns(path)
        if not set(row) <= set(columns) or str(row["schema"]) not in _told_schemas(out):
            _rebuild(out, [*read_rows(out), {name: str(value) for name, value in row.items()}])
            return
        with path.open("r+b") as file:
            file.seek(_whole_length(file))
            file.truncate()
            file.write(csv_text([row], columns).partition("\n")[2].encode())


def rebuild_table(out: Path) -> list[dict[str, str]]:
    """Rewrite `OUT/predictions.csv`, `OUT/labels.txt` and `OUT/labels.ctbl`: one row for each case, sorted,
    without cases whose label map was deleted.

    Returns:
        The rows; empty if there is no table (then no table is written).

    Raises:
        InputError: as `add_row`.
    """
    if not (out / TABLE).is_file():
        return []
    with _held(out):
        return _rebuild(out, read_rows(out))


def label_file(schemas: Iterable[LabelSchema]) -> str:
    """ITK-SNAP's label description of every value of the schemas.

    If a value means different tissues in different schemas, its name lists all of them, with the color of the
    first.
    """
    schemas = list(schemas)
    lines = [
        "# ITK-SNAP label description file",
        _SCHEMAS + ", ".join(schema.name for schema in schemas),
        "# columns: value, R, G, B, opacity, visible, mesh visible, name",
        _label_line(0, SCAN, shown=False, name="Clear Label"),
    ]
    for value, tissues in _meanings(schemas).items():
        lines.append(
            _label_line(
                value,
                TISSUE_COLORS[tissues[0]],
                shown=True,
                name=" / ".join(t.replace("_", " ") for t in tissues),
            )
        )
    return "\n".join(lines) + "\n"


def color_table(schemas: Iterable[LabelSchema]) -> str:
    """3D Slicer's color table of every value of the schemas; names and colors as in `label_file`."""
    lines = ["# Color table file, columns: value, name, R, G, B, opacity", "0 background 0 0 0 0"]
    for value, tissues in _meanings(schemas).items():
        red, green, blue = bytes.fromhex(TISSUE_COLORS[tissues[0]][1:])
        lines.append(f"{value} {'_or_'.join(tissues)} {red} {green} {blue} 255")
    return "\n".join(lines) + "\n"


def _meanings(schemas: Iterable[LabelSchema]) -> dict[int, list[str]]:
    """Value (except 0) -> the tissues that it means in the schemas."""
    meanings: dict[int, list[str]] = {}
    for schema in schemas:
        for value, tissue in schema.values.items():
            if value and tissue not in meanings.setdefault(value, []):
                meanings[value].append(tissue)
    return dict(sorted(meanings.items()))


def write_probabilities(
    path: Path, probabilities: Probabilities, normalized: NormalizedCase, *, classes: Sequence[str]
) -> None:
    """Write the class probabilities of a brain crop on the native grid, a volume for each class, and a text
    file with the names of the classes in the same folder.

    P(healthy) is 1 outside the brain and below 1 inside; calibration uses this to find the brain.
    """
    brain = brain_mask(normalized.image)
    stack = np.stack([uncrop(p, normalized) for p in probabilities * brain], axis=-1)
    below_1 = 1 - uncrop(brain.view(np.uint8), normalized) * np.finfo(np.float32).epsneg
    stack[..., 0] = np.minimum(1 - stack[..., 1:].sum(axis=-1), below_1)
    path.parent.mkdir(exist_ok=True)
    write_text(path.parent / CLASSES, "\n".join(classes) + "\n")
    write_volume(path, stack, normalized.geometry, dtype="float32")


def volumes_ml(tissue: TissueMap, geometry: Geometry, classes: Sequence[str]) -> dict[str, float]:
    """The volume of every region and of every class except healthy, whose volume depends on the frame. Voxels
    outside `tissue` are healthy.
    """
    voxel_ml = float(np.prod(geometry.spacing_mm)) / 1000
    counts = [np.count_nonzero(tissue == i) * voxel_ml for i in range(len(classes))]
    regions = {
        region: float(sum(counts[i] for i in region_classes(region, classes)))
        for region in regions_of(classes)
    }
    return regions | {name: float(counts[i]) for i, name in enumerate(classes) if i}


def label_dtype(case: Case) -> str:
    """The type of the case's own label, as released (2023 has float masks); uint8 without a label."""
    if case.label is None:
        return "uint8"
    try:
        dtype = read_header(case.label.path).dtype
    except InputError:
        return "uint8"
    return dtype if np.dtype(dtype).kind in "iuf" else "uint8"


def _label_line(value: int, color: str, *, shown: bool, name: str) -> str:
    red, green, blue = bytes.fromhex(color[1:])
    return (
        f"{value:5d} {red:5d} {green:4d} {blue:4d} {int(shown):8d} {int(shown):2d} {int(shown):2d}    "
        f'"{name}"'
    )


@contextmanager
def _held(out: Path) -> Iterator[None]:
    start = time.monotonic()
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(lock(out / f".{TABLE}.lock"))
                break
            except InputError:
                if time.monotonic() - start > _PATIENCE_S:
                    raise
                time.sleep(0.05)
        yield


def _columns(path: Path) -> list[str]:
    """The columns of the table, from its first line; empty without a table."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return next(csv.reader(file), [])


def _told_schemas(out: Path) -> list[str]:
    """Names of the schemas in `OUT/labels.txt`; empty if an older version wrote the file."""
    path = out / LABELS
    return [
        name
        for line in (read_text(path).splitlines() if path.is_file() else [])
        if line.startswith(_SCHEMAS)
        for name in line.removeprefix(_SCHEMAS).split(", ")
    ]


def _whole_length(file: BinaryIO) -> int:
    """Bytes of a table up to the end of its last complete line."""
    n = file.seek(0, os.SEEK_END)
    while n:
        first = max(0, n - 4096)
        file.seek(first)
        at = file.read(n - first).rfind(b"\n")
        if at >= 0:
            return first + at + 1
        n = first
    return 0


def _rebuild(out: Path, rows: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    newest = {row["case"]: row for row in rows if (out / row["file"]).is_file()}
    ordered = [newest[case] for case in sorted(newest)]
    seen = dict.fromkeys(key for row in ordered for key in row)
    first, tissues = ["case", "file", "schema", "seconds"], [f"{tissue}_ml" for tissue in CLASS_ORDER]
    others = [c for c in seen if c not in (*first, *tissues, "warnings")]
    columns = [*first, *others, *(c for c in tissues if c in seen), "warnings"]
    write_text(out / TABLE, csv_text(ordered, columns))
    schemas = [SCHEMAS[name] for name in sorted({row["schema"] for row in ordered})]
    write_text(out / LABELS, label_file(schemas))
    write_text(out / COLORS, color_table(schemas))
    return ordered
