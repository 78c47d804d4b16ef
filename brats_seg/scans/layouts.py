"""Scan folder -> cases, for each BraTS release, MSD, nnU-Net, BIDS, a manifest and plain names; mixed, at any
depth.

A new release is an entry in `LAYOUTS` (and one in `labels.SCHEMAS` if its values are new).
"""

import os
import re
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from brats_seg.core.errors import InputError, UsageError
from brats_seg.scans.case import MODALITIES, Case, ScanFile, modality_named, patient_of
from brats_seg.scans.datasets import LABEL, Piece, read_bids, read_dataset, read_manifest
from brats_seg.scans.labels import schema_option
from brats_seg.scans.plain import NAME as PLAIN
from brats_seg.scans.plain import read_plain
from brats_seg.scans.problem import Problem
from brats_seg.scans.volume import SUFFIXES

_NIFTI = r"\.nii(?:\.gz)?$"
_OLD_ROLES = r"(?P<role>t1ce|t1|t2|flair|seg)"
_NEW_ROLES = r"(?P<role>t1n|t1c|t2w|t2f|seg)"
_VSD = r"(?:[^/]+/)?VSD\.Brain[^/]*\.(?:MR_)?(?P<role>T1c|T1|T2|Flair|OT)(?:\.\d+)?\.mha$"
_LABEL_ROLES = ("seg", "segm", "ot", "truth")
_LONGEST_ID = 200  # bytes; a file name has 255, and a temporary file adds its process and suffixes to the id


@dataclass(frozen=True)
class Layout:
    """How one release names its files.

    Attributes:
        name: the key in `LAYOUTS`.
        schema: the key in `labels.SCHEMAS` its labels follow, "" where each data set says it itself.
        patterns: searched, without regard to case, in a file's path; group `role` is the modality or the
            label, group `folder` (where there is one) ends the path of the case's folder. None for data sets
            that are found by their own metadata.
        case_id: filled with the pattern's groups.
        year: the year in a folder's name that decides between two releases with the same file names.
    """

    name: str
    schema: str
    patterns: tuple[str, ...] = ()
    case_id: str = "{id}"
    year: str = ""


LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout(
            "brats2013", "brats2013", (rf"/(?P<grade>[HL]G)/(?P<folder>\d{{4}})/{_VSD}",), "{grade}_{folder}"
        ),
        Layout(
            "simbrats",
            "brats2013",
            (
                r"/(?P<folder>SimBRATS_[HL]G\d+)[^/]*/[^/]*_(?P<role>T1c|T1|T2|Flair|truth)\.mha$",
                r"/(?:synthetic(?:[_ "
                rf"-]data)?|[^/]*simbrats[^/]*)/(?:[^/]+/)?(?P<grade>[HL]G)/(?P<folder>\d{{4}})/{_VSD}",
            ),
            "Synthetic_{grade}_{folder}",
        ),
        Layout(
            "brats2015",
            "brats2013",
            (rf"/(?:(?P<grade>[HL]GG)/)?(?P<folder>brats_[^/]+)/{_VSD}",),
            "{grade}_{folder}",
        ),
        Layout("brats2017", "brats2017", (rf"/(?P<id>Brats17_[^/]+?)_{_OLD_ROLES}{_NIFTI}",)),
        Layout("brats2018", "brats2017", (rf"/(?P<id>Brats18_[^/]+?)_{_OLD_ROLES}{_NIFTI}",)),
        Layout("brats2019", "brats2017", (rf"/(?P<id>BraTS19_[^/]+?)_{_OLD_ROLES}{_NIFTI}",)),
        Layout(
            "brats2020",
            "brats2017",
            # case 355's mask kept the name it had in the hospital
            (
                rf"/(?P<id>BraTS20_[^/]+?)_{_OLD_ROLES}{_NIFTI}",
                rf"/(?P<id>BraTS20_[^/]+)/W39_1998\.09\.19_(?P<role>Segm){_NIFTI}",
            ),
        ),
        Layout("brats2021", "brats2017", (rf"/(?P<id>BraTS2021_\d+)_{_OLD_ROLES}{_NIFTI}",)),
        # 2023 and 2024 share their file names: the year in the nearest folder named BraTS...2023 or
        # BraTS...2024 decides. Without one, adult cases of 2024 are known by time points from 100 on (2023
        # has 000 to 0xx), pediatric ones are taken for 2024. Only 2024 has value 4 (adults: resection
        # cavity): a case of 2024 taken for one of 2023 is refused by `verify`.
        Layout(
            "brats2023", "brats2023", (rf"/(?P<id>BraTS-GLI-\d+-0\d\d)-{_NEW_ROLES}{_NIFTI}",), year="2023"
        ),
        Layout(
            "brats2024gli",
            "brats2024gli",
            (rf"/(?P<id>BraTS-GLI-\d+-\d+)-{_NEW_ROLES}{_NIFTI}",),
            year="2024",
        ),
        Layout(
            "brats2024ped",
            "brats2024ped",
            (rf"/(?P<id>BraTS-PED-\d+-\d+)-{_NEW_ROLES}{_NIFTI}",),
            year="2024",
        ),
        Layout(
            "brats2023ped", "brats2023", (rf"/(?P<id>BraTS-PED-\d+-\d+)-{_NEW_ROLES}{_NIFTI}",), year="2023"
        ),
        Layout("msd", "msd"),
        Layout("nnunet", ""),
        Layout("bids", ""),
        Layout("manifest", ""),
        Layout(PLAIN, ""),
    )
}


@dataclass(frozen=True)
class Found:
    """Cases in the order of their ids, and what stood in the way of others.

    Attributes:
        cases: with every required modality, no two of one id.
        problems: errors and warnings.
        incomplete: refused for a missing or ambiguous file; with the files they have, for `verify` to look
            at.
        strangers: scan files that no layout claims.
    """

    cases: tuple[Case, ...]
    problems: tuple[Problem, ...]
    incomplete: tuple[Case, ...] = ()
    strangers: tuple[Path, ...] = ()


def problems_of(ids: Collection[str], cases: Sequence[Case], problems: Iterable[Problem]) -> list[Problem]:
    """The problems that concern the cases of these ids.

    They are those of the cases themselves, warnings about a folder that one of them lies in, and where one of
    them is lost without a word, all problems of folders: any of these may be why.

    Args:
        ids: the cases meant.
        cases: those of them that there are.
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
    required: Sequence[str] = MODALITIES,
    schema: str | None = None,
    labels: Literal["needed", "unused"] = "needed",
) -> Found:
    """All cases under a folder, of whatever layouts, or those a manifest CSV lists.

    A case with a required modality missing, or with two files for one modality, is a problem, not a case. No
    scan is opened.

    Args:
        folder: a folder, or a CSV file with the columns case, t1n, t1c, t2w, t2f and optionally patient,
            label, schema.
        layout: look for this one alone; it also decides between releases that share their file names.
        synthetic: take SimBRATS cases too.
        required: modalities without which a case is refused.
        schema: the label schema of the cases whose layout does not say it; without it, theirs is "".
        labels: "unused" takes a case with two references too, without any.

    Raises:
        InputError: the folder does not exist.
        UsageError: no such layout or schema.
    """
    folder, schema = Path(folder), schema_option(schema)
    if layout is not None and layout not in LAYOUTS:
        raise UsageError(f"layout '{layout}': no such layout; the layouts are {', '.join(LAYOUTS)}")
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
    pieces = [
        piece if piece.schema else replace(piece, schema=schema) for piece in _without_doubles(pieces, labels)
    ]
    cases, incomplete, refused = _assemble(pieces, required=required)
    problems += refused
    n_undated = sum(case.layout == "brats2024ped" and not _years(case.folder) for case in cases)
    if n_undated and layout is None:
        what = (
            f"{n_undated} pediatric cases lie in no folder named BraTS...2023 or BraTS...2024 and are taken "
            "for 2024"
        )
        problems.append(
            Problem(
                "warning",
                "",
                str(folder),
                what,
                "such a folder: value 1 is enhancing core in 2024, 3 in 2023",
            )
        )
    if not cases and not any(problem.severity == "error" for problem in problems):
        problems.append(
            Problem("error", "", str(folder), "no case found", f"scans named as in {', '.join(LAYOUTS)}")
        )
    return Found(cases, tuple(problems), incomplete, tuple(strangers))


def schema_by_name(path: Path) -> str | None:
    """The schema of the release a file is named after, or None."""
    match = _match(path, list(LAYOUTS.values()))
    return match[0].schema if match else None


def _pieces(folder: Path, *, layout: str | None) -> tuple[list[Piece], list[Path], list[Problem]]:
    """Every file that is part of a case, and scan files that are not. A file belongs to the first that claims
    it: manifest, dataset.json, BIDS, its name.
    """
    problems: list[Problem] = []
    if folder.is_file():
        return read_manifest(folder.absolute(), problems, schema_of=schema_by_name), [], problems
    files = _walk(folder.absolute(), problems)
    pieces: list[Piece] = []
    for name, reader in (
        ("manifest", _manifests),
        ("msd", read_dataset),
        ("bids", partial(read_bids, root=folder.absolute())),
    ):
        if layout in (None, name) or (layout == "nnunet" and reader is read_dataset):
            taken = {piece.file.path for piece in pieces}
            found = reader([file for file in files if file not in taken], problems)
            pieces += [piece for piece in found if layout in (None, piece.layout)]
    taken = {piece.file.path for piece in pieces}
    rest = [file for file in files if file not in taken and file.name.lower().endswith(SUFFIXES)]
    pieces += _named(rest, layout=layout)
    if layout in (None, PLAIN):
        taken = {piece.file.path for piece in pieces}
        listed = _manifest_folders(pieces, problems)
        # Stray files of plain names in or above the folders of another layout's cases are no further case.
        others = {folder for piece in pieces for folder in piece.file.path.parents}
        free = [
            file
            for file in rest
            if not (file in taken or file.parent in others) and listed.isdisjoint(file.parents)
        ]
        pieces += read_plain(free, root=folder.absolute())
    taken = {piece.file.path for piece in pieces}
    strangers = [file for file in rest if file not in taken]
    problems += _left_out(strangers, layout=layout, root=folder)
    problems += _dicom([file for file in files if file not in taken], is_all=not pieces, root=folder)
    return pieces, strangers, problems


def _dicom(files: Sequence[Path], *, is_all: bool, root: Path) -> list[Problem]:
    """A problem where a folder holds DICOM files, which are told by their names or their first bytes."""
    first = next((file for file in files if _is_dicom(file)), None)
    if first is None:
        return []
    n = sum(file.parent == first.parent and _is_dicom(file) for file in files)
    what = f"holds {n} DICOM files, such as {first.name}: DICOM is not read"
    expected = (
        f"NIfTI: dcm2niix -z y -o NIFTI_FOLDER {root} converts each series; then take the skull off and put "
        "the four scans on one grid"
    )
    return [Problem("error" if is_all else "warning", "", str(first.parent), what, expected)]


def _is_dicom(file: Path) -> bool:
    """DICOM files end in .dcm or .ima, or have no ending and the letters DICM behind 128 bytes."""
    if file.suffix.lower() in (".dcm", ".ima"):
        return True
    if file.suffix:
        return False
    try:
        with file.open("rb") as opened:
            return opened.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _manifest_folders(pieces: Iterable[Piece], problems: Iterable[Problem]) -> set[Path]:
    """Where a manifest lists the cases, also by rows that are wrong: their files are not read as other
    cases.
    """
    wrong = {
        Path(problem.file).parent
        for problem in problems
        if problem.severity == "error" and problem.file.endswith(".csv")
    }
    return wrong | {piece.folder for piece in pieces if piece.layout == "manifest"}


def _walk(folder: Path, problems: list[Problem]) -> list[Path]:
    """Every visible file, in order, but what macOS adds to archives.

    Links to folders are followed within `folder`, none twice; a link that leads out of it is a problem, and
    so is a pipe or a device.
    """

    def unreadable(error: OSError) -> None:
        problems.append(
            Problem(
                "error", "", str(error.filename), f"cannot be read: {error.strerror}", "a readable folder"
            )
        )

    files: list[Path] = []
    seen: set[str] = set()
    root = Path(os.path.realpath(folder))
    for top, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        real = os.path.realpath(top)
        if not Path(real).is_relative_to(root):
            what = "is a link that leads out of the folder and is not followed"
            problems.append(
                Problem("warning", "", top, what, "the folder itself, or a manifest CSV that names the files")
            )
            folders.clear()
            continue
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        files += [
            Path(top, name)
            for name in sorted(names)
            if not name.startswith(".") and _is_file(Path(top, name), problems)
        ]
    return files


def _is_file(path: Path, problems: list[Problem]) -> bool:
    """Whether a name in a folder is that of a file; a broken link counts as one, which cannot be read."""
    try:
        is_file = stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True
    if not is_file:
        problems.append(
            Problem(
                "warning",
                "",
                str(path),
                "is no regular file and is left out",
                "a file (a pipe or a device is none)",
            )
        )
    return is_file


def _manifests(files: Sequence[Path], problems: list[Problem]) -> list[Piece]:
    manifests = [file for file in files if file.name.lower() == "manifest.csv"]
    return [
        piece
        for file in manifests
        for piece in read_manifest(file, problems, schema_of=schema_by_name, unfit="warning")
    ]


def _named(files: Sequence[Path], *, layout: str | None) -> list[Piece]:
    """Files whose release is told by their names."""
    layouts = [LAYOUTS[layout]] if layout else list(LAYOUTS.values())
    matches = [(file, _match(file, layouts)) for file in files]
    return [_piece(file, *match) for file, match in matches if match]


def _left_out(files: Sequence[Path], *, layout: str | None, root: Path) -> list[Problem]:
    """A warning for each folder with scan files that no layout claims."""
    strangers: dict[Path, list[Path]] = {}
    for file in files:
        strangers.setdefault(file.parent, []).append(file)
    draft = f"a manifest CSV, whose draft `brats-seg verify {root} --draft manifest.csv` writes"
    expected = f"names as in {layout or f'one of the layouts, or {draft}'}"
    what = "{} scan files that no layout claims, such as {}, are left out"
    return [
        Problem("warning", "", str(folder), what.format(len(names), names[0].name), expected)
        for folder, names in strangers.items()
    ]


def _match(file: Path, layouts: Iterable[Layout]) -> tuple[Layout, re.Match[str]] | None:
    """The layout a file's path fits; among several, simulated before real, then the one of the nearest
    folder's year, then the first.
    """
    hits = list(_hits(file, layouts))
    years = _years(file.parent)
    hits.sort(key=lambda hit: (hit[0].name != "simbrats", bool(years) and hit[0].year not in ("", years[-1])))
    return hits[0] if hits else None


def _years(folder: Path) -> list[str]:
    """The year of each folder above, and of this one, that names one of the releases with equal file names;
    the nearest last.
    """
    return re.findall(r"/[^/]*brats[^/]*?(?<!\d)(2023|2024)(?!\d)", folder.as_posix(), re.IGNORECASE)


def _hits(file: Path, layouts: Iterable[Layout]) -> Iterator[tuple[Layout, re.Match[str]]]:
    path = file.as_posix()
    for layout in layouts:
        for pattern in layout.patterns:
            match = re.search(pattern, path, re.IGNORECASE)
            if match:
                yield layout, match
                break


def _piece(file: Path, layout: Layout, match: re.Match[str]) -> Piece:
    groups = {key: value or "" for key, value in match.groupdict().items()}
    case_id = re.sub("__+", "_", layout.case_id.format(**({"grade": ""} | groups))).strip("_")
    folder = Path(match.string[: match.end("folder")]) if "folder" in groups else file.parent
    role = LABEL if groups["role"].lower() in _LABEL_ROLES else str(modality_named(groups["role"]))
    return Piece(layout.name, layout.schema, case_id, patient_of(case_id), role, ScanFile(file), folder)


def _assemble(
    pieces: Sequence[Piece], *, required: Sequence[str]
) -> tuple[tuple[Case, ...], tuple[Case, ...], list[Problem]]:
    """Pieces of the same folder and id become a case, if they are enough and not too many; else an incomplete
    one.
    """
    groups: dict[tuple[Path, str], list[Piece]] = {}
    for piece in pieces:
        groups.setdefault((piece.folder, piece.case_id), []).append(piece)
    cases: dict[str, Case] = {}
    incomplete: list[Case] = []
    problems: list[Problem] = []
    for (folder, case_id), members in sorted(groups.items(), key=lambda item: (item[0][1], str(item[0][0]))):
        wrong = _double(members) + _missing(members, required=required)
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
        other = cases.get(case_id.casefold())
        if other is not None and other.id == case_id:
            wrong.append(
                Problem(
                    "error",
                    case_id,
                    str(folder),
                    f"its id is that of {other.folder} too",
                    "one folder per case",
                )
            )
        elif other is not None:
            what = (
                f"its id differs from {other.id} in upper and lower case alone: some disks take both for one "
                "file"
            )
            wrong.append(Problem("error", case_id, str(folder), what, "another id"))
        problems += wrong
        if not wrong:
            cases[case_id.casefold()] = _case(members)
    return tuple(cases.values()), tuple(incomplete), problems


def _case(members: Sequence[Piece]) -> Case:
    first = members[0]
    found = {piece.role: piece.file for piece in members}
    modalities = {name: found[name] for name in MODALITIES if name in found}
    schema = next((piece.schema for piece in members if piece.role == LABEL), first.schema)
    return Case(
        first.case_id, first.patient, first.layout, schema, modalities, found.get(LABEL), first.folder
    )


def _without_doubles(pieces: Sequence[Piece], labels: Literal["needed", "unused"]) -> Sequence[Piece]:
    """The pieces, and where no label is needed, without those of cases that have several."""
    if labels == "needed":
        return pieces
    n_labels = Counter((piece.folder, piece.case_id) for piece in pieces if piece.role == LABEL)
    return [piece for piece in pieces if piece.role != LABEL or n_labels[piece.folder, piece.case_id] == 1]


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
        Problem("error", first.case_id, str(first.file), what, f"one file for {' and one for '.join(double)}")
    ]


def _missing(members: Sequence[Piece], *, required: Sequence[str]) -> list[Problem]:
    roles = {piece.role for piece in members}
    missing = [name for name in required if name not in roles]
    if not missing:
        return []
    first = members[0]
    what = f"modality {' and '.join(missing)} missing; found {', '.join(sorted(roles))}"
    return [
        Problem("error", first.case_id, str(first.folder), what, f"a file each for {', '.join(required)}")
    ]
