"""A case with its volumes read."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from brats_seg.core.groups import grouped
from brats_seg.core.shapes import Volume
from brats_seg.scans.case import Case, Problem, ScanFile, problem_of
from brats_seg.scans.datasets import LABEL
from brats_seg.scans.geometry import Geometry, ScanError
from brats_seg.scans.volume import read_volumes


@dataclass(frozen=True)
class LoadedCase:
    """A case with its volumes read: (Z, Y, X) in LPS. A file that could not be read becomes a problem
    instead.
    """

    case: Case
    volumes: Mapping[str, tuple[Volume, Geometry]]
    label: tuple[Volume, Geometry] | None
    problems: tuple[Problem, ...]


def load_case(case: Case, *, threads: int = 1) -> LoadedCase:
    """Read every file of a case once, `threads` at a time; a file that cannot be read becomes a problem."""
    volumes: dict[str, tuple[Volume, Geometry]] = {}
    problems: list[Problem] = []
    files = _files(case)

    def read(names: Sequence[str]) -> dict[str, tuple[Volume, Geometry]] | Problem:
        try:
            return dict(zip(names, read_volumes([files[name] for name in names]), strict=True))
        except ScanError as error:
            return problem_of(error, case.id)

    with ThreadPoolExecutor(threads) as pool:
        # Names that share a file (the channels of MSD) together: such a file is read once.
        for result in pool.map(read, grouped(files, lambda name: files[name].path).values()):
            if isinstance(result, Problem):
                problems.append(result)
            else:
                volumes |= result
    return LoadedCase(case, volumes, volumes.pop(LABEL, None), tuple(problems))


def _files(case: Case) -> dict[str, ScanFile]:
    return {**case.modalities, **({LABEL: case.label} if case.label is not None else {})}


def all_volumes(loaded: LoadedCase) -> dict[str, tuple[Volume, Geometry]]:
    """The volumes of a case by name; a label has the name `LABEL`."""
    return {**loaded.volumes, **({LABEL: loaded.label} if loaded.label is not None else {})}


def problem_with(case: Case, severity: Any, name: str, what: str, expected: str = "") -> Problem:
    """A problem of one file of a case, by its name in `all_volumes`; "" means the folder of the case."""
    files = _files(case)
    file = str(files[name]) if name in files else str(case.folder)
    return Problem(severity, case.id, file, f"{name} {what}" if name in files else what, expected)
