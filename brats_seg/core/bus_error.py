"""Print one line instead of a bus error if a mapped file was truncated."""

import ctypes
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from numba import cfunc, types

_LINE = ctypes.create_string_buffer(4096)
"""The text that the handler prints: the bytes up to the first 0."""


@contextmanager
def say_bus_error(line: str) -> Iterator[None]:
    """During the block, a bus error prints a line on standard error and ends the process with exit code 1.

    A read beyond the end of a mapped file is a bus error, which ends a process without a message. A handler
    in Python does not help, because Python would run it after the read, and the read never returns. On
    Windows this function does nothing, because Windows has no bus errors.

    Args:
        line: the line to print; it is cut after 4,000 bytes.
    """
    if sys.platform == "win32":
        yield
        return
    set_handler = ctypes.CDLL(None).signal
    set_handler.argtypes, set_handler.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    line_before = _LINE.value
    _LINE.value = line.encode()[:4000] + b"\n"
    handler_before = set_handler(signal.SIGBUS, _handler().address)
    try:
        yield
    finally:
        set_handler(signal.SIGBUS, handler_before)
        _LINE.value = line_before


@cache
def _handler() -> Any:
    """Compiled code that prints the line and ends the process, without Python."""
    libc = ctypes.CDLL(None)
    write, strlen, leave = libc.write, libc.strlen, libc._exit
    write.argtypes, write.restype = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t), ctypes.c_ssize_t
    strlen.argtypes, strlen.restype = (ctypes.c_void_p,), ctypes.c_size_t
    leave.argtypes, leave.restype = (ctypes.c_int,), None
    address = ctypes.addressof(_LINE)

    def handle(number):  # type: ignore[no-untyped-def]
        write(2, address, strlen(address))
        leave(1)

    return cfunc(types.void(types.int32))(handle)
