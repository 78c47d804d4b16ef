"""Reading with one-line errors, atomic writes, checksums and locks."""

import csv
import hashlib
import io
import json
import os
import re
import reprlib
import shutil
import socket
import stat
import tempfile
import threading
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from functools import lru_cache
from glob import escape
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from filelock import lock_descriptor
from pydantic import BaseModel, ValidationError

from brats_seg.core.errors import InputError, printable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MOST_TEXT_BYTES = 1 << 28
"""Largest size in bytes of a text file that is read as a whole. The list of a bank of 1,251 cases has a
million bytes.
"""
MOST_YAML_BYTES = 1 << 18
_LONGEST_SCALAR = 10_000  # characters; YAML 1.1 reads 1:1:1... as a number in base 60, in quadratic time
_DEEPEST = 40  # nested brackets; PyYAML takes seconds for a thousand

M = TypeVar("M", bound=BaseModel)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`. If the block ends without an error, the file written
    there replaces `path`.

    The temporary file is named `.{name}.{machine}-{pid}.{thread}.part`. A block that raises leaves nothing. A
    killed process leaves that file, and the next writer of `path` on the same machine removes it.

    Raises:
        InputError: the folder of `path` does not exist.
        OSError: the file cannot be written; the error names `path`.
    """
    if not path.parent.is_dir():
        raise InputError(
            f"{path}: cannot be written, because its folder does not exist; create {path.parent} first"
        )
    _remove_rests(path)
    part = path.with_name(f".{path.name}.{_MACHINE}-{os.getpid()}.{threading.get_native_id()}.part")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(part)):
            error.filename = str(path)  # the error of a full disk has no name
        raise


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `folder`, which must not exist yet. If the block ends without an
    error, the temporary folder is renamed, so that all files appear at once. If the block raises, it is
    deleted.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield part
        part.chmod(0o755)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) atomically."""
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, tree: Any) -> None:
    """Write plain types as JSON atomically: indented, keys in the given order, no NaN (`ValueError`)."""
    write_text(path, json.dumps(tree, indent=1, allow_nan=False) + "\n")


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file to read bytes. Raises `OSError` if the file does not exist or is not a regular file:
    reading a pipe or a device might never end.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(None, "not a regular file", str(path))
    return path.open("rb")


def read_bytes(path: Path, *, limit: int = MOST_TEXT_BYTES) -> bytes:
    """All bytes of a regular file. Raises `InputError` if the file cannot be read or has more than `limit`
    bytes.
    """
    try:
        with open_regular(path) as file:
            if (n_bytes := os.fstat(file.fileno()).st_size) > limit:
                raise InputError(f"{path}: has {n_bytes:,} bytes; such a file has {limit:,} at most")
            return file.read()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def read_text(path: Path, *, limit: int = MOST_TEXT_BYTES, encoding: str = "utf-8") -> str:
    """A text file in UTF-8. Raises `InputError` as `read_bytes`, or if the file has another encoding."""
    return decode(read_bytes(path, limit=limit), name=str(path), encoding=encoding)


def decode(raw: bytes, *, name: str, encoding: str = "utf-8") -> str:
    """`read_text` for bytes that were already read. `name` is their name in errors."""
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name}: not text in UTF-8 ({error.reason} at byte {error.start:,}); write it again"
        ) from None


def read_table(
    path: Path, *, delimiter: str = ",", short_rows: Literal["refuse", "fill"] = "refuse"
) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """Column names and rows of a CSV file.

    Args:
        path: the file.
        delimiter: character between cells.
        short_rows: treatment of a row with fewer cells than columns: "fill" fills the missing cells with "".

    Raises:
        InputError: as `read_text`; the file is not CSV; a row has more cells than columns, or too few.
    """
    return parse_table(
        read_text(path, encoding="utf-8-sig"), name=str(path), delimiter=delimiter, short_rows=short_rows
    )


def parse_table(
    text: str, *, name: str, delimiter: str = ",", short_rows: Literal["refuse", "fill"] = "refuse"
) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """`read_table` for text that was already read. `name` is its name in errors."""
    # pandas is not used, because it fills short rows without a message, and the last row of a truncated file
    # is short.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        lines = [(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as error:
        raise InputError(f"{name}: not a table: {error} in line {reader.line_num}") from None
    columns = tuple(lines[0][1]) if lines else ()
    for number, cells in lines[1:]:
        if any(cells[len(columns) :]) or (len(cells) < len(columns) and short_rows == "refuse"):
            raise InputError(
                f"{name}: not a table: line {number} has {len(cells)} cells for {len(columns)} columns"
            )
    return columns, [
        dict.fromkeys(columns, "") | dict(zip(columns, cells, strict=False)) for _, cells in lines[1:]
    ]


def parse_json(text: str | bytes) -> Any:
    """JSON as plain types. Raises `ValueError` with one line, also for text that is nested too deep or has a
    number of thousands of digits.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises `InputError` if the file is missing, unreadable or not JSON."""
    try:
        return parse_json(read_text(path))
    except ValueError as error:
        raise InputError(f"{path}: not a JSON file: {error}") from None


def read_model(model: type[M], path: Path, *, mend: str) -> M:
    """Read a JSON file of this program with the model that describes it. No type is converted.

    Args:
        model: model of the content.
        path: the file.
        mend: advice for a damaged file.

    Raises:
        InputError: the file is missing, unreadable or not JSON, or a field is missing or has another type.
            The message names the first such field.
    """
    return parse_model(model, read_bytes(path), name=str(path), mend=mend)


def parse_model(model: type[M], raw: str | bytes, *, name: str, mend: str) -> M:
    """`read_model` for text that was already read. `name` is its name in errors."""
    try:
        return model.model_validate_json(raw, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{name}: {f'{where}: ' if where else ''}{said}; {mend}") from None


def parse_yaml(text: str) -> Any:
    """YAML as plain types. A key must not occur twice in a mapping. Anchors are refused, because a few
    hundred bytes with anchors can expand to gigabytes.

    Raises:
        ValueError: with one line, for any wrong text.
    """
    if len(text) > MOST_YAML_BYTES:
        raise ValueError(f"{len(text):,} characters; {MOST_YAML_BYTES:,} at most")
    try:
        return deepcopy(_load_yaml(text))
    except RecursionError:
        raise ValueError("nested too deep") from None
    except (yaml.YAMLError, ValueError, ArithmeticError, LookupError, AttributeError, TypeError) as error:
        # PyYAML does not catch the errors of Python for `2021-13-45`, `0b_` or `!!bool x`
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None


@lru_cache(maxsize=32)
def _load_yaml(text: str) -> Any:
    """Each text is read once: the config of a run is in each of its checkpoints, and reading it takes 20
    ms.
    """
    return yaml.load(text, Loader=_Loader)


def shown(value: Any) -> str:
    """A value as short text for an error line."""
    try:
        return printable(_SHORT.repr(value), limit=120)
    except ValueError:
        return "a number of thousands of digits"


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of the bytes of a file."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def lock(
    path: Path,
    *,
    holders: Literal["alone", "shared"] = "alone",
    without: Literal["refuse", "go_on"] = "refuse",
    busy: str = "held by another process; wait for it to end, or choose another folder",
) -> Iterator[None]:
    """Hold a lock file during the block. The system releases the lock if the process dies.

    Args:
        path: the lock file; created if it does not exist.
        holders: "shared" allows other processes with a shared lock. Windows has no shared lock, so there the
            lock is exclusive.
        without: behavior if the folder cannot be written to, its file system has no locks, or Windows has no
            shared lock; "go_on" runs the block without a lock.
        busy: text of the error if another process holds the lock.

    Raises:
        InputError: another process holds the lock, or the file system has no locks.
        OSError: the file cannot be created.
    """
    if fcntl is None and (holders, without) == ("shared", "go_on"):
        yield
        return
    with ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("a"))
            _lock_file(file.fileno(), holders)
        except BlockingIOError:
            raise InputError(f"{path}: {busy}") from None
        except OSError as error:
            if without == "refuse":
                if error.filename is not None:  # the file could not be opened
                    raise
                what = f"its file system has no locks ({error.strerror}); choose a folder on another"
                raise InputError(f"{path}: {what}") from None
        yield


def _lock_file(descriptor: int, holders: Literal["alone", "shared"]) -> None:
    if holders == "shared" and fcntl is not None:
        # filelock's lock for many readers is an SQLite file, which a kill can damage.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    elif not lock_descriptor(descriptor, blocking=False):
        raise BlockingIOError


def _remove_rests(path: Path) -> None:
    """Remove the temporary files of `path` from ended processes of this machine."""
    if os.name != "posix":
        return  # on other systems signal 0 ends the process
    for rest in path.parent.glob(f".{escape(path.name)}.{_MACHINE}-*.part*"):
        match = re.search(r"-(\d{1,9})\.\d+\.part", rest.name)
        if match is None:
            continue
        try:
            os.kill(int(match[1]), 0)
        except ProcessLookupError:
            rest.unlink(missing_ok=True)
        except OSError:  # the process of another user, still running
            continue


_MACHINE = f"{zlib.crc32(socket.gethostname().encode()) & 0xFFFF:04x}"
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


class _Loader(yaml.SafeLoader):
    """A loader for plain types only. It refuses anchors, and a key that occurs twice in a mapping: YAML would
    silently use the last one.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuse anchors and references to them."""
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.composer.ComposerError(
                None, None, "anchors (&, *) are not read; write the value out", event.start_mark
            )
        return super().compose_node(parent, index)

    def fetch_flow_collection_start(self, kind: type[yaml.Token]) -> None:
        """Refuse brackets that are nested too deep."""
        if self.flow_level >= _DEEPEST:
            raise yaml.scanner.ScannerError(None, None, "nested too deep", self.get_mark())
        super().fetch_flow_collection_start(kind)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Refuse a whole number beyond 64 bits."""
        number = super().construct_yaml_int(node)
        if not -(2**63) <= number < 2**63:
            raise yaml.constructor.ConstructorError(
                None, None, "a whole number beyond 64 bits", node.start_mark
            )
        return number

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        """Refuse a value whose conversion would take long."""
        if isinstance(node, yaml.ScalarNode) and len(node.value) > _LONGEST_SCALAR:
            raise yaml.constructor.ConstructorError(
                None, None, f"a value of {len(node.value):,} characters", node.start_mark
            )
        return super().construct_scalar(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Check the keys, then construct the mapping as YAML does."""
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"'{key.value}' is given twice", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep=deep)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


BEST, LAST, PHASE_1 = "checkpoint_best.pt", "checkpoint_last.pt", "checkpoint_phase1.pt"
"""The checkpoint for prediction, the newest checkpoint, and the checkpoint at the end of the first of two
phases.
"""
TUNED = "tuned.yaml"
"""Prior correction, thresholds and clean-up for the best checkpoint."""
