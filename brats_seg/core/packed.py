"""Packed and plain bytes -> an array of a known size, no more memory than the file can fill."""

import gzip
import zlib
from typing import Any, cast

import numpy as np
from isal import isal_zlib
from jaxtyping import UInt8

MAX_INFLATION = 1040
"""Deflate packs at most 258 bytes into 2 bits, 1032 to 1: a packed file of n bytes cannot hold more than this
times n.
"""

UNPACK_ERRORS: tuple[type[Exception], ...] = (
    EOFError,
    OSError,
    gzip.BadGzipFile,
    zlib.error,
    cast(type[Exception], isal_zlib.error),
)
"""What reading damaged gzip or zlib data raises."""

_CHUNK = 1 << 20


def fill(stream: Any, n_bytes: int) -> UInt8[np.ndarray, " n"]:
    """The next bytes of a stream that has `readinto`, up to `n_bytes`: fewer where the stream ends. Memory is
    used as it is filled.
    """
    buffer = np.empty(n_bytes, np.uint8)
    done = 0
    while done < n_bytes:
        n = stream.readinto(buffer[done:].data)
        if not n:
            return buffer[:done]
        done += n
    return buffer


def inflate(stream: Any, n_packed: int, *, n_bytes: int) -> UInt8[np.ndarray, " n"]:
    """Unpack zlib or gzip data that must give exactly `n_bytes`.

    Args:
        stream: a file that stands at the first packed byte.
        n_packed: packed bytes to read, at most.
        n_bytes: bytes wanted.

    Raises:
        EOFError: the data end early, or give more.
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
