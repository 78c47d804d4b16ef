"""Folders whose files are named after what they show (t1.nii.gz, FLAIR (1).mha): cases without a word on
their label values.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from brats_seg.scans.case import ScanFile, modality_named, patient_of
from brats_seg.scans.datasets import LABEL, Piece
from brats_seg.scans.volume import SUFFIXES

NAME = "plain"
"""Of the layout."""
_VISIT = re.compile(
    r"(visit|session|ses|timepoint|tp|day|week|month|year|baseline|follow[ _-]?up|(pre|post)([ _-]?op)?)"
    r"[ _-]*\d*|\d{4}-?\d{2}-?\d{2}",
    re.IGNORECASE,
)
"""Names of folders that say when a scan was taken: visit1, ses-02, week 12, baseline, 2019-05-31."""
BRAIN_MASK = "brain_mask.nii.gz"
"""What `prepare` writes beside the scans of a case: part of no case, and left out without a warning."""
REFERENCES = ("gt", "groundtruth", "gtv", "label", "labels", "mask", "seg", "segm", "segmentation", "truth")
"""Names of reference files, without separators."""


def read_plain(files: Sequence[Path], *, root: Path) -> list[Piece]:
    """Cases of files such as `case/{t1,t1ce,t2,flair,seg}.nii.gz`, whatever the case of their letters, also
    with a trailing " (1)".

    A case is named after its folder; where two folders have one name, or the folder says when the scan was
    taken (`person/visit1`), after their path below `root`. The scans of such visits are of one patient, who
    is named after the folder around the visits. Files of a folder without any modality are left alone. The
    schema of the labels stays "".

    Args:
        files: that no other layout claims.
        root: the folder that was searched.
    """
    found: dict[Path, list[tuple[str, Path]]] = {}
    for file in files:
        role = _role(file)
        if role:
            found.setdefault(file.parent, []).append((role, file))
    cases = {folder: roles for folder, roles in found.items() if any(role != LABEL for role, _ in roles)}
    names = [folder.name.lower() for folder in cases]
    pieces = []
    for folder, roles in cases.items():
        parts = folder.relative_to(root).parts
        person = _person(parts)
        is_only = names.count(folder.name.lower()) == 1 and not person
        case_id = folder.name if is_only or not parts else "_".join(parts)
        patient = person or patient_of(case_id)
        pieces += [Piece(NAME, "", case_id, patient, role, ScanFile(file), folder) for role, file in roles]
    return pieces


def _person(parts: Sequence[str]) -> str:
    """The path of folders around the first one that is named after a visit; "" where there is none."""
    visits = [number for number, part in enumerate(parts) if _VISIT.fullmatch(part)]
    return "_".join(parts[: visits[0]]) if visits else ""


def _role(file: Path) -> str | None:
    """The modality a file is named after, `LABEL` for a reference, None for any other name."""
    suffix = next((s for s in SUFFIXES if file.name.lower().endswith(s)), "")
    stem = re.sub(r"\s*\(\d+\)$", "", file.name[: len(file.name) - len(suffix)])
    return LABEL if re.sub("[ _-]", "", stem.lower()) in REFERENCES else modality_named(stem)
