"""Scan folder -> cases, of each BraTS release, MSD, nnU-Net, BIDS, a manifest and plain names; mixed, at any
depth.
"""

import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.groups import grouped
from brats_seg.scans.case import MODALITIES, Case, Problem
from brats_seg.scans.datasets import BIDS_PREDICTION, LABEL, Piece, read_bids, read_dataset, read_manifest
from brats_seg.scans.folders import dicom_problems, walk
from brats_seg.scans.labels import schema_option
from brats_seg.scans.releases import (
    BRAIN_MASK,
    LAYOUTS,
    PLAIN,
    is_beside,
    read_named,
    read_plain,
    schema_by_name,
)
from brats_seg.scans.volume import SUFFIXES

# bytes; a file name has at most 255, and a temporary file adds its process and suffixes to the id
_LONGEST_ID = 200


@dataclass(frozen=True)
class Found:
    """Cases in the order of their ids, and the problems of the others.

    Attributes:
        cases: cases with every required modality; ids are unique.
        problems: errors and warnings.
        incomplete: cases refused for a missing or ambiguous file; with their existing files, which `verify`
            checks.
        strangers: scan files that no layout claims.
    """

    cases: tuple[Case, ...]
    problems: tuple[Problem, ...]
    incomplete: tuple[Case, ...] = ()
    strangers: tuple[Path, ...] = ()


def problems_of(ids: Collection[str], cases: Sequence[Case], problems: Iterable[Problem]) -> list[Problem]:
    """The problems that concern the cases of these ids.

    These are the problems of the cases themselves and the warnings about their folders. If a case is missing
    without a problem of its own, all problems of folders are included: each may be the reason.

    Args:
        ids: ids of the wanted cases.
        cases: the wanted cases that exist.
        problems: of a whole folder of cases, as `find_cases` names them.
    """
    problems = tuple(problems)
    is_lost = bool(set(ids) - {case.id for case in cases} - {problem.case for problem in problems})
    folders = {folder for case in cases for folder in (case.folder, *case.folder.parents)}

    def concerns(problem: Problem) -> bool:
        if problem.case or is_lost:
            return not problem.case or problem.case in ids
        at = Path(problem.file).absolute()
        return problem.severity == "warning" and (at if at.is_dir() else at.parent) in folders

    return [problem for problem in problems if concerns(problem)]


def find_cases(
    folder: str | Path,
    *,
    layout: str | None = None,
    synthetic: bool = False,
    required: Sequence[str] | None = None,
    schema: str | None = None,
    labels: Literal["needed", "unused"] = "needed",
) -> Found:
    """All cases under a folder, in any mixture of layouts, or the cases that a manifest CSV lists.

    If a required modality is missing or has two files, the result is a problem instead of a case. No scan is
    opened.

    Args:
        folder: a folder, or a CSV file with the columns case, t1n, t1c, t2w, t2f and optionally patient,
            label, schema.
        layout: search only for this layout; it also decides between releases with the same file names.
        synthetic: include SimBRATS cases.
        required: modalities that a case must have; None for those of its layout.
        schema: label schema of the cases whose layout does not determine it; without `schema` theirs is "".
        labels: "unused" accepts a case with two references, and uses neither.

    Raises:
        InputError: the folder does not exist.
        UsageError: no such layout, schema or modality.
    """
    folder, schema = Path(folder), schema_option(schema)
    if layout is not None and layout not in LAYOUTS:
        raise UsageError(f"layout '{layout}': no such layout; the layouts are {', '.join(LAYOUTS)}")
    for name in required or ():
        if name not in MODALITIES:
            raise UsageError(f"--modality {name}: unknown; the modalities are {', '.join(MODALITIES)}")
    try:
        folder.stat()
    except OSError as error:
        raise InputError(
            f"{folder}: no such folder ({error.strerror}); give a folder of scans or a manifest CSV"
        ) from None
    pieces, strangers, problems = _pieces(folder, layout=layout)
    simulated = {piece.folder for piece in pieces if piece.layout == "simbrats"}
    if simulated and not synthetic and layout != "simbrats":
        problems.append(
            Problem("warning", "", str(folder), f"{len(simulated)} synthetic (SimBRATS) cases are left out")
        )
        pieces = [piece for piece in pieces if piece.layout != "simbrats"]
    if schema and pieces and all(piece.schema for piece in pieces):
        what = f"--schema {schema} is not used: the layout of every case says its label schema"
        problems.append(
            Problem("warning", "", str(folder), what, "no --schema, or a manifest CSV with a column 'schema'")
        )
    if labels == "unused":  # a case with several labels loses all of them
        n_labels = Counter((piece.folder, piece.case_id) for piece in pieces if piece.role == LABEL)
        pieces = [p for p in pieces if p.role != LABEL or n_labels[p.folder, p.case_id] == 1]
    pieces = [piece if piece.schema else replace(piece, schema=schema) for piece in pieces]
    cases, incomplete, refused = _assemble(pieces, required=required)
    problems += refused
    if not cases and not any(problem.severity == "error" for problem in problems):
        problems.append(
            Problem("error", "", str(folder), "no case found", f"scans named as in {', '.join(LAYOUTS)}")
        )
    return Found(cases, tuple(problems), incomplete, tuple(strangers))


def _pieces(folder: Path, *, layout: str | None) -> tuple[list[Piece], list[Path], list[Problem]]:
    """Every file that is part of a case, and scan files that are not. A file belongs to the first that
    matches: manifest, dataset.json, BIDS, its name.
    """
    problems: list[Problem] = []
    if folder.is_file():
        return read_manifest(folder.absolute(), problems, schema_of=schema_by_name), [], problems
    files = walk(folder.absolute(), problems)
    pieces: list[Piece] = []
    for name, reader in (
        ("manifest", _manifests),
        ("msd", read_dataset),
        ("bids", partial(read_bids, root=folder.absolute())),
    ):
        if layout in (None, name) or (layout == "nnunet" and reader is read_dataset):
            taken = {piece.file.path for piece in pieces}
            claimed = reader([file for file in files if file not in taken], problems)
            pieces += [piece for piece in claimed if layout in (None, piece.layout)]
    taken = {piece.file.path for piece in pieces}
    rest = [file for file in files if file not in taken and file.name.lower().endswith(SUFFIXES)]
    pieces += read_named(rest, layout=layout)
    if layout in (None, PLAIN):
        taken = {piece.file.path for piece in pieces}
        listed = _manifest_folders(pieces, problems)
        # Files of plain names in or above the folders of another layout's cases are not a further case.
        others = {folder for piece in pieces for folder in piece.file.path.parents}
        free = [
            file
            for file in rest
            if not (file in taken or file.parent in others) and listed.isdisjoint(file.parents)
        ]
        pieces += read_plain(free, root=folder.absolute())
    taken = {piece.file.path for piece in pieces}
    strangers = [
        file
        for file in rest
        if not (file in taken or file.name == BRAIN_MASK or BIDS_PREDICTION in file.name or is_beside(file))
    ]
    problems += _left_out(strangers, layout=layout, root=folder)
    problems += dicom_problems([file for file in files if file not in taken], is_all=not pieces, root=folder)
    return pieces, strangers, problems


def _manifest_folders(pieces: Iterable[Piece], problems: Iterable[Problem]) -> set[Path]:
    """The folders of the cases in a manifest, including its wrong rows: their files do not become other
    cases.
    """
    wrong = {
        Path(problem.file).parent
        for problem in problems
        if problem.severity == "error" and problem.file.endswith(".csv")
    }
    return wrong | {piece.folder for piece in pieces if piece.layout == "manifest"}


def _manifests(files: Sequence[Path], problems: list[Problem]) -> list[Piece]:
    return [
        piece
        for file in files
        if file.name.lower() == "manifest.csv"
        for piece in read_manifest(file, problems, schema_of=schema_by_name, unfit="warning")
    ]


def _left_out(files: Sequence[Path], *, layout: str | None, root: Path) -> list[Problem]:
    """A warning for each folder with scan files that no layout claims."""
    strangers = grouped(files, lambda file: file.parent)
    draft = f"a manifest CSV, whose draft `brats-seg verify {root} --draft manifest.csv` writes"
    expected = f"names as in {layout or f'one of the layouts, or {draft}'}"
    what = "{} scan files that no layout claims, such as {}, are left out"
    return [
        Problem("warning", "", str(folder), what.format(len(names), names[0].name), expected)
        for folder, names in strangers.items()
    ]


def _assemble(
    pieces: Sequence[Piece], *, required: Sequence[str] | None
) -> tuple[tuple[Case, ...], tuple[Case, ...], list[Problem]]:
    """Pieces of the same folder and id become a case if each required file exists exactly once; else an
    incomplete case.
    """
    groups = grouped(pieces, lambda piece: (piece.folder, piece.case_id))
    cases: dict[str, Case] = {}
    incomplete: list[Case] = []
    problems: list[Problem] = []
    for (folder, case_id), members in sorted(groups.items(), key=lambda item: (item[0][1], str(item[0][0]))):
        wrong = _double(members) + _missing(
            members, required=LAYOUTS[members[0].layout].modalities if required is None else required
        )
        if wrong and case_id.casefold() not in cases:
            incomplete.append(_case(members))
        if len(os.fsencode(case_id)) > _LONGEST_ID:
            wrong.append(
                Problem(
                    "error",
                    case_id,
                    str(folder),
                    "its id is too long to name files",
                    f"{_LONGEST_ID} bytes at most",
                )
            )
        if not case_id.isprintable():
            wrong.append(
                Problem(
                    "error",
                    case_id,
                    str(folder),
                    "its id has a line break or a control character",
                    "an id of plain text",
                )
            )
        earlier = cases.get(case_id.casefold())
        if earlier is not None and earlier.id == case_id:
            wrong.append(
                Problem(
                    "error",
                    case_id,
                    str(folder),
                    f"has the same id as {earlier.folder}",
                    "one folder per case",
                )
            )
        elif earlier is not None:
            what = (
                f"its id differs from {earlier.id} only in upper and lower case: some disks treat both as "
                "one file"
            )
            wrong.append(Problem("error", case_id, str(folder), what, "another id"))
        problems += wrong
        if not wrong:
            cases[case_id.casefold()] = _case(members)
    return tuple(cases.values()), tuple(incomplete), problems


def _case(members: Sequence[Piece]) -> Case:
    first = members[0]
    files = {piece.role: piece.file for piece in members}
    modalities = {name: files[name] for name in MODALITIES if name in files}
    schema = next((piece.schema for piece in members if piece.role == LABEL), first.schema)
    return Case(
        first.case_id, first.patient, first.layout, schema, modalities, files.get(LABEL), first.folder
    )


def _double(members: Sequence[Piece]) -> list[Problem]:
    """One problem for all roles that have several files."""
    names = {
        role: [piece.file.path.name for piece in members if piece.role == role]
        for role in (*MODALITIES, LABEL)
    }
    double = {role: files for role, files in names.items() if len(files) > 1}
    if not double:
        return []
    first = next(piece for piece in members if piece.role in double)
    what = "; ".join(f"{role} is ambiguous: {' and '.join(files)}" for role, files in double.items())
    return [
        Problem(
            "error",
            first.case_id,
            str(first.file),
            what,
            f"one file for {' and one for '.join(double)}; or a manifest CSV, drafted by `verify --draft`",
        )
    ]


def _missing(members: Sequence[Piece], *, required: Sequence[str]) -> list[Problem]:
    roles = {piece.role for piece in members}
    missing = [name for name in required if name not in roles]
    if not missing:
        return []
    first = members[0]
    return [
        Problem(
            "error",
            first.case_id,
            str(first.folder),
            f"modality {' and '.join(missing)} missing; found {', '.join(sorted(roles))}",
            f"one file for each of {', '.join(required)}; `preprocess --modality` and `predict "
            "--allow-missing` accept fewer",
        )
    ]
