"""CIFAR-10 batches, binary and python -> arrays. Any number of rows a file."""

import codecs
import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from brats_seg.core.errors import InputError, printable
from brats_seg.core.files import read_bytes, shown

Rows = tuple[UInt8[np.ndarray, "n y x c"], Int64[np.ndarray, " n"]]
"""Images and the class of each."""
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MOST_BYTES = 1 << 32
"""Of a batch; one of CIFAR-10 has 31 million."""
_SIDE, _CHANNELS = 32, 3
_PIXELS = _CHANNELS * _SIDE * _SIDE
_ROW_BYTES = 1 + _PIXELS


def read_binary_batch(path: Path) -> Rows:
    """Read one `.bin` file: rows of 1 label and 3,072 pixels, channel by channel.

    Raises:
        InputError: a row is cut short, or a label is none of ten classes.
    """
    content = np.frombuffer(read_bytes(path, limit=MOST_BYTES), np.uint8)
    if content.size % _ROW_BYTES or not content.size:
        raise InputError(
            f"{path}: {content.size} bytes are not whole rows of {_ROW_BYTES} (1 label, {_PIXELS} pixels); "
            "get it again"
        )
    rows = content.reshape(-1, _ROW_BYTES)
    return _rows(rows[:, 1:], rows[:, 0].astype(np.int64), path=path)


def read_python_batch(path: Path) -> Rows:
    """Read one pickled batch: a mapping with `data` (n, 3072) uint8 and `labels`, n whole numbers.

    Raises:
        InputError: it names a class that is not NumPy's array builder, or holds something else.
    """
    content = _unpickle(path)
    try:
        data, labels = content[b"data"], content[b"labels"]
    except (KeyError, TypeError):
        raise InputError(f"{path}: holds no 'data' and 'labels'; a CIFAR-10 batch does") from None
    if (
        not isinstance(data, np.ndarray)
        or data.dtype != np.uint8
        or data.ndim != 2
        or data.shape[1] != _PIXELS
    ):
        raise InputError(f"{path}: 'data' is no uint8 array of rows of {_PIXELS} pixels; get it again")
    if not isinstance(labels, list) or not all(
        isinstance(label, int) and abs(label) < 1 << 31 for label in labels
    ):
        raise InputError(f"{path}: 'labels' is no list of whole numbers; get it again")
    if len(labels) != len(data):
        raise InputError(f"{path}: {len(data)} images and {len(labels)} labels; every image has one")
    return _rows(data, np.array(labels, np.int64), path=path)


def _rows(pixels: UInt8[np.ndarray, "n pixels"], labels: Int64[np.ndarray, " n"], *, path: Path) -> Rows:
    wrong = np.flatnonzero((labels < 0) | (labels >= len(CIFAR10_CLASSES)))
    if wrong.size:
        raise InputError(
            f"{path}: row {wrong[0]} has label {labels[wrong[0]]}; the labels are "
            f"0..{len(CIFAR10_CLASSES) - 1}"
        )
    images = pixels.reshape(-1, _CHANNELS, _SIDE, _SIDE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels


class _Kind:
    """A number type in a pickle: what NumPy pickles `dtype` as."""

    def __init__(self, name: Any, align: Any = False, copy: Any = True) -> None:
        self.name = name.decode("latin1") if isinstance(name, bytes) else str(name)

    def __setstate__(self, state: Any) -> None:
        """Byte order and fields, which an array of bytes has none of."""


class _Array:
    """An array in a pickle: what NumPy pickles `ndarray` as."""

    values = np.zeros(0, np.uint8)

    def __setstate__(self, state: tuple[Any, Any, Any, Any, Any]) -> None:
        """Take (version, shape, number type, whether in Fortran order, bytes)."""
        _, shape, kind, is_fortran, raw = state
        self.values = _bytes_as_array(raw, kind, shape, "F" if is_fortran else "C")


def _make_array(subtype: Any, shape: Any, kind: Any) -> _Array:
    """NumPy's `_reconstruct`: an empty array, whose content follows."""
    if shape != (0,):
        raise pickle.UnpicklingError(f"an array made with the shape {shown(shape)}")
    return _Array()


def _from_buffer(raw: Any, kind: Any, shape: Any, order: Any) -> _Array:
    """NumPy's `_frombuffer` of protocol 5."""
    array = _Array()
    array.values = _bytes_as_array(raw, kind, shape, order)
    return array


def _bytes_as_array(raw: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
    """The array, empty where it is of other numbers than bytes."""
    if (
        not isinstance(kind, _Kind)
        or kind.name not in ("u1", "|u1")
        or not isinstance(raw, bytes | bytearray)
    ):
        return np.zeros(0, np.uint8)
    return np.frombuffer(raw, np.uint8).reshape(shape, order=order)


def _encode_latin1(text: str, encoding: str) -> bytes:
    """How a Python 3 pickle of protocol 2 makes bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded as {encoding!r}")
    return codecs.encode(text, "latin1")


# What an array is pickled as, by NumPy 1 and 2 and every protocol. A pickle can call whatever it can name: it
# is given these stand-ins.
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _Kind,
    ("numpy.core.multiarray", "_reconstruct"): _make_array,
    ("numpy._core.multiarray", "_reconstruct"): _make_array,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _encode_latin1,
}
_REFUSED_OPCODES = frozenset(
    {"EXT1", "EXT2", "EXT4", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "PERSID", "BINPERSID", "NEXT_BUFFER"}
)
_MOST_TUPLES = 200  # a batch has 10; a thousand within each other end the process when they are hashed


class _Unpickler(pickle.Unpickler):
    """Plain types and arrays of bytes."""

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name in the pickle."""
        if (module, name) not in _ALLOWED:
            raise InputError(
                f"names {module}.{name}; a CIFAR-10 batch names NumPy's array builders alone: it was not read"
            )
        return _ALLOWED[module, name]


def _check_opcodes(content: bytes) -> None:
    """Raise `pickle.UnpicklingError` before anything is built: nine bytes can ask for a table of 6 GB."""
    n_tuples = 0
    for number, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        n_tuples += "TUPLE" in opcode.name
        is_far = opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > number
        if is_far or opcode.name in _REFUSED_OPCODES or n_tuples > _MOST_TUPLES:
            raise pickle.UnpicklingError(f"the instruction {opcode.name} that no CIFAR-10 batch has")


def _unpickle(path: Path) -> Any:
    content = read_bytes(path, limit=MOST_BYTES)
    try:
        _check_opcodes(content)
        tree = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle can fail in any way its instructions can
        said = printable(" ".join(str(error).split()) or type(error).__name__, limit=150)
        raise InputError(f"{path}: not a pickled CIFAR-10 batch: {said}") from None
    if not isinstance(tree, dict):
        return tree
    return {key: value.values if isinstance(value, _Array) else value for key, value in tree.items()}
