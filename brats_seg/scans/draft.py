"""The draft of a manifest: what the names of scan files suggest, for a person to complete."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from brats_seg.core.files import write_text
from brats_seg.core.tables import csv_text
from brats_seg.scans.case import MODALITIES, Case, modality_named
from brats_seg.scans.datasets import LABEL
from brats_seg.scans.releases import REFERENCES
from brats_seg.scans.volume import SUFFIXES

COLUMNS = ("case", "patient", *MODALITIES, LABEL, "schema")


def draft_manifest(
    path: Path, *, cases: Sequence[Case], strangers: Sequence[Path]
) -> tuple[list[dict[str, str]], list[Path]]:
    """Write a manifest CSV with a row for each case: cases that a layout knows, and cases that the names of
    other files suggest. Paths are relative to the folder of the CSV.

    Args:
        path: the CSV to write.
        cases: the known cases; a case whose volumes are channels of one file is left out.
        strangers: scan files that no layout claims.

    Returns:
        The rows, and the files that fit in no row.
    """
    rows = [_row_of(case, path) for case in cases if all(f.channel is None for f in case.modalities.values())]
    suggested, unplaced = _suggested(strangers, at=path)
    rows += suggested
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, csv_text(rows) if rows else ",".join(COLUMNS) + "\n")
    return rows, unplaced


def _row_of(case: Case, path: Path) -> dict[str, str]:
    files = {**case.modalities, **({LABEL: case.label} if case.label is not None else {})}
    told = {"case": case.id, "patient": case.patient, "schema": case.schema}
    return dict.fromkeys(COLUMNS, "") | told | {name: _near(file.path, path) for name, file in files.items()}


def _suggested(strangers: Sequence[Path], *, at: Path) -> tuple[list[dict[str, str]], list[Path]]:
    rows, unplaced = [], []
    for folder in dict.fromkeys(file.parent for file in strangers):
        told = [(file, *_told(file)) for file in strangers if file.parent == folder]
        unplaced += [file for file, role, _ in told if not role]
        named = [(file, role, rest) for file, role, rest in told if role]
        is_one = len({role for _, role, _ in named}) == len(named)
        cases: dict[str, dict[str, str]] = {}
        for file, role, rest in named:
            name = folder.name if is_one or not rest else rest
            case = re.sub(r"[^\w.+-]+", "_", name).strip("_.") or "case"
            row = cases.setdefault(case, dict.fromkeys(COLUMNS, "") | {"case": case, "patient": case})
            if row[role]:
                unplaced.append(file)
            else:
                row[role] = _near(file, at)
        rows += list(cases.values())
    return rows, unplaced


def _told(file: Path) -> tuple[str, str]:
    """The role in a name: modality or label, "" for neither; and the other words of the name."""
    suffix = next(s for s in SUFFIXES if file.name.lower().endswith(s))
    words = re.findall(r"[A-Za-z0-9]+", file.name[: len(file.name) - len(suffix)])
    runs = [(start, start + n) for n in (3, 2, 1) for start in reversed(range(len(words) - n + 1))]
    for start, end in runs:  # three words, then two, then one; from the end of the name
        together = "".join(words[start:end]).lower()
        role = LABEL if together in REFERENCES else modality_named(together)
        if role:
            return role, "_".join(words[:start] + words[end:])
    return "", "_".join(words)


def _near(file: Path, at: Path) -> str:
    return os.path.relpath(file, at.absolute().parent)
