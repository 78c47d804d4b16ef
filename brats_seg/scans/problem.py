"""One thing that is wrong with a data set, in words a person can act on."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from brats_seg.core.errors import InputError, printable
from brats_seg.scans.geometry import ScanError


@dataclass(frozen=True)
class Problem:
    """An error refuses the case; a warning keeps it.

    Attributes:
        severity: "error" or "warning".
        case: id of the case, or "" where it concerns a folder.
        file: path of the file or folder, or "".
        what: what is wrong.
        expected: what would be right, or "" where nothing needs to be done.
        kind: of a warning that `predict` refuses a case for: "skull" (no brain extraction) or "same_scan" (in
            two modalities); else "".
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
    """What an error says of a case, by its id. A `ScanError` names its own file, and what was expected."""
    if isinstance(error, ScanError):
        return Problem("error", case, str(error.path), error.what, error.expected)
    return Problem("error", case, str(file), str(error).removeprefix(f"{case}: "), expected)
