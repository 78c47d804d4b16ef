"""The names and the version of a bank's files."""

from pathlib import Path

SCHEMA_VERSION = 1
"""Of the files of a bank; another one is refused."""
FILES = ("image.npy", "label.npy", "voxels.npy")
"""What a case is stored as, beside `case.json`."""
LISTED = (
    "id", "patient", "schema", "shape", "origin", "grid_shape", "spacing_mm", "counts", "offsets", "bytes",
    "sha256",
)  # fmt: skip
"""What `bank.json` says of a case; `case.json` has more."""
READERS_LOCK = ".readers.lock"
"""Shared by all that read a bank; a build that changes a finished bank takes it alone."""


def is_bank(path: Path) -> bool:
    """Whether a folder is a bank, finished or begun; a folder of scans may have a folder `cases` too."""
    return (
        (path / "bank.json").is_file()
        or any(path.glob(".part-*.lock"))
        or any(path.glob("cases/*/case.json"))
    )
