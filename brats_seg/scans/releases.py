"""File names of each BraTS release -> the role of a file in its case.

A new release is an entry in `LAYOUTS` (and one in `labels.SCHEMAS` if its values are new).
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from brats_seg.scans.case import MODALITIES, ScanFile, modality_named, patient_of
from brats_seg.scans.datasets import LABEL, Piece
from brats_seg.scans.volume import SUFFIXES

PLAIN = "plain"
"""The name of the layout of plain names."""
_VISIT = re.compile(
    r"(visit|session|ses|timepoint|tp|day|week|month|year|baseline|follow[ _-]?up|(pre|post)([ _-]?op)?)"
    r"[ _-]*\d*|\d{4}-?\d{2}-?\d{2}",
    re.IGNORECASE,
)
"""Names of folders that give the time of a scan: visit1, ses-02, week 12, baseline, 2019-05-31."""
BRAIN_MASK = "brain_mask.nii.gz"
"""A file that `prepare` writes in the folder of a case; it belongs to no case, and no warning names it."""
REFERENCES = ("gt", "groundtruth", "gtv", "label", "labels", "mask", "seg", "segm", "segmentation", "truth")
"""Names of reference files, without separators."""


def read_plain(files: Sequence[Path], *, root: Path) -> list[Piece]:
    """Cases of files such as `case/{t1,t1ce,t2,flair,seg}.nii.gz`, in upper or lower case, also with a
    trailing " (1)".

    A case gets the name of its folder. If two folders have the same name, or the name gives the time of a
    scan (`person/visit1`), the case gets the path below `root`. The scans of such visits belong to one
    patient, named after the folder above the visits. Files of a folder without any modality are ignored. The
    schema of the labels stays "".

    Args:
        files: files that match no other layout.
        root: the folder that was searched.
    """
    roles_of_folders: dict[Path, list[tuple[str, Path]]] = {}
    for file in files:
        role = _role(file)
        if role:
            roles_of_folders.setdefault(file.parent, []).append((role, file))
    cases = {
        folder: roles for folder, roles in roles_of_folders.items() if any(role != LABEL for role, _ in roles)
    }
    names = [folder.name.lower() for folder in cases]
    pieces = []
    for folder, roles in cases.items():
        parts = folder.relative_to(root).parts
        visits = [number for number, part in enumerate(parts) if _VISIT.fullmatch(part)]
        person = "_".join(parts[: visits[0]]) if visits else ""
        is_only = names.count(folder.name.lower()) == 1 and not person
        case_id = folder.name if is_only or not parts else "_".join(parts)
        patient = person or patient_of(case_id)
        pieces += [Piece(PLAIN, "", case_id, patient, role, ScanFile(file), folder) for role, file in roles]
    return pieces


def _role(file: Path) -> str | None:
    """The modality in a file name, `LABEL` for a reference, None for any other name."""
    suffix = next((s for s in SUFFIXES if file.name.lower().endswith(s)), "")
    stem = re.sub(r"\s*\(\d+\)$", "", file.name[: len(file.name) - len(suffix)])
    return LABEL if re.sub("[ _-]", "", stem.lower()) in REFERENCES else modality_named(stem)


_COHORT_FOLDER = re.compile(
    r"(?=.*brats)(?=.*(?:gli|ped|met(?!h)))(?!BraTS-(?:GLI|PED|MET)-\d+-\d+$)", re.IGNORECASE
)
"""The name of a release's folder, for the tasks whose labels or file names depend on the year."""
_DEEPEST = 3
"""A file lies at most this number of folders below the release's folder: release, part, case."""
_NIFTI = r"\.nii(?:\.gz)?$"
_OLD_ROLES = r"(?P<role>t1ce|t1|t2|flair|seg)"
_NEW_ROLES = r"(?P<role>t1n|t1c|t2w|t2f|seg)"
_VSD = r"(?:[^/]+/)?VSD\.Brain[^/]*\.(?:MR_)?(?P<role>T1c|T1|T2|Flair|OT)(?:\.\d+)?\.mha$"
_UCSF_ROLES = r"(?P<role>T1c|T1|T2|FLAIR|tumor_segmentation)"
_UPENN_ROLES = r"(?P<role>T1GD|T1|T2|FLAIR|segm)"
_LABEL_ROLES = ("seg", "segm", "ot", "truth", "gtv", "tumor_segmentation")


def _since_2023(task: str) -> tuple[str, ...]:
    return (rf"/(?P<id>BraTS-{task}-\d+-\d+)-{_NEW_ROLES}{_NIFTI}",)


@dataclass(frozen=True)
class Layout:
    """How one release names its files.

    Attributes:
        name: the key in `LAYOUTS`.
        schema: the key in `labels.SCHEMAS` of its labels, "" if each data set states its own schema.
        patterns: searched, without regard to case, in a file's path; group `role` is the modality or the
            label, an optional group `folder` ends at the case's folder. None for data sets that are found by
            their own metadata.
        case_id: filled with the pattern's groups.
        years: years in a folder's name that decide between releases with the same file names.
        candidates: possible schemas of its labels if the schema is unknown; empty for all.
        modalities: modalities of every case.
        beside: patterns of files of the release that belong to no case.
    """

    name: str
    schema: str
    patterns: tuple[str, ...] = ()
    case_id: str = "{id}"
    years: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()
    modalities: tuple[str, ...] = MODALITIES
    beside: str = ""


LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout("brats2012", "brats2012", (r"/(?P<id>BRATS_[HL]G\d+)_(?P<role>T1c|T1|T2|Flair|truth)\.mha$",)),
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
            # the mask of case 355 still has its name from the hospital
            (
                rf"/(?P<id>BraTS20_[^/]+?)_{_OLD_ROLES}{_NIFTI}",
                rf"/(?P<id>BraTS20_[^/]+)/W39_1998\.09\.19_(?P<role>Segm){_NIFTI}",
            ),
        ),
        Layout("brats2021", "brats2017", (rf"/(?P<id>BraTS2021_\d+)_{_OLD_ROLES}{_NIFTI}",)),
        # Releases since 2023 share their file names: the year in the name of the release's folder decides.
        # Without a year, and in 2025 and later, a time point from 100 on means an adult glioma after
        # treatment (before treatment: 000 to 0xx). Without a year, pediatric tumors and metastases have no
        # schema: value 1 is the enhancing core in PED of 2024, and the necrotic core in 2023; MET has a
        # cavity since 2025.
        Layout(
            "brats2023",
            "brats2023",
            (rf"/(?P<id>BraTS-GLI-\d+-0\d\d)-{_NEW_ROLES}{_NIFTI}",),
            years=("2023", "2025", "2026"),
        ),
        Layout("brats2024gli", "brats2024gli", _since_2023("GLI"), years=("2024",)),
        Layout("brats2024ped", "brats2024ped", _since_2023("PED"), years=("2024", "2025", "2026")),
        Layout("brats2023ped", "brats2023", _since_2023("PED"), years=("2023",)),
        Layout("bratsped", "", _since_2023("PED"), candidates=("brats2023", "brats2024ped")),
        Layout("brats2023met", "brats2023", _since_2023("MET"), years=("2023", "2024")),
        Layout("brats2025met", "brats2024gli", _since_2023("MET"), years=("2025", "2026")),
        Layout("bratsmet", "", _since_2023("MET"), candidates=("brats2023", "brats2024gli")),
        # The values of these tasks have one meaning in all years.
        Layout("bratsmen", "brats2023", _since_2023("MEN")),
        Layout("bratsssa", "brats2023", _since_2023("SSA")),
        Layout("bratsgoat", "brats2023", (rf"/(?P<id>BraTS-GoAT-\d+(?:-\d+)?)-{_NEW_ROLES}{_NIFTI}",)),
        Layout(
            "brats2024menrt",
            "brats2024menrt",
            (rf"/(?P<id>BraTS-MEN-RT-\d+-\d+)[-_](?P<role>t1c|gtv){_NIFTI}",),
            modalities=("t1c",),
        ),
        # Public data sets with the values of 2017. For UPENN-GBM the labels corrected by experts are read.
        Layout(
            "upenn",
            "brats2017",
            (
                rf"(?P<folder>/[^/]+)/images_(?:structural|segm)/(?:[^/]+/)?(?P<id>UPENN-GBM-\d+_\d+)_"
                rf"{_UPENN_ROLES}{_NIFTI}",
                rf"/(?P<id>UPENN-GBM-\d+_\d+)_{_UPENN_ROLES}{_NIFTI}",
            ),
            beside=r"/UPENN-GBM-\d+_\d+_[^/]+$",
        ),
        Layout(
            "ucsf",
            "brats2017",
            (rf"/(?P<id>UCSF-PDGM-\d+(?:_FU\w+?)?)_{_UCSF_ROLES}{_NIFTI}",),
            beside=r"/UCSF-PDGM-\d+_[^/]+$",
        ),
        Layout("msd", "msd"),
        Layout("nnunet", ""),
        Layout("bids", ""),
        Layout("manifest", ""),
        Layout(PLAIN, ""),
    )
}


def schema_by_name(path: Path) -> str | None:
    """The schema of the release in a file name, or None."""
    match = _match(path, list(LAYOUTS.values()))
    return match[0].schema if match else None


def read_named(files: Sequence[Path], *, layout: str | None) -> list[Piece]:
    """Files whose names show the release."""
    layouts = [LAYOUTS[layout]] if layout else list(LAYOUTS.values())
    matches = [(file, _match(file, layouts)) for file in files]
    return [_piece(file, *match) for file, match in matches if match]


def is_beside(file: Path) -> bool:
    """Whether a file belongs to no case but is known from the folders of a release."""
    path = file.as_posix()
    return any(layout.beside and re.search(layout.beside, path, re.I) for layout in LAYOUTS.values())


def _match(file: Path, layouts: Iterable[Layout]) -> tuple[Layout, re.Match[str]] | None:
    """The layout that matches a file's path. Among several: simulated before real, then the layout of the
    release's year, then the first.
    """
    hits = list(_hits(file, layouts))
    year = _year_of(file.parent)
    hits.sort(key=lambda hit: (hit[0].name != "simbrats", year not in (hit[0].years or ("",))))
    return hits[0] if hits else None


def _year_of(folder: Path) -> str:
    """The year in the name of the release's folder: the nearest one that names BraTS and a cohort: GLI, PED
    or MET. "" if that folder names no year.
    """
    release = next((name for name in reversed(folder.parts[-_DEEPEST:]) if _COHORT_FOLDER.match(name)), "")
    year = re.search(r"(?<!\d)202[3-6](?!\d)", release)
    return year[0] if year else ""


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
