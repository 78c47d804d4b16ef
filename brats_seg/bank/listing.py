"""bank.json: the content of a bank and the checksums of its files."""

import hashlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from brats_seg.bank.records import FILES, MEND, READERS_LOCK, BankCase, FoldsRecord, Listing, read_entry
from brats_seg.core.arrays import read_npy
from brats_seg.core.bus_error import say_bus_error
from brats_seg.core.errors import InputError
from brats_seg.core.files import lock, parse_model, read_bytes, read_model, sha256
from brats_seg.scans.case import Problem
from brats_seg.scans.labels import OUTSIDE

_EXPONENT = np.uint16(0x7C00)  # exponent bits of a float16; all ones mean infinity or NaN


def read_listing(root: Path) -> Listing:
    """Read `bank.json` of a bank.

    Raises:
        InputError: no bank, a bank of another schema version, or a damaged list.
    """
    path = root / "bank.json"
    if not path.exists():
        raise InputError(
            f"{path}: does not exist; `brats-seg preprocess DATA BANK` makes a bank and writes this file last"
        )
    raw = read_bytes(path)
    record = parse_model(Listing, raw, name=str(path), mend=MEND)
    return record.model_copy(
        update={
            "digest": hashlib.sha256(raw).hexdigest(),
            "cases": tuple(case.model_copy(update={"bank": root}) for case in record.cases),
        }
    )


def read_folds(root: Path, listing: Listing) -> tuple[tuple[str, ...], ...]:
    """Case ids of each fold.

    Raises:
        InputError: `folds.json` is not the file that the bank was built with, or does not contain each case
            of the bank exactly once.
    """
    path = root / "folds.json"
    if not path.is_file() or sha256(path) != listing.folds:
        raise InputError(
            f"{path}: missing or changed since the bank was built; build the bank again to write this "
            "file and bank.json"
        )
    folds = read_model(FoldsRecord, path, mend=MEND).folds
    if sorted(case for fold in folds for case in fold) != sorted(case.id for case in listing.cases):
        raise InputError(f"{path}: does not contain each case of the bank exactly once; {MEND}")
    return folds


@contextmanager
def hold_bank(root: Path) -> Iterator[None]:
    """Lock a bank for the time of a block: `preprocess` refuses to change the bank while a process holds the
    lock.

    Any number of processes may hold the lock. A bank in a folder that cannot be written to, or on a file
    system without locks, is used without a lock. If a file of the bank is truncated in the block, the process
    ends with one line, not with a bus error.

    Raises:
        InputError: no such folder, or `preprocess` is about to change the bank.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; a bank is made by `brats-seg preprocess DATA BANK`")
    busy = "`brats-seg preprocess` is changing this bank; wait for it to end"
    cut_short = (
        f"brats-seg: {root}: a file was truncated while it was read, or its disk failed; `brats-seg verify "
        f"{root}` names the file, "
        f"`brats-seg preprocess DATA {root}` makes its case again; then give the same command again"
    )
    with lock(root / READERS_LOCK, holders="shared", without="go_on", busy=busy), say_bus_error(cut_short):
        yield


def verify_bank(path: Path | str, *, cases: Collection[str] | None = None) -> tuple[Problem, ...]:
    """Open everything that a training opens, read every file, and check its checksum and its numbers. The
    result is empty for an intact bank.

    Args:
        path: of the bank.
        cases: ids of the cases to read; None for all.

    Raises:
        InputError: no bank, or one of another schema version.
    """
    root = Path(path)
    listing = read_listing(root)
    problems = []
    try:
        read_folds(root, listing)
    except InputError as error:
        said = str(error).removeprefix(f"{root / 'folds.json'}: ")
        problems.append(Problem("error", "", str(root / "folds.json"), said))
    for case in listing.cases:
        if cases is None or case.id in cases:
            problems += _case_problems(case, listing)
    return tuple(problems)


def _case_problems(case: BankCase, listing: Listing) -> list[Problem]:
    problems = []
    for name, checksum in zip(FILES, case.checksums, strict=True):
        file = case.folder / name
        if not file.is_file():
            problems.append(
                Problem("error", case.id, str(file), "is missing", f"the file that was built; {MEND}")
            )
        elif (actual := sha256(file)) != checksum:
            problems.append(
                Problem(
                    "error",
                    case.id,
                    str(file),
                    f"has changed: SHA-256 {actual[:12]}",
                    f"{checksum[:12]}; {MEND}",
                )
            )
    problems += _entry_problems(case.folder / "case.json", case)
    try:
        return problems or _content_problems(case, listing)
    except InputError as error:
        return [Problem("error", case.id, str(case.folder), str(error))]


def _entry_problems(path: Path, case: BankCase) -> list[Problem]:
    """The problems of a `case.json`. The next build reads this file; using the bank does not need it."""
    if not path.exists():
        return []
    try:
        entry = read_entry(path)
    except InputError as error:
        return [Problem("error", case.id, str(path), str(error).removeprefix(f"{path}: "))]
    told = (entry.id, entry.shape, entry.origin, entry.n_voxels, entry.n_bytes, entry.checksums)
    if told != (case.id, case.shape, case.origin, case.n_voxels, case.n_bytes, case.checksums):
        return [Problem("error", case.id, str(path), "differs from bank.json", MEND)]
    return []


def _content_problems(case: BankCase, listing: Listing) -> list[Problem]:
    """Check that the arrays are suitable for training; their checksums match the list."""
    n_classes = len(listing.classes)
    wanted = {
        "image.npy": ((*case.shape, len(listing.modalities)), np.float16),
        "label.npy": (case.shape, np.uint8),
        "voxels.npy": ((sum(case.n_voxels),), np.uint32),
    }
    problems = []
    arrays = {name: read_npy(case.folder / name) for name in FILES}
    for name, (shape, dtype) in wanted.items():
        if arrays[name].shape != shape or arrays[name].dtype != dtype:
            what = f"is {arrays[name].shape} of {arrays[name].dtype}"
            problems.append(
                Problem(
                    "error", case.id, str(case.folder / name), what, f"{shape} of {np.dtype(dtype)}; {MEND}"
                )
            )
    if problems:
        return problems
    if ((arrays["image.npy"].view(np.uint16) & _EXPONENT) == _EXPONENT).any():
        problems.append(
            Problem(
                "error", case.id, str(case.folder / "image.npy"), "has values that are NaN or infinite", MEND
            )
        )
    actual = np.bincount(arrays["label.npy"].reshape(-1), minlength=256)
    if tuple(actual[:n_classes].tolist()) != case.n_voxels or actual[n_classes:OUTSIDE].any():
        what = (
            f"has {actual[:n_classes].tolist()} voxels of the classes and "
            f"{actual[n_classes:OUTSIDE].sum()} without a class"
        )
        problems.append(
            Problem(
                "error", case.id, str(case.folder / "label.npy"), what, f"{list(case.n_voxels)} and 0; {MEND}"
            )
        )
    return problems
