"""A folder or a zip file -> the files in it that may be DICOM."""

import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from brats_seg.scans.case import Problem

_MOST_INFLATION = 200
"""Largest ratio of unpacked to packed bytes; real series stay below 20."""


@dataclass(frozen=True)
class Listed:
    """A file that may be DICOM.

    Attributes:
        path: its present path.
        name: path of the file below the given folder; an archive counts as a folder.
    """

    path: Path
    name: PurePosixPath


def list_files(root: Path, *, scratch: Path) -> tuple[list[Listed], list[Problem]]:
    """All files below a folder, and the members of its zip files; or the members of one zip file.

    Args:
        root: a folder, or a zip file.
        scratch: a folder for unpacked files.

    Returns:
        Files sorted by name, and a problem for each zip file that is refused as a whole: damaged, encrypted,
        with a name that leads outside the folder, or with an implausible amount of data.
    """
    files: list[Listed] = []
    problems: list[Problem] = []
    for number, (path, name) in enumerate(_walk(root)):
        if not zipfile.is_zipfile(path):
            files.append(Listed(path, name))
            continue
        target = scratch / f"{number}"
        folder = name.with_suffix("")
        try:
            files += [Listed(target / member, folder / member) for member in _unpack(path, target)]
        except _RefusedArchiveError as error:
            what, expected = error.args
            problems.append(Problem("error", folder.parts[0], str(path), what, expected))
    return sorted(files, key=lambda file: file.name), problems


class _RefusedArchiveError(Exception):
    """The problem of a zip file, and what is expected."""


def _walk(root: Path) -> Iterator[tuple[Path, PurePosixPath]]:
    """Files in order; links to folders are not followed."""
    if root.is_file():
        yield root, PurePosixPath(root.name)
        return
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            path = Path(folder) / name
            if path.is_file():
                yield path, PurePosixPath(path.relative_to(root).as_posix())


def _unpack(path: Path, target: Path) -> list[PurePosixPath]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            for member in members:
                parts = PurePosixPath(member.filename.replace("\\", "/"))
                if parts.is_absolute() or ".." in parts.parts or ":" in member.filename:
                    raise _RefusedArchiveError(
                        f"has the member {member.filename!r}", "names that stay inside the zip file"
                    )
            n_bytes = sum(member.file_size for member in members)
            if n_bytes > _MOST_INFLATION * path.stat().st_size:
                raise _RefusedArchiveError(
                    f"unpacks to {n_bytes:,} bytes", f"{_MOST_INFLATION} times its size at most"
                )
            target.mkdir(parents=True)
            for member in members:
                archive.extract(member, target)
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, OSError) as error:
        raise _RefusedArchiveError(
            f"cannot be unpacked: {error}", "a whole zip file, not encrypted"
        ) from None
    return [PurePosixPath(member.filename) for member in members]
