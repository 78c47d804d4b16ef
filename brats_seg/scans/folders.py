"""Every visible file of a folder, and those among them that are DICOM."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from brats_seg.scans.case import Problem


def walk(folder: Path, problems: list[Problem]) -> list[Path]:
    """Every visible file, in order, except the files that macOS adds to archives.

    Links to folders are followed inside `folder`, each once. A link that leads outside `folder`, a pipe or a
    device is a problem.
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
    """Whether a name in a folder is a file; a broken link counts as a file that cannot be read."""
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
                "is not a regular file and is left out",
                "a file, not a pipe or a device",
            )
        )
    return is_file


def dicom_problems(files: Sequence[Path], *, is_all: bool, root: Path) -> list[Problem]:
    """A problem if a folder contains DICOM files, recognized by their names or their first bytes."""
    first = next((file for file in files if _is_dicom(file)), None)
    if first is None:
        return []
    n = sum(file.parent == first.parent and _is_dicom(file) for file in files)
    what = f"contains {n} DICOM files, such as {first.name}, which this verb does not read"
    expected = f"scans: `brats-seg import {root} scans` makes them from DICOM series"
    return [Problem("error" if is_all else "warning", "", str(first.parent), what, expected)]


def _is_dicom(file: Path) -> bool:
    """DICOM files end in .dcm or .ima, or have no ending and the letters DICM after 128 bytes."""
    if file.suffix.lower() in (".dcm", ".ima"):
        return True
    if file.suffix:
        return False
    try:
        with file.open("rb") as opened:
            return opened.read(132)[128:] == b"DICM"
    except OSError:
        return False
