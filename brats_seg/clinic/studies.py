"""Series -> studies of patients, and which series becomes which modality of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Literal

from brats_seg.clinic.modality import CONTRADICTION, modality_of
from brats_seg.clinic.series import Series
from brats_seg.core.errors import UsageError, printable
from brats_seg.core.groups import grouped
from brats_seg.scans.case import MODALITIES, Problem, modality_named


@dataclass(frozen=True)
class Row:
    """The decision about a series: its modality, or the reason why it is not used."""

    series: Series
    modality: str | None
    note: str


@dataclass(frozen=True)
class Study:
    """One examination of one patient.

    Attributes:
        case: the name of its folder in the output.
        rows: all its series.
        problems: an error refuses the study.
    """

    case: str
    rows: tuple[Row, ...]
    problems: tuple[Problem, ...]

    @property
    def chosen(self) -> dict[str, Series]:
        """Modality -> its series, in the order of the channels."""
        by_modality = {row.modality: row.series for row in self.rows if row.modality}
        return {name: by_modality[name] for name in MODALITIES if name in by_modality}

    @property
    def good(self) -> bool:
        """Whether the study can be written."""
        return bool(self.chosen) and all(problem.severity != "error" for problem in self.problems)


def parse_wanted(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """`--series t1c=5` or `t1c=AX T1 POST*` -> modality and series number, identifier or description.

    Raises:
        UsageError: a text without a modality or a value.
    """
    wanted: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        modality = modality_named(name)
        if not (sign and modality and value):
            raise UsageError(
                f"--series {text}: write MODALITY=SERIES, such as t1c=5 or 't2f=*FLAIR*'; the modalities are "
                f"{', '.join(MODALITIES)}"
            )
        wanted[modality] = (*wanted.get(modality, ()), value)
    return wanted


def plan_studies(
    series: Sequence[Series],
    damaged: Sequence[Problem],
    *,
    root: str,
    wanted: Mapping[str, Sequence[str]],
) -> list[Study]:
    """Group series by patient and examination, and choose a series for each modality.

    A study is named after the folder that contains all its files; if two studies share this folder, a number
    is added.

    Args:
        series: of all patients.
        damaged: files that could not be read; `case` is their folder. A study with files in the same folder
            or below is refused.
        root: the name of a study whose files lie in different folders of the first level.
        wanted: see `parse_wanted`.
    """
    members = list(grouped(series, lambda one: (one.patient, one.study_uid)).values())
    studies = []
    for case, group in zip(_names(members, root), members, strict=True):
        folders = {str(plane.file.name.parent) for one in group for plane in one.planes}
        own = [p for p in damaged if any(PurePosixPath(f).is_relative_to(p.case) for f in folders)]
        studies.append(_plan(case, group, own, wanted))
    return studies


def _names(groups: Sequence[Sequence[Series]], root: str) -> list[str]:
    shared = []
    for group in groups:
        parents = [plane.file.name.parent.parts for one in group for plane in one.planes]
        depth = 0
        while all(len(parts) > depth for parts in parents) and len({parts[depth] for parts in parents}) == 1:
            depth += 1
        parts = parents[0][:depth]
        first = parts[0] if parts else root
        n_there = sum(any(one.folder.parts[:1] == (first,) for one in other) for other in groups)
        shared.append("_".join(parts) if n_there > 1 and parts else first)
    return [
        name if shared.count(name) == 1 else f"{name}_{shared[: at + 1].count(name)}"
        for at, name in enumerate(shared)
    ]


def _plan(
    case: str, group: Sequence[Series], damaged: Sequence[Problem], wanted: Mapping[str, Sequence[str]]
) -> Study:
    problems = [Problem("error", case, p.file, p.what, p.expected) for p in damaged]
    told = [(one, *_told(one, wanted)) for one in group]
    rows = []
    for one, modality, reason in told:
        rivals = [other for other, name, _ in told if name == modality]
        others_sound = any(not other.flaws for other in rivals if other is not one)
        if reason == CONTRADICTION:
            expected = f"--series t1n={one.number} or --series t1c={one.number}"
            problems.append(Problem("error", case, "", f"{_place(one)}: {reason}", expected))
        if modality is None or not one.flaws:
            rows.append(Row(one, modality, "; ".join([reason, *one.flaws[:1]])))
        else:
            severity: Literal["error", "warning"] = "warning" if others_sound else "error"
            expected = "a series without these problems"
            problems.append(Problem(severity, case, _place(one), "; ".join(one.flaws), expected))
            rows.append(Row(one, None, one.flaws[0]))
    for modality in MODALITIES:
        candidates = [row.series for row in rows if row.modality == modality]
        if len(candidates) > 1:
            listed = " and ".join(_place(one) for one in candidates)
            mend = f"one: add --series {modality}=NUMBER"
            problems.append(
                Problem("error", case, "", f"{len(candidates)} series for {modality}: {listed}", mend)
            )
    missing = [name for name in MODALITIES if all(row.modality != name for row in rows)]
    if any(problem.severity == "error" for problem in problems):
        return Study(case, tuple(rows), tuple(problems))
    if len(missing) == len(MODALITIES):
        problems.append(
            Problem("error", case, "", "has no series of a known modality", "--series MODALITY=NUMBER")
        )
    elif missing:
        problems.append(
            Problem("warning", case, "", f"has no series for {', '.join(missing)}", "--series, or a new scan")
        )
    return Study(case, tuple(rows), tuple(problems))


def _told(series: Series, wanted: Mapping[str, Sequence[str]]) -> tuple[str | None, str]:
    """The decision of the user about a series, else the decision from its header. If the user names a series
    for a modality, no other series gets this modality.
    """
    description = series.description.lower()
    for modality, values in wanted.items():
        if {series.number, series.uid} & set(values) or any(
            fnmatchcase(description, value.lower()) for value in values
        ):
            return modality, "--series"
    told, reason = modality_of(series)
    if reason == CONTRADICTION and {"t1n", "t1c"} <= set(wanted):
        return None, "--series names another t1n and t1c"
    return (None, f"--series names another {told}") if told in wanted else (told, reason)


def _place(series: Series) -> str:
    return printable(f"series {series.number} '{series.description}' in {series.folder}", limit=160)
