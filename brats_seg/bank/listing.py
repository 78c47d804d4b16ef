"""bank.json: what a bank holds and the checksums of its files."""

import hashlib
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brats_seg.bank.format import FILES, HEAD, LISTED, READERS_LOCK, SCHEMA_VERSION
from brats_seg.core.bus_error import say_bus_error
from brats_seg.core.files import lock, sha256
from brats_seg.errors import InputError
from brats_seg.scans.problem import Problem

_LISTED = frozenset(LISTED)


@dataclass(frozen=True)
class BankCase:
    """One case of a bank.

    Attributes:
        id, patient, schema: as of the scan; `schema` is the label schema its values came from.
        bank: folder of the bank.
        shape, origin: (Z, Y, X) of the crop, and its first voxel in the grid that was cropped.
        grid_shape, spacing_mm: (Z, Y, X) of that grid.
        n_voxels: voxels of each tissue class, as the bank was built with them (however it is grouped).
        n_bytes, checksums: size and SHA-256 of each of `FILES`.
    """

    id: str
    patient: str
    schema: str
    bank: Path
    shape: tuple[int, int, int]
    origin: tuple[int, int, int]
    grid_shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    n_voxels: tuple[int, ...]
    n_bytes: tuple[int, ...]
    checksums: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return self.bank / "cases" / self.id


@dataclass(frozen=True)
class Listing:
    """What `bank.json` says.

    Attributes:
        digest: SHA-256 of the file, which holds the checksums of all others.
        classes, modalities: names, in order.
        spacing_mm: (Z, Y, X).
        normalization: how the intensities were made, plain types.
        folds_checksum: SHA-256 of `folds.json`.
        cases: in the order that numbers them.
    """

    digest: str
    classes: tuple[str, ...]
    modalities: tuple[str, ...]
    spacing_mm: tuple[float, float, float]
    normalization: dict[str, Any]
    folds_checksum: str
    cases: tuple[BankCase, ...]


def read_listing(root: Path) -> Listing:
    """Read `bank.json` of a bank.

    Raises:
        InputError: no bank, one of another schema version, or a list that is damaged.
    """
    raw = _read_bytes(root / "bank.json")
    tree = _parse(raw, root / "bank.json")
    return Listing(
        digest=hashlib.sha256(raw).hexdigest(),
        classes=tuple(tree["classes"]),
        modalities=tuple(tree["modalities"]),
        spacing_mm=tuple(tree["spacing_mm"]),
        normalization=tree["normalization"],
        folds_checksum=tree["folds"],
        cases=tuple(_bank_case(root, case, n_classes=len(tree["classes"])) for case in tree["cases"]),
    )


@contextmanager
def hold_bank(root: Path) -> Iterator[None]:
    """Keep a bank as it is for the time of a block: `preprocess` refuses to change the bank while anybody holds it.

    Any number of processes may hold a bank. A bank in a folder that cannot be written to, or on a file system without
    locks, is used without a lock. A file of the bank that is cut short in the block ends the process with one line, not
    with a bus error.

    Raises:
        InputError: no such folder, or `preprocess` is about to change the bank.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; a bank is made by `brats-seg preprocess DATA BANK`")
    busy = "`brats-seg preprocess` is changing this bank; wait for it to end"
    cut_short = (
        f"brats-seg: {root}: a file was cut short while it was read, or its disk failed; `brats-seg verify {root}` names the file, "
        f"`brats-seg preprocess DATA {root}` makes its case again; then give the same command again"
    )
    with lock(root / READERS_LOCK, holders="shared", without="go_on", busy=busy), say_bus_error(cut_short):
        yield


def verify_bank(path: Path | str, *, cases: Collection[str] | None = None) -> tuple[Problem, ...]:
    """Read every file of a bank and compare its checksum; nothing is found where all is right.

    Args:
        path: of the bank.
        cases: ids of those to read; None for all.

    Raises:
        InputError: no bank, or one of another schema version.
    """
    root = Path(path)
    listing = read_listing(root)
    files = [("", root / "folds.json", listing.folds_checksum)]
    for case in listing.cases:
        if cases is not None and case.id not in cases:
            continue
        files += [(case.id, case.folder / name, checksum) for name, checksum in zip(FILES, case.checksums, strict=True)]
    problems = []
    for case_id, file, checksum in files:
        if not file.is_file():
            problems.append(Problem("error", case_id, str(file), "is missing", "the file that was built; build the bank again"))
        elif (found := sha256(file)) != checksum:
            what = f"has changed: SHA-256 {found[:12]}"
            problems.append(Problem("error", case_id, str(file), what, f"{checksum[:12]}; build the bank again"))
    return tuple(problems)


def _lists_of_a_case(n_classes: int) -> list[tuple[str, int, tuple[type, ...], str]]:
    """Name, length and kind of each list of a case."""
    lengths = {"shape": 3, "origin": 3, "grid_shape": 3, "counts": n_classes, "bytes": len(FILES)}
    return [
        *((key, n, (int,), "whole numbers") for key, n in lengths.items()),
        ("spacing_mm", 3, (int, float), "numbers"),
        ("sha256", len(FILES), (str,), "checksums"),
    ]


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        raise InputError(f"{path}: not there; a bank is made by `brats-seg preprocess DATA BANK`, which ends by writing it") from None


def _parse(raw: bytes, path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(raw)
        version = tree["schema_version"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: not the list of a bank; build the bank again") from None
    if version != SCHEMA_VERSION:
        raise InputError(f"{path}: schema version {version}; this program reads {SCHEMA_VERSION}; build the bank again")
    absent = [key for key in HEAD if key not in tree]
    if absent:
        raise InputError(f"{path}: lacks {', '.join(absent)}; build the bank again")
    for key, kind in (("classes", str), ("modalities", str), ("cases", dict)):
        if not (isinstance(tree[key], list) and all(isinstance(part, kind) for part in tree[key])):
            raise InputError(f"{path}: {key} is not a list of {kind.__name__}; build the bank again")
    return tree


def _bank_case(root: Path, entry: dict[str, Any], *, n_classes: int) -> BankCase:
    if not entry.keys() >= _LISTED:
        absent = ", ".join(sorted(_LISTED - entry.keys()))
        raise InputError(f"{root / 'bank.json'}: case {entry.get('id', '?')} lacks {absent}; build the bank again")
    if not isinstance(entry["id"], str) or Path(entry["id"]).name != entry["id"]:
        raise InputError(f"{root / 'bank.json'}: case {entry['id']}: id is not the name of a folder; build the bank again")
    for key, n, kinds, words in _lists_of_a_case(n_classes):
        if not (isinstance(entry[key], list) and len(entry[key]) == n and all(type(part) in kinds for part in entry[key])):
            raise InputError(f"{root / 'bank.json'}: case {entry['id']}: {key} is not {n} {words}; build the bank again")
    return BankCase(
        id=entry["id"],
        patient=entry["patient"],
        schema=entry["schema"],
        bank=root,
        shape=tuple(entry["shape"]),
        origin=tuple(entry["origin"]),
        grid_shape=tuple(entry["grid_shape"]),
        spacing_mm=tuple(entry["spacing_mm"]),
        n_voxels=tuple(entry["counts"]),
        n_bytes=tuple(entry["bytes"]),
        checksums=tuple(entry["sha256"]),
    )
