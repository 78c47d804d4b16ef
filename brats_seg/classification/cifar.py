"""CIFAR-10 batches, binary and python -> arrays. Any number of rows a file."""

import codecs
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from brats_seg.errors import InputError

Rows = tuple[UInt8[np.ndarray, "n y x c"], Int64[np.ndarray, " n"]]
"""Images and the class of each."""
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_SIDE, _CHANNELS = 32, 3
_PIXELS = _CHANNELS * _SIDE * _SIDE
_ROW_BYTES = 1 + _PIXELS


def read_binary_batch(path: Path) -> Rows:
    """Read one `.bin` file: rows of 1 label and 3,072 pixels, channel by channel.

    Raises:
        InputError: a row is cut short, or a label is none of ten classes.
    """
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    if content.size % _ROW_BYTES or not content.size:
        raise InputError(f"{path}: {content.size} bytes are not whole rows of {_ROW_BYTES} (1 label, {_PIXELS} pixels); get it again")
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
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != _PIXELS:
        raise InputError(f"{path}: 'data' is no uint8 array of rows of {_PIXELS} pixels; get it again")
    if not isinstance(labels, list) or not all(isinstance(label, int) and abs(label) < 1 << 31 for label in labels):
        raise InputError(f"{path}: 'labels' is no list of whole numbers; get it again")
    if len(labels) != len(data):
        raise InputError(f"{path}: {len(data)} images and {len(labels)} labels; every image has one")
    return _rows(data, np.array(labels, np.int64), path=path)


def _rows(pixels: UInt8[np.ndarray, "n pixels"], labels: Int64[np.ndarray, " n"], *, path: Path) -> Rows:
    wrong = np.flatnonzero((labels < 0) | (labels >= len(CIFAR10_CLASSES)))
    if wrong.size:
        raise InputError(f"{path}: row {wrong[0]} has label {labels[wrong[0]]}; the labels are 0..{len(CIFAR10_CLASSES) - 1}")
    images = pixels.reshape(-1, _CHANNELS, _SIDE, _SIDE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels


# What an array is pickled as, by NumPy 1 and 2 and every protocol, and where it lies today. A pickle can call whatever it can name.
_ALLOWED = {
    ("numpy", "ndarray"): "numpy",
    ("numpy", "dtype"): "numpy",
    ("numpy.core.multiarray", "_reconstruct"): "numpy._core.multiarray",
    ("numpy._core.multiarray", "_reconstruct"): "numpy._core.multiarray",
    ("numpy.core.numeric", "_frombuffer"): "numpy._core.numeric",
    ("numpy._core.numeric", "_frombuffer"): "numpy._core.numeric",
}


class _Unpickler(pickle.Unpickler):
    """Plain types and NumPy arrays."""

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the pickle stands for."""
        if (module, name) == ("_codecs", "encode"):
            return _encode_latin1
        if (module, name) not in _ALLOWED:
            raise InputError(f"names {module}.{name}; a CIFAR-10 batch names NumPy's array builders alone: it was not read")
        return super().find_class(_ALLOWED[module, name], name)


def _encode_latin1(text: str, encoding: str) -> bytes:
    """How a Python 3 pickle of protocol 2 makes bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded as {encoding!r}")
    return codecs.encode(text, "latin1")


def _unpickle(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return _Unpickler(file, encoding="bytes").load()
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle can fail in any way its instructions can
        raise InputError(f"{path}: not a pickled CIFAR-10 batch: {' '.join(str(error).split()) or type(error).__name__}") from None
