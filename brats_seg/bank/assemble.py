"""Finished cases -> `folds.json` and `bank.json`, and warnings about the bank as a whole."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brats_seg.bank.entry import (
    EntryTask,
    Settings,
    find_entry,
    find_refusal,
)
from brats_seg.bank.folds import make_folds, telling_class
from brats_seg.bank.records import LISTED, READERS_LOCK, SCHEMA_VERSION
from brats_seg.core.errors import InputError
from brats_seg.core.files import lock, write_text
from brats_seg.scans.case import Problem
from brats_seg.scans.check import CaseReport
from brats_seg.scans.labels import MERGED, SCHEMAS, common_classes
from brats_seg.scans.verify import one_patient


def unlist(bank: Path) -> None:
    """Delete `bank.json` before a file of the bank changes: the bank cannot be opened until all files are
    written.

    Raises:
        InputError: a training or another reader uses the bank.
    """
    if not (bank / "bank.json").exists():
        return
    busy = (
        "a training or another reader uses this bank, which would change; wait for its end, or make a new "
        "bank in another folder"
    )
    with lock(bank / READERS_LOCK, busy=busy):
        (bank / "bank.json").unlink(missing_ok=True)


def assemble(
    tasks: Sequence[EntryTask], settings: Settings, problems: list[Problem], *, n_folds: int, seed: int
) -> tuple[str, ...]:
    """Write `folds.json` and `bank.json` if every case is finished or refused; else return the ids of the
    unfinished cases.
    """
    entries, missing = [], []
    for task in tasks:
        entry = find_entry(task)
        if entry is not None:
            entries.append(entry)
        elif find_refusal(task) is None:
            missing.append(task.case.id)
    if missing:
        return tuple(missing)
    if not entries:
        raise InputError(
            f"{tasks[0].bank}: every case was refused", *(str(p) for p in problems if p.severity == "error")
        )
    patient_of = _patients(entries, tasks, problems)
    problems += _absent_classes(entries, settings.classes) + _needlessly_merged(
        entries, tasks, settings.classes
    )
    bank = tasks[0].bank
    problems += _left_out(bank, tasks)
    enhancing = telling_class(settings.classes)
    folds = make_folds(
        patient_of, {e["id"]: e["counts"][enhancing] > 0 for e in entries}, n_folds=n_folds, seed=seed
    )
    if len(folds) < n_folds:
        problems.append(
            Problem(
                "warning",
                "",
                str(bank),
                f"{len(folds)} folds instead of {n_folds}: there are no more patients",
            )
        )
    dealt = json.dumps({"schema_version": SCHEMA_VERSION, "seed": seed, "folds": folds}, indent=1) + "\n"
    head = {
        "schema_version": SCHEMA_VERSION,
        "modalities": settings.modalities,
        "classes": settings.classes,
        "spacing_mm": settings.spacing_mm,
        "normalization": {"percentiles": settings.percentiles, "n4": settings.n4},
        "folds": hashlib.sha256(dealt.encode()).hexdigest(),
    }
    rows = [{key: entry[key] for key in LISTED} | {"patient": patient_of[entry["id"]]} for entry in entries]
    lines = ",\n".join(
        json.dumps(row) for row in rows
    )  # a line for each case, so that a person can compare two banks
    listed = json.dumps(head)[:-1] + ',\n"cases": [\n' + lines + "\n]}\n"
    if not (_holds(bank / "folds.json", dealt) and _holds(bank / "bank.json", listed)):
        unlist(bank)
        write_text(bank / "folds.json", dealt)
        write_text(bank / "bank.json", listed)
    return ()


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()


def _patients(
    entries: Sequence[Mapping[str, Any]], tasks: Sequence[EntryTask], problems: list[Problem]
) -> dict[str, str]:
    """Case id -> patient; cases that share a scan count as one patient."""
    digests = {entry["id"]: entry["digests"] for entry in entries}
    cases = {task.case.id: task.case for task in tasks}
    reports = [CaseReport(cases[case_id], (), {}, None, None, digests[case_id]) for case_id in digests]
    patient_of = one_patient(reports)
    for case_id, patient in patient_of.items():
        if patient != cases[case_id].patient:
            what = f"shares a scan with a case of patient {patient}; the two count as one patient"
            problems.append(Problem("warning", case_id, str(cases[case_id].folder), what))
    return patient_of


def _left_out(bank: Path, tasks: Sequence[EntryTask]) -> list[Problem]:
    """A warning if an earlier build put other cases into this folder: a bank has only the cases of the last
    call of `preprocess`.
    """
    others = sorted(
        {path.parent.name for path in bank.glob("cases/*/case.json")} - {task.case.id for task in tasks}
    )
    if not others:
        return []
    what = (
        f"{len(others)} cases of an earlier build, such as {others[0]}, are not among these scans and no "
        "longer in the bank"
    )
    return [
        Problem(
            "warning",
            "",
            str(bank),
            what,
            "all scans at once (a folder may mix releases), or a folder for each bank",
        )
    ]


def _needlessly_merged(
    entries: Sequence[Mapping[str, Any]], tasks: Sequence[EntryTask], classes: Sequence[str]
) -> list[Problem]:
    """A warning if refused cases are the only reason why tissue classes are merged."""
    prepared = {entry["id"] for entry in entries}
    finer = common_classes(
        SCHEMAS[name] for name in {task.case.schema for task in tasks if task.case.id in prepared}
    )
    if MERGED not in classes or MERGED in finer:
        return []
    merging = [
        task.case.id
        for task in tasks
        if task.case.id not in prepared and MERGED in SCHEMAS[task.case.schema].values.values()
    ]
    what = (
        f"was refused, but because of it the bank has {', '.join(classes)}; the other cases distinguish "
        f"{', '.join(finer)}"
    )
    return [
        Problem("warning", merging[0], "", what, "a new bank without this case, or with the corrected case")
    ]


def _absent_classes(entries: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> list[Problem]:
    totals = [sum(column) for column in zip(*(entry["counts"] for entry in entries), strict=True)]
    return [
        Problem("warning", "", "", f"tissue class {name} occurs in no case")
        for name, n in zip(classes, totals, strict=True)
        if n == 0
    ]
