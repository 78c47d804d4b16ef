"""bank.json: what a bank holds and the checksums of its files."""

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

_EXPONENT = np.uint16(0x7C00)  # of a float16; all ones mean infinity or NaN


def read_listing(root: Path) -> Listing:
    """Read `bank.json` of a bank.

    Raises:
        InputError: no bank, one of another schema version, or a list that is damaged.
    """
    path = root / "bank.json"
    if not path.exists():
        raise InputError(
            f"{path}: does not exist; `brats-seg preprocess DATA BANK` makes a bank and writes it last"
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
        InputError: `folds.json` is not the one the bank was built with, or does not deal the cases of the
            bank, each once.
    """
    path = root / "folds.json"
    if not path.is_file() or sha256(path) != listing.folds:
        raise InputError(
            f"{path}: absent or changed since the bank was built; build it again to assemble both"
        )
    folds = read_model(FoldsRecord, path, mend=MEND).folds
    if sorted(case for fold in folds for case in fold) != sorted(case.id for case in listing.cases):
        raise InputError(f"{path}: does not deal the cases of the bank, each once; {MEND}")
    return folds


@contextmanager
def hold_bank(root: Path) -> Iterator[None]:
    """Keep a bank as it is for the time of a block: `preprocess` refuses to change the bank while anybody
    holds it.

    Any number of processes may hold a bank. A bank in a folder that cannot be written to, or on a file system
    without locks, is used without a lock. A file of the bank that is cut short in the block ends the process
    with one line, not with a bus error.

    Raises:
        InputError: no such folder, or `preprocess` is about to change the bank.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; a bank is made by `brats-seg preprocess DATA BANK`")
    busy = "`brats-seg preprocess` is changing this bank; wait for it to end"
    cut_short = (
        f"brats-seg: {root}: a file was cut short while it was read, or its disk failed; `brats-seg verify "
        f"{root}` names the file, "
        f"`brats-seg preprocess DATA {root}` makes its case again; then give the same command again"
    )
    with lock(root / READERS_LOCK, holders="shared", without="go_on", busy=busy), say_bus_error(cut_short):
        yield


def verify_bank(path: Path | str, *, cases: Collection[str] | None = None) -> tuple[Problem, ...]:
    """Open all that a training opens, read every file, compare its checksum and look at its numbers; nothing
    is found where all is right.

    Args:
        path: of the bank.
        cases: ids of those to read; None for all.

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
    """What is wrong with a `case.json`, from which the next build would take the case; a bank is used without
    it.
    """
    if not path.exists():
        return []
    try:
        entry = read_entry(path)
    except InputError as error:
        return [Problem("error", case.id, str(path), str(error).removeprefix(f"{path}: "))]
    told = (entry.id, entry.shape, entry.origin, entry.n_voxels, entry.n_bytes, entry.checksums)
    if told != (case.id, case.shape, case.origin, case.n_voxels, case.n_bytes, case.checksums):
        return [Problem("error", case.id, str(path), "says other than bank.json", MEND)]
    return []


def _content_problems(case: BankCase, listing: Listing) -> list[Problem]:
    """Whether the arrays are what a training takes; their checksums are those of the list."""
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
            f"{actual[n_classes:OUTSIDE].sum()} of none"
        )
        problems.append(
            Problem(
                "error", case.id, str(case.folder / "label.npy"), what, f"{list(case.n_voxels)} and 0; {MEND}"
            )
        )
    return problems
