"""The store of a grid: the rows of finished jobs, written to the disk at once, and the values that all jobs
share.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brats_seg.core.errors import InputError
from brats_seg.core.files import parse_json, read_json, shown, write_json

Row = dict[str, Any]
STORE = "grid.json"
"""The file in the folder of a store with the values that all its cells share."""


def read_rows(store: Path) -> list[Row]:
    """Rows of every finished cell of a store, in the order in which the cells ended. A line that is still
    being written is left out.
    """
    return [row for line in _lines(store / "rows.jsonl")[0] for row in line["rows"]]


def read_cells(store: Path) -> dict[str, list[Row]]:
    """Rows of every finished cell of a store and of its parts, by the digest of the cell."""
    lines = (line for one in stores(store) for line in _lines(one / "rows.jsonl")[0])
    return {line["digest"]: line["rows"] for line in lines}


def stores(store: Path) -> tuple[Path, ...]:
    """A store, and the parts of it that processes on other machines write."""
    return (store, *sorted(store.glob("part_*_of_*")))


def check_identity(store: Path, identity: Mapping[str, Any]) -> None:
    """Raise `InputError` if a folder, or a part of it, is a store of another study. A folder that is not a
    store yet is accepted.
    """
    wanted = json.loads(json.dumps(identity))
    for path in (one / STORE for one in stores(store)):
        stored = read_json(path) if path.exists() else wanted
        if stored == wanted:
            continue
        stored = stored if isinstance(stored, dict) else {}
        name = next((k for k in [*wanted, *stored] if wanted.get(k) != stored.get(k)), "identity")
        was, given = shown(stored.get(name)), shown(wanted.get(name))
        raise InputError(
            f"{path.parent}: a store of another study: its {name} is {was}, this one's {given}; choose a new "
            "folder"
        )


def claim(store: Path, identity: Mapping[str, Any]) -> None:
    """Write the identity of a new store, or compare it with the identity of an existing store."""
    path = store / STORE
    check_identity(store, identity)
    if not path.exists():
        if (store / "rows.jsonl").exists():
            raise InputError(
                f"{path}: is missing, but rows.jsonl exists in the same folder; choose a new folder"
            )
        write_json(path, json.loads(json.dumps(identity)))


class Rows:
    """The rows file: one line for each finished cell. A line is on the disk before the next cell starts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines, whole = _lines(path)
        if path.exists() and path.stat().st_size > whole:
            os.truncate(path, whole)  # the writer of the last line was killed
        self.by_digest: dict[str, list[Row]] = {line["digest"]: line["rows"] for line in lines}

    def append(self, *, key: str, digest: str, rows: list[Row]) -> None:
        """Add the rows of a cell. Raises `InputError` if the disk is full; the finished cells are kept."""
        line = json.dumps({"key": key, "digest": digest, "rows": rows}, allow_nan=False) + "\n"
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("ab", buffering=0) as file:
                if file.write(line.encode()) != len(line):  # JSON is ASCII: bytes are characters
                    raise OSError("the disk is full")
                os.fsync(file.fileno())
        except OSError as error:
            if self.path.exists():
                os.truncate(self.path, size)
            raise InputError(f"{self.path}: cannot be written: {error.strerror or error}; make room and "
                             "start again, "
                             f"the {len(self.by_digest)} finished cells are kept") from None  # fmt: skip
        self.by_digest[digest] = rows


def _lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The complete lines of a rows file, and their size in bytes."""
    if not path.exists():
        return [], 0
    text = path.read_bytes()
    whole = text.rfind(b"\n") + 1
    lines = []
    for number, line in enumerate(text[:whole].splitlines(), start=1):
        try:
            tree = parse_json(line)
            lines.append({name: tree[name] for name in ("digest", "rows")})
            is_sound = isinstance(tree["digest"], str) and isinstance(tree["rows"], list)
            if not (is_sound and all(isinstance(row, dict) and row for row in tree["rows"])):
                raise ValueError("rows")
        except (ValueError, TypeError, KeyError):
            raise InputError(
                f"{path}: line {number} is damaged; delete that line, and its cell is computed again"
            ) from None
    return lines, whole
