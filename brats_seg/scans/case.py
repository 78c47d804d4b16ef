"""A case: id, patient, one path per modality, label path; and what is wrong with it."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from brats_seg.core.errors import InputError, printable
from brats_seg.scans.geometry import ScanError

MODALITIES = ("t1n", "t1c", "t2w", "t2f")
"""Native T1, contrast-enhanced T1, T2, T2-FLAIR: the names used since 2023, in the order of the channels."""
ALIASES: Mapping[str, str] = {
    **{name: name for name in MODALITIES},
    **{"t1": "t1n", "t1w": "t1n", "t1ce": "t1c", "t1gd": "t1c", "t1wce": "t1c", "t1wgd": "t1c", "t2": "t2w"},
    **{
        "t1pre": "t1n",
        "t1native": "t1n",
        "t1precontrast": "t1n",
        "t1post": "t1c",
        "t1contrast": "t1c",
        "t1postcontrast": "t1c",
    },
    **{"flair": "t2f", "t2flair": "t2f", "fla": "t2f"},
}
"""Every spelling of a modality that a release uses, in lower case without separators -> its name here."""

_PATIENTS = (
    (r"BraTS2021_0*(\d+)", "GLI-{:0>5}"),
    (r"BraTS-(?:GLI)-0*(\d+)-\d+", "GLI-{:0>5}"),
    (r"BraTS-(PED|MET|MEN|MEN-RT|SSA)-0*(\d+)-\d+", "{}-{:0>5}"),
    (r"BRATS_([HL]G)(\d{4})", "2013-{}-{}"),  # 2013 has the patients of 2012
    (r"(UPENN-GBM-\d+)_\d+", "{}"),
    (r"(UCSF-PDGM-\d+)_\w+", "{}"),
    (r"([HL]G)_(\d{4})", "2013-{}-{}"),
    (r"([HL]G)G_brats_2013_pat(\d{4})_\w+", "2013-{}-{}"),  # 2015 contains 2013
    (r"(?:[HL]GG_)?brats_tcia_pat0*(\d+)_\w+", "TCIA-{:0>3}"),
    (r"Brats1[789]_TCIA\d*_0*(\d+)_\d+", "TCIA-{:0>3}"),
    (r"Brats1[789]_([A-Za-z0-9]+_[A-Za-z0-9]+)_\d+", "{}"),
)


@dataclass(frozen=True)
class ScanFile:
    """One volume on disk: a file, and its channel if the file stacks several volumes (MSD)."""

    path: Path
    channel: int | None = None

    def __str__(self) -> str:
        return str(self.path) if self.channel is None else f"{self.path} (channel {self.channel})"


@dataclass(frozen=True)
class Case:
    """One scan session of one patient.

    Attributes:
        id: unique within a data set; names the case's files in a bank and among predictions.
        patient: equal for all cases of one person, also across releases if the names allow this.
        layout: the key in `layouts.LAYOUTS` of the layout that recognized the case.
        schema: the key in `labels.SCHEMAS` of its label (also without a label file); "" if unknown.
        modalities: modality name of `MODALITIES` -> its volume; only the existing ones.
        label: volume of the expert's label map, or None.
        folder: folder of the case.
    """

    id: str
    patient: str
    layout: str
    schema: str
    modalities: Mapping[str, ScanFile]
    label: ScanFile | None
    folder: Path


def case_of_files(files: Mapping[str, Path], *, id: str) -> Case:
    """A case of files that are given one by one: modality -> file. Its label schema is unknown."""
    return Case(
        id=id,
        patient=id,
        layout="files",
        schema="",
        modalities={name: ScanFile(path) for name, path in files.items()},
        label=None,
        folder=next(iter(files.values())).parent,
    )


def modality_named(text: str) -> str | None:
    """The modality that a name means (`T1ce`, `T1-Gd`, `FLAIR`, `t2w`), or None."""
    plain = "".join(c for c in text.lower() if c.isalnum())
    return ALIASES.get(plain) or ALIASES.get(plain.removeprefix("mr"))


def patient_of(case_id: str) -> str:
    """The patient that a case id names, the same in every release whose ids show it: BraTS2021_00006 and
    BraTS-GLI-00006-000 give GLI-00006.
    """
    for pattern, template in _PATIENTS:
        match = re.fullmatch(pattern, case_id, re.IGNORECASE)
        if match:
            return template.format(*match.groups())
    return case_id


@dataclass(frozen=True)
class Problem:
    """An error refuses the case; a warning keeps it.

    Attributes:
        severity: "error" or "warning".
        case: id of the case, or "" for a problem of a folder.
        file: path of the file or folder, or "".
        what: what is wrong.
        expected: what would be right, or "" if nothing needs to be done.
        kind: kind of a warning for which `predict` refuses a case: "skull" (no brain extraction) or
            "same_scan" (in two modalities); "" for all other problems.
    """

    severity: Literal["error", "warning"]
    case: str
    file: str
    what: str
    expected: str = ""
    kind: Literal["", "skull", "same_scan"] = ""

    def __str__(self) -> str:
        """One line: case, file, what is wrong; what would be right. See `printable`."""
        where = ": ".join(part for part in (self.case, self.file) if part)
        return printable(f"{where}: {self.what}" + (f"; expected {self.expected}" if self.expected else ""))

    def to_dict(self) -> dict[str, str]:
        """Plain types, for JSON."""
        return asdict(self)


class RefusedError(Exception):
    """Ends the work on one case; `problem` says why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def problem_of(error: InputError, case: str, *, file: str | Path = "", expected: str = "") -> Problem:
    """The problem of a case from an error. A `ScanError` names its own file and the expected content."""
    if isinstance(error, ScanError):
        return Problem("error", case, str(error.path), error.what, error.expected)
    return Problem("error", case, str(file), str(error).removeprefix(f"{case}: "), expected)
