"""The content of the JSON files of a bank, checked when it is read."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field

from brats_seg.core.errors import InputError
from brats_seg.core.files import parse_model, read_bytes
from brats_seg.core.settings import Ruled, Rules
from brats_seg.scans.case import MODALITIES, Problem
from brats_seg.scans.labels import CLASS_ORDER

SCHEMA_VERSION = 1
"""The version of the files of a bank; a bank of another version is refused."""
FILES = ("image.npy", "label.npy", "voxels.npy")
"""The files of a case, besides `case.json`."""
LISTED = (
    "id", "patient", "schema", "shape", "origin", "grid_shape", "spacing_mm", "counts", "offsets", "bytes",
    "sha256",
)  # fmt: skip
"""The fields of a case in `bank.json`; `case.json` has more."""
READERS_LOCK = ".readers.lock"
"""The lock file that all readers of a bank share; a build that changes a finished bank locks it exclusively.
"""


def is_bank(path: Path) -> bool:
    """Whether a folder is a finished or begun bank. A folder of scans may have a folder `cases` too."""
    return (
        (path / "bank.json").is_file()
        or any(path.glob(".part-*.lock"))
        or any(path.glob("cases/*/case.json"))
    )


MEND = "build the bank again"


def _same_version(version: Any) -> Any:
    if version != SCHEMA_VERSION:
        raise ValueError(f"schema version {version}; this program reads {SCHEMA_VERSION}")
    return version


Version = Annotated[int, BeforeValidator(_same_version)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Side = Annotated[int, Field(gt=0, lt=2**16)]
Millimeters = Annotated[float, Field(gt=0)]
Checksum = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Record(Ruled):
    """A part of a file, with strict types; fields that a later version may add are ignored."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False, populate_by_name=True)


class BankCase(Record):
    """One case of a bank.

    Attributes:
        id, patient, label_schema: as of the scan; `label_schema` is the label schema of its original values.
        shape, origin: (Z, Y, X) of the crop, and its first voxel in the grid that was cropped.
        grid_shape, spacing_mm: (Z, Y, X) of that grid.
        n_voxels: voxels of each tissue class of the built bank (grouping does not change this).
        offsets: index of the first position of each class, and the end of the last.
        n_bytes, checksums: size and SHA-256 of each of `FILES`.
        bank: folder of the bank; not stored in a file.
    """

    id: str
    patient: str
    label_schema: Annotated[str, Field(alias="schema")]
    shape: tuple[Side, Side, Side]
    origin: tuple[Count, Count, Count]
    grid_shape: tuple[Side, Side, Side]
    spacing_mm: tuple[Millimeters, Millimeters, Millimeters]
    n_voxels: Annotated[tuple[Count, ...], Field(alias="counts")]
    offsets: tuple[Count, ...]
    n_bytes: Annotated[tuple[Count, Count, Count], Field(alias="bytes")]
    checksums: Annotated[tuple[Checksum, Checksum, Checksum], Field(alias="sha256")]
    bank: Path = Path()

    @property
    def folder(self) -> Path:
        """The folder of its files."""
        return self.bank / "cases" / self.id

    def _rules(self) -> Rules:
        return (
            (
                not self.id or Path(self.id).name != self.id or not self.id.isprintable(),
                "the id is not the name of a folder",
            ),
            (
                any(
                    first + n > whole
                    for first, n, whole in zip(self.origin, self.shape, self.grid_shape, strict=True)
                ),
                "origin and shape extend beyond grid_shape",
            ),
            (
                self.offsets != (0, *accumulate(self.n_voxels)) or self.offsets[-1] > prod(self.shape),
                "counts, offsets and shape do not match",
            ),
        )


class NormalizationRecord(Record):
    """How the intensities were normalized: percentiles of the brain for clipping, and whether bias fields
    were corrected.
    """

    percentiles: tuple[float, float]
    n4: bool = False

    def _rules(self) -> Rules:
        return (
            (
                not 0 <= self.percentiles[0] < self.percentiles[1] <= 100,
                "percentiles must rise within 0 to 100",
            ),
        )


class Listing(Record):
    """`bank.json`: the content of a bank.

    Attributes:
        modalities, classes: names, in order.
        spacing_mm: (Z, Y, X).
        normalization: how the intensities were normalized.
        folds: SHA-256 of `folds.json`.
        cases: in the order of their numbers.
        digest: SHA-256 of the file, which contains the checksums of all others.
    """

    schema_version: Version
    modalities: Annotated[tuple[str, ...], Field(min_length=1)]
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    spacing_mm: tuple[Millimeters, Millimeters, Millimeters]
    normalization: NormalizationRecord
    folds: Checksum
    cases: Annotated[tuple[BankCase, ...], Field(min_length=1)]
    digest: str = ""

    def _rules(self) -> Rules:
        return (
            (
                len(set(self.modalities)) < len(self.modalities)
                or not set(self.modalities) <= set(MODALITIES),
                f"modalities are {', '.join(MODALITIES)}, each once",
            ),
            (
                len(set(self.classes)) < len(self.classes)
                or self.classes[0] != "healthy"
                or not set(self.classes) <= set(CLASS_ORDER),
                "classes are tissue classes, each once, healthy first",
            ),
            *(
                (
                    len(case.n_voxels) != len(self.classes),
                    f"case {case.id}: counts of {len(case.n_voxels)} classes; the bank has "
                    f"{len(self.classes)}",
                )
                for case in self.cases
            ),
            *(
                (n > 1, f"case {name} is listed twice")
                for name, n in Counter(case.id for case in self.cases).items()
            ),
        )


class FoldsRecord(Record):
    """`folds.json`."""

    schema_version: Version
    seed: int
    folds: Annotated[tuple[Annotated[tuple[str, ...], Field(min_length=1)], ...], Field(min_length=1)]


class SourceRecord(Record):
    """A scan that a case was prepared from."""

    name: str
    channel: int | None
    n_bytes: Annotated[int, Field(alias="bytes")]
    mtime_ns: int
    path: str
    sha256: Checksum


class EntryRecord(BankCase):
    """`case.json`; older versions have no checksum of the file itself."""

    settings: dict[str, Any]
    digests: dict[str, str]
    sources: dict[str, SourceRecord]
    checksum: Checksum | None = None


class RefusalRecord(Record):
    """Why a case was refused."""

    settings: dict[str, Any]
    sources: dict[str, dict[str, Any]]
    problems: tuple[Problem, ...]


def read_entry(path: Path) -> EntryRecord:
    """Read a `case.json`. Raises `InputError` if it is missing, damaged or changed since it was written."""
    raw = read_bytes(path)
    entry = parse_model(EntryRecord, raw, name=str(path), mend=MEND)
    if entry.checksum is not None and entry.checksum != entry_checksum(json.loads(raw)):
        raise InputError(f"{path}: has changed since it was written; {MEND}")
    return entry


def entry_checksum(entry: Mapping[str, Any]) -> str:
    """SHA-256 of the content of a `case.json`, without the checksum itself."""
    rest = {key: value for key, value in entry.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
