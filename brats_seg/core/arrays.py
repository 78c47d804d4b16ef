"""npy and npz files -> arrays. A header is matched by a pattern, not evaluated.

NumPy's own reader of headers accepts lengths of -1 and True, and does not catch TokenError and MemoryError.
"""

import gzip
import math
import os
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from isal import isal_zlib
from jaxtyping import Shaped, UInt8

from brats_seg.core.errors import InputError, printable
from brats_seg.core.files import open_regular

MAX_INFLATION = 1040
"""Largest compression ratio. Deflate stores at most 258 bytes in 2 bits, which is 1032 to 1."""

UNPACK_ERRORS: tuple[type[Exception], ...] = (
    EOFError,
    OSError,
    gzip.BadGzipFile,
    zlib.error,
    cast(type[Exception], isal_zlib.error),
)
"""The errors of reading damaged gzip or zlib data."""

_CHUNK = 1 << 20


def fill(stream: Any, n_bytes: int) -> UInt8[np.ndarray, " n"]:
    """The next bytes of a stream that has `readinto`, up to `n_bytes`; fewer if the stream ends. Memory is
    allocated only as it is filled.
    """
    buffer = np.empty(n_bytes, np.uint8)
    done = 0
    while done < n_bytes:
        n = stream.readinto(buffer[done:].data)
        if not n:
            return buffer[:done]
        done += n
    return buffer


def native_order(raw: UInt8[np.ndarray, " n"], dtype: np.dtype[Any]) -> Shaped[np.ndarray, " m"]:
    """Bytes as numbers of a type, converted in place to the byte order of this machine."""
    values = raw.view(dtype)
    return values if dtype.isnative else values.byteswap(inplace=True).view(dtype.newbyteorder("="))


def inflate(stream: Any, n_packed: int, *, n_bytes: int) -> UInt8[np.ndarray, " n"]:
    """Decompress zlib or gzip data that must give exactly `n_bytes`.

    Args:
        stream: a file whose position is the first compressed byte.
        n_packed: largest number of compressed bytes to read.
        n_bytes: number of decompressed bytes.

    Raises:
        EOFError: the data end early or give more bytes.
        Exception: one of `UNPACK_ERRORS`.
    """
    unpacker = isal_zlib.decompressobj(wbits=47)  # 47: zlib or gzip
    buffer = np.empty(n_bytes, np.uint8)
    done = 0
    while not unpacker.eof:
        chunk = unpacker.unconsumed_tail or stream.read(min(_CHUNK, n_packed))
        n_packed -= 0 if unpacker.unconsumed_tail else len(chunk)
        if not chunk:
            raise EOFError(f"it unpacks to {done:,} bytes instead of {n_bytes:,}")
        piece = unpacker.decompress(chunk, min(_CHUNK, n_bytes - done + 1))
        if done + len(piece) > n_bytes:
            raise EOFError(f"it unpacks to more than {n_bytes:,} bytes")
        buffer[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
        done += len(piece)
    if done < n_bytes:
        raise EOFError(f"it unpacks to {done:,} bytes instead of {n_bytes:,}")
    return buffer


NPY_HEADER_BYTES = 12 + (1 << 16)
"""Largest number of header bytes of a `.npy` file. The header of an array of numbers has 128."""

_START = re.compile(rb"\x93NUMPY([\x01-\x03])\x00")
_HEADER = re.compile(
    r"\{'descr': '(?P<kind>[<>|=]?[biufUS]\d{1,4})', 'fortran_order': (?P<order>True|False), "
    r"'shape': \((?P<shape>(?:\d{1,18}, ?)*(?:\d{1,18})?)\),? ?\}\s*"
)
_MOST_AXES = 16
_DAMAGE: tuple[type[Exception], ...] = (
    *UNPACK_ERRORS,
    ValueError,
    ArithmeticError,
    LookupError,
    RuntimeError,
    zipfile.BadZipFile,
)
"""The errors of `zipfile` for bytes that are not a complete archive."""


@dataclass(frozen=True)
class ArrayHeader:
    """The content of the header of a `.npy` file: number type, lengths of the axes, order in memory, and
    start of the numbers.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    is_fortran: bool
    offset: int

    @property
    def n_bytes(self) -> int:
        """The number of bytes of the array."""
        return self.dtype.itemsize * math.prod(self.shape)


def parse_npy_header(start: bytes) -> ArrayHeader:
    """The header of a `.npy` file from its first `NPY_HEADER_BYTES`. Raises `ValueError` if it is not a
    header that NumPy writes for numbers.
    """
    match = _START.match(start)
    if match is None:
        raise ValueError("not a .npy file")
    first = 10 if match[1] == b"\x01" else 12
    offset = first + int.from_bytes(start[8:first], "little")
    header = _HEADER.fullmatch(start[first:offset].decode("latin1"))
    if header is None or len(start) < offset:
        raise ValueError("has a damaged header")
    shape = tuple(int(n) for n in header["shape"].split(",") if n.strip())
    if len(shape) > _MOST_AXES:
        raise ValueError("has a damaged header")
    try:
        dtype = np.dtype(header["kind"])
    except TypeError:
        raise ValueError("has a damaged header") from None
    if not dtype.itemsize:
        raise ValueError("has a damaged header")
    return ArrayHeader(dtype, shape, header["order"] == "True", offset)


def read_npy_header(path: Path) -> ArrayHeader:
    """The header of a `.npy` file in C order, checked against the size of the file.

    Raises:
        InputError: the file does not exist, has no array of numbers in C order, or is shorter or longer than
            its header says.
    """
    try:
        with open_regular(path) as file:
            n_bytes, start = os.fstat(file.fileno()).st_size, file.read(NPY_HEADER_BYTES)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    try:
        header = parse_npy_header(start)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    if header.is_fortran or n_bytes != header.offset + header.n_bytes:
        raise InputError(f"{path}: {n_bytes:,} bytes do not hold {header.shape} of {header.dtype} in C order")
    return header


def read_npy(path: Path) -> np.ndarray:
    """The array of a `.npy` file. Raises `InputError` as `read_npy_header`."""
    header = read_npy_header(path)
    return np.fromfile(path, header.dtype, offset=header.offset).reshape(header.shape)


def read_npz(path: Path, *, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file: all arrays, or the existing arrays among `names`. No code in the file is
    executed.

    Raises:
        InputError: the file is not a zip file of arrays of numbers or texts, is truncated or encrypted, or
            has another compression than files of NumPy.
        OSError: the file cannot be opened.
    """
    with open_regular(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
                wanted = (
                    members if names is None else {name: members[name] for name in names if name in members}
                )
                return {name: _member(archive, member) for name, member in wanted.items()}
        except _DAMAGE as error:
            said = printable(" ".join(str(error).split()) or type(error).__name__, limit=150)
            raise InputError(f"{path}: cannot be read as .npz: {said}") from None


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    name = printable(member.filename, limit=60)
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
        raise ValueError(f"{name} is encrypted, or compressed by another method than deflate")
    if member.file_size > MAX_INFLATION * member.compress_size:
        raise ValueError(
            f"{name} claims {member.file_size:,} bytes, but its {member.compress_size:,} compressed bytes "
            "cannot hold them"
        )
    with archive.open(member) as stream:
        header = parse_npy_header(archive.open(member).read(NPY_HEADER_BYTES))
        if header.offset + header.n_bytes != member.file_size:
            raise ValueError(
                f"{name} has {member.file_size:,} bytes, but its header claims "
                f"{header.offset + header.n_bytes:,}"
            )
        stream.read(header.offset)
        raw = fill(stream, header.n_bytes)
        if raw.size < header.n_bytes or stream.read(1):  # the read at the end verifies the checksum
            raise ValueError(f"{name} is truncated")
    return raw.view(header.dtype).reshape(header.shape, order="F" if header.is_fortran else "C")
