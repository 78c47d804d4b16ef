"""One thing that is wrong with a data set, in words a person can act on."""

from dataclasses import asdict, dataclass
from typing import Literal

from brats_seg.core.errors import printable


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
        line = f"{where}: {self.what}" + (f"; expected {self.expected}" if self.expected else "")
        return printable(line)

    def to_dict(self) -> dict[str, str]:
        """Plain types, for JSON."""
        return asdict(self)
