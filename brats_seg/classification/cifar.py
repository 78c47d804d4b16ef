"""CIFAR-10 and CIFAR-100 batches, binary and python -> arrays. A file may have any number of rows."""

import codecs
import io
import pickle
import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from brats_seg.core.errors import InputError, printable
from brats_seg.core.files import read_bytes, read_text, shown

Rows = tuple[UInt8[np.ndarray, "n y x c"], Int64[np.ndarray, " n"]]
"""Images and the class of each."""
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MOST_BYTES = 1 << 32
"""The most bytes of a batch; a batch of CIFAR-10 has 31 million."""
_SIDE, _CHANNELS = 32, 3
_PIXELS = _CHANNELS * _SIDE * _SIDE


@dataclass(frozen=True)
class Cifar:
    """The file format of one of the two sets.

    Attributes:
        name: name in messages.
        n_classes: number of classes; labels are 0 to n_classes - 1.
        labels: number of label bytes before the pixels of a binary row. CIFAR-100 has two, and the second is
            the class.
        key: key of the labels in a pickled batch.
    """

    name: str
    n_classes: int
    labels: int
    key: bytes


CIFAR10 = Cifar("CIFAR-10", 10, labels=1, key=b"labels")
CIFAR100 = Cifar("CIFAR-100", 100, labels=2, key=b"fine_labels")


def read_binary_batch(path: Path, *, kind: Cifar = CIFAR10) -> Rows:
    """Read one `.bin` file: rows of 1 label (CIFAR-100: 2) and 3,072 pixels, channel by channel.

    Raises:
        InputError: a row is incomplete, or a label is not a class.
    """
    content = np.frombuffer(read_bytes(path, limit=MOST_BYTES), np.uint8)
    n_bytes = kind.labels + _PIXELS
    if content.size % n_bytes or not content.size:
        raise InputError(
            f"{path}: {content.size} bytes are not whole rows of {n_bytes} ({kind.labels} "
            f"label{'s' * (kind.labels > 1)}, {_PIXELS} pixels); download it again"
        )
    rows = content.reshape(-1, n_bytes)
    return _rows(rows[:, kind.labels :], rows[:, kind.labels - 1].astype(np.int64), path=path, kind=kind)


def read_python_batch(path: Path, *, kind: Cifar = CIFAR10) -> Rows:
    """Read one pickled batch: a mapping with `data` (n, 3072) uint8 and `labels` (CIFAR-100: `fine_labels`),
    n whole numbers.

    Raises:
        InputError: the file names a class other than NumPy's array builders, or has other content.
    """
    content, key = _unpickle(path), kind.key.decode()
    try:
        data, labels = content[b"data"], content[kind.key]
    except (KeyError, TypeError):
        raise InputError(f"{path}: holds no 'data' and '{key}'; a {kind.name} batch does") from None
    if (
        not isinstance(data, np.ndarray)
        or data.dtype != np.uint8
        or data.ndim != 2
        or data.shape[1] != _PIXELS
    ):
        raise InputError(f"{path}: 'data' is not uint8 in rows of {_PIXELS} pixels; download it again")
    if not isinstance(labels, list) or not all(
        isinstance(label, int) and abs(label) < 1 << 31 for label in labels
    ):
        raise InputError(f"{path}: '{key}' is not a list of whole numbers; download it again")
    if len(labels) != len(data):
        raise InputError(f"{path}: {len(data)} images and {len(labels)} labels; every image has one")
    return _rows(data, np.array(labels, np.int64), path=path, kind=kind)


def read_fine_names(path: Path) -> tuple[str, ...]:
    """Class names of CIFAR-100: the lines of `fine_label_names.txt`, or those in the pickled file `meta`.

    Raises:
        InputError: the file does not have 100 names.
    """
    if path.suffix == ".txt":
        names: Any = read_text(path).split()
    else:
        content = _unpickle(path)
        names = content.get(b"fine_label_names") if isinstance(content, dict) else None
        are_bytes = isinstance(names, list) and all(isinstance(name, bytes) for name in names)
        names = [name.decode("latin1") for name in names] if are_bytes else []
    if len(names) != CIFAR100.n_classes:
        raise InputError(f"{path}: {len(names)} class names; CIFAR-100 has {CIFAR100.n_classes}")
    return tuple(names)


def _rows(
    pixels: UInt8[np.ndarray, "n pixels"], labels: Int64[np.ndarray, " n"], *, path: Path, kind: Cifar
) -> Rows:
    wrong = np.flatnonzero((labels < 0) | (labels >= kind.n_classes))
    if wrong.size:
        raise InputError(
            f"{path}: row {wrong[0]} has label {labels[wrong[0]]}; the labels are 0..{kind.n_classes - 1}"
        )
    return np.ascontiguousarray(pixels.reshape(-1, _CHANNELS, _SIDE, _SIDE).transpose(0, 2, 3, 1)), labels


class _Kind:
    """A number type in a pickle. It replaces NumPy's `dtype`."""

    def __init__(self, name: Any, align: Any = False, copy: Any = True) -> None:
        self.name = name.decode("latin1") if isinstance(name, bytes) else str(name)

    def __setstate__(self, state: Any) -> None:
        """Ignore byte order and fields: an array of bytes has neither."""


class _Array:
    """An array in a pickle. It replaces NumPy's `ndarray`."""

    values = np.zeros(0, np.uint8)

    def __setstate__(self, state: tuple[Any, Any, Any, Any, Any]) -> None:
        """Read (version, shape, number type, whether in Fortran order, bytes)."""
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
    """The array; an empty array if its numbers are not bytes."""
    if (
        not isinstance(kind, _Kind)
        or kind.name not in ("u1", "|u1")
        or not isinstance(raw, bytes | bytearray)
    ):
        return np.zeros(0, np.uint8)
    return np.frombuffer(raw, np.uint8).reshape(shape, order=order)


def _encode_latin1(text: str, encoding: str) -> bytes:
    """The function with which a Python 3 pickle of protocol 2 creates bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded as {encoding!r}")
    return codecs.encode(text, "latin1")


# The names with which NumPy 1 and 2 pickle an array, in every protocol. A pickle can call any function that
# it can name. Therefore it gets these replacements.
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
_MOST_TUPLES = 200  # a batch has 10; hashing a thousand nested tuples would crash the process


class _Unpickler(pickle.Unpickler):
    """Plain types and arrays of bytes."""

    def find_class(self, module: str, name: str) -> Any:
        """The replacement of a name in the pickle."""
        if (module, name) not in _ALLOWED:
            raise InputError(
                f"names {module}.{name}; a CIFAR batch names only NumPy's array builders, so the file was "
                "not read"
            )
        return _ALLOWED[module, name]


def _check_opcodes(content: bytes) -> None:
    """Raise `pickle.UnpicklingError` before any object is created, because nine bytes can request a table of
    6 GB.
    """
    n_tuples = 0
    for number, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        n_tuples += "TUPLE" in opcode.name
        is_far = opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > number
        if is_far or opcode.name in _REFUSED_OPCODES or n_tuples > _MOST_TUPLES:
            raise pickle.UnpicklingError(f"the instruction {opcode.name} that no CIFAR batch has")


def _unpickle(path: Path) -> Any:
    content = read_bytes(path, limit=MOST_BYTES)
    try:
        _check_opcodes(content)
        tree = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle can raise any exception
        said = printable(" ".join(str(error).split()) or type(error).__name__, limit=150)
        raise InputError(f"{path}: not a pickled CIFAR batch: {said}") from None
    if not isinstance(tree, dict):
        return tree
    return {key: value.values if isinstance(value, _Array) else value for key, value in tree.items()}
