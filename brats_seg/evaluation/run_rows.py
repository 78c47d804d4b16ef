"""Rows of an experiment and their file, runs.csv."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from brats_seg.core.errors import InputError, refuse
from brats_seg.core.files import read_table, write_text
from brats_seg.core.tables import csv_text

Row = dict[str, Any]

COLUMNS: dict[str, type] = {
    "data": str,
    "strategy": str,
    "correct_priors": str,
    "fold": int,
    "seed": int,
    "cases": str,
    "case": str,
    "patient": str,
    "region": str,
    "n_reference_vox": int,
    "n_prediction_vox": int,
    "dice": float,
    "sensitivity": float,
    "precision": float,
    "volume_ratio": float,
    "hd95_mm": float,
    "requested_share": float,
    "center_share": float,
    "voxel_share": float,
    "hard_share": float,
    "distinct_share": float,
    "patches": int,
    "seconds": float,
    "config": str,
    "bank": str,
    "versions": str,
    "cell": str,
}
"""Columns of runs.csv. A row is a region or tissue class of a case, segmented by one run; shares are in the
rows of tissue classes.
"""
LOOK_COLUMNS: dict[str, type] = {
    **{name: kind for name, kind in COLUMNS.items() if name != "seconds" and not name.endswith("_share")},
    "epoch": int,
    "training_s": float,
}
"""Columns of looks.csv: scores of the weights after an epoch of a run. `patches` were trained on until then,
in `training_s` seconds of training and mining (without validation and checkpoints).
"""
SHARES = ("requested_share", "center_share", "voxel_share", "hard_share", "distinct_share")
"""The shares of a class: requested, among the draws, among the patch voxels. Then, among its draws in an
epoch, the shares of hard draws and of different voxels.
"""
_SHARES = ("dice", "sensitivity", "precision", *SHARES)
_ANY_SIGN = ("fold", "seed")
DIGEST = 16
"""Number of characters of a digest in a row."""


@dataclass(frozen=True)
class Variant:
    """A strategy as it is compared: how it was trained, on what, and how strongly priors were corrected
    afterwards.
    """

    data: str
    strategy: str
    correct_priors: str

    @property
    def label(self) -> str:
        """The name in a table."""
        return (
            self.strategy if self.correct_priors == "0" else f"{self.strategy} + priors {self.correct_priors}"
        )


def variant_of(row: Mapping[str, Any]) -> Variant:
    """Which variant a row belongs to."""
    return Variant(row["data"], row["strategy"], row["correct_priors"])


def write_rows(path: Path, rows: Sequence[Row], *, columns: Mapping[str, type] = COLUMNS) -> None:
    """Write runs.csv, or looks.csv with its columns; None becomes an empty cell."""
    write_text(path, csv_text(rows, list(columns)))


def read_finished(path: Path, *, columns: Mapping[str, type] = COLUMNS) -> dict[str, list[Row]]:
    """Rows of a runs.csv, or of a looks.csv with its columns, by the digest of their cell. Raises
    `InputError` if the file is not such a table.
    """
    name = "looks.csv" if columns is LOOK_COLUMNS else "runs.csv"
    time = "training_s" if columns is LOOK_COLUMNS else "seconds"
    finished: dict[str, list[Row]] = defaultdict(list)
    head, rows = read_table(path)
    if head != tuple(columns):
        raise InputError(f"{path}: has other columns than a {name} of this version: {', '.join(columns)}")
    try:
        for number, row in enumerate(rows, start=2):
            finished[row["cell"]].append(
                {column: _read(column, row[column], kind) for column, kind in columns.items()}
            )
            if not row[time]:
                raise ValueError(f"line {number} lacks {time}")
    except (ValueError, OverflowError) as error:
        raise InputError(f"{path}: not a {name}: {error}") from None
    return finished


def _read(name: str, text: str, kind: type) -> Any:
    if text == "" and kind is float:
        return None
    value = kind(text)
    refuse(
        (kind is float and not isfinite(value), f"{text} is not a score"),
        (kind is not str and name not in _ANY_SIGN and value < 0, f"{name} is {text}; it is 0 or more"),
        (name in _SHARES and value > 1, f"{name} is {text}; it is 1 or less"),
        error=ValueError,
    )
    return value
