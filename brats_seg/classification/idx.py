"""IDX files (the format of MNIST), compressed or not -> arrays."""

import math
import os
from pathlib import Path

import numpy as np
from isal import igzip
from jaxtyping import UInt8

from brats_seg.core.arrays import MAX_INFLATION, UNPACK_ERRORS, fill
from brats_seg.core.errors import InputError
from brats_seg.core.files import open_regular

_UNSIGNED_BYTE = 8  # the type code of the IDX files of MNIST and similar sets
_MOST_BYTES = 1 << 32


def read_idx(path: Path, *, n_axes: int) -> UInt8[np.ndarray, "..."]:
    """Read an IDX file of bytes. A file whose name ends in `.gz` is decompressed.

    Args:
        path: the file.
        n_axes: 1 for labels, 3 for images (n, y, x).

    Raises:
        InputError: the file is not an IDX file, is incomplete, or is longer than its header says.
    """
    packed = path.suffix == ".gz"
    try:
        with (
            open_regular(path) as file,
            igzip.IGzipFile(fileobj=file, mode="rb") if packed else file as stream,
        ):
            most = os.fstat(file.fileno()).st_size * (MAX_INFLATION if packed else 1)
            shape = _shape(stream.read(4 + 4 * n_axes), path=path, n_axes=n_axes)
            expected = math.prod(shape)
            if expected > _MOST_BYTES:
                raise InputError(f"{path}: its header asks for {expected} bytes; the most is {_MOST_BYTES}")
            content = fill(stream, min(expected, most))
            has_more = bool(stream.read(1))
    except UNPACK_ERRORS as error:
        said = getattr(error, "strerror", None) or error
        raise InputError(
            f"{path}: cannot be read: {said or 'the packed file is cut short'}; download it again"
        ) from None
    if content.size != expected or has_more:
        n_found = "more" if has_more else f"{content.size}"
        raise InputError(
            f"{path}: its header says {' x '.join(map(str, shape))} = {expected} bytes, and {n_found} "
            "follow; download it again"
        )
    return content.reshape(shape)


def _shape(header: bytes, *, path: Path, n_axes: int) -> tuple[int, ...]:
    if len(header) < 4 + 4 * n_axes:
        raise InputError(
            f"{path}: {len(header)} bytes are not an IDX header of {4 + 4 * n_axes}; download it again"
        )
    if header[:4] != bytes([0, 0, _UNSIGNED_BYTE, n_axes]):
        wanted = bytes([0, 0, _UNSIGNED_BYTE, n_axes]).hex()
        raise InputError(
            f"{path}: begins with {header[:4].hex()}; an IDX file of bytes with {n_axes} axes begins with "
            f"{wanted}"
        )
    return tuple(int(n) for n in np.frombuffer(header, ">u4", offset=4))
