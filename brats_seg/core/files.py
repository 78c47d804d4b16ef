"""Atomic writes, checksums and locks: what is on disk is whole, and nobody else is writing it."""

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from brats_seg.errors import InputError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what is written there takes the place of `path` when the block ends well.

    The temporary file is named `.{name}.{pid}.{thread}.part`; a block that raises leaves nothing, a killed process leaves that file.

    Raises:
        InputError: the folder of `path` does not exist.
    """
    if not path.parent.is_dir():
        raise InputError(f"{path}: cannot be written, its folder does not exist; make {path.parent} first")
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_native_id()}.part")
    try:
        yield part
        _flush(part)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) in one piece."""
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, tree: Any) -> None:
    """Write plain types as JSON in one piece: indented, keys in the order given, no NaN (`ValueError`)."""
    write_text(path, json.dumps(tree, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises `InputError` where it is absent, unreadable or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise InputError(f"{path}: not a JSON file: {error}") from None


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def lock(path: Path, *, holders: Literal["alone", "shared"] = "alone") -> Iterator[None]:
    """Hold a lock file for the time of the block; the system lets go of it if the process dies.

    Args:
        path: the file, made where it is not there.
        holders: "shared" lets others in that share it too.

    Raises:
        InputError: another process holds it, or its file system has no locks.
    """
    with path.open("a") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_EX if holders == "alone" else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{path}: held by another process; wait for it to end, or choose another folder") from None
        except OSError as error:
            raise InputError(f"{path}: its file system has no locks ({error.strerror}); choose a folder on another") from None
        yield


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
