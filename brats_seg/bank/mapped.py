"""Volumes of a bank, memory-mapped at first use without an open file descriptor."""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, Shaped

from brats_seg.core.arrays import read_npy_header
from brats_seg.core.errors import InputError
from brats_seg.core.shapes import Ids, Image, TissueMap

_MADV_RANDOM = 1
_LIBC = ctypes.CDLL(None) if os.name == "posix" else None


def map_array(path: Path, *, read_ahead: bool = True) -> Shaped[np.ndarray, "..."]:
    """Map a `.npy` file, read-only, and close it.

    Python's `mmap` keeps a file descriptor open: three files for each of 1,251 cases exceed the usual limit
    of 1,024. torch maps the whole file as private memory, which shares the pages of the page cache, and
    closes the file.

    Args:
        path: the file.
        read_ahead: False if single numbers are read at scattered positions: each access then reads one page,
            not the read-ahead of the disk (128 KB on most machines, 8 MB on one).

    Raises:
        InputError: the file does not exist, is not a `.npy` file in C order, or is shorter than its header
            says.
    """
    try:
        header = read_npy_header(path)
    except InputError as error:
        raise InputError(f"{error}; build the bank again") from None
    n_bytes = header.offset + header.n_bytes
    try:
        raw = torch.from_file(str(path), shared=False, size=n_bytes, dtype=torch.uint8).numpy()
    except RuntimeError as error:
        raise InputError(f"{path}: cannot be mapped: {error}") from None
    if not read_ahead and _LIBC is not None and hasattr(_LIBC, "madvise"):
        _LIBC.madvise(ctypes.c_void_p(raw.ctypes.data), ctypes.c_size_t(n_bytes), _MADV_RANDOM)
    raw.flags.writeable = False
    return raw[header.offset :].view(header.dtype).reshape(header.shape)


class Volumes:
    """Images and labels of many cases, each loaded at first use and kept, and their addresses for kernels."""

    def __init__(
        self,
        shapes: Int64[np.ndarray, "cases 3"],
        *,
        n_channels: int,
        load: Callable[[int], tuple[Image, TissueMap]],
    ) -> None:
        """Keep the shapes (Z, Y, X); nothing is loaded yet.

        Args:
            shapes: shape of each case.
            n_channels: number of modalities in each image.
            load: case number -> its image and its label, in C order.
        """
        self.shapes = shapes
        self.n_channels = n_channels
        self.n_voxels = shapes.prod(axis=1)
        self.image_addresses = np.zeros(len(shapes), np.uint64)
        self.label_addresses = np.zeros(len(shapes), np.uint64)
        self._load = load
        self._pairs: dict[int, tuple[Image, TissueMap]] = {}

    def pair(self, case: int) -> tuple[Image, TissueMap]:
        """Image and label of a case. Raises `InputError` if a shape or type is wrong."""
        if case not in self._pairs:
            image, label = self._load(case)
            shape = tuple(self.shapes[case].tolist())
            if (
                image.shape != (*shape, self.n_channels)
                or label.shape != shape
                or image.dtype != np.float16
                or label.dtype != np.uint8
            ):
                raise InputError(
                    f"case number {case}: image {image.shape} {image.dtype} and label {label.shape} "
                    f"{label.dtype} are not {shape}"
                )
            self._pairs[case] = (np.ascontiguousarray(image), np.ascontiguousarray(label))
            self.image_addresses[case], self.label_addresses[case] = (
                array.ctypes.data for array in self._pairs[case]
            )
        return self._pairs[case]

    def check(self, ids: Ids) -> None:
        """Load every case of the `ids` (case << 32 | flat position). Raises `InputError` if an id lies in no
        case.
        """
        cases, positions = ids >> 32, ids & 0xFFFFFFFF
        if ids.size and not 0 <= cases.min() <= cases.max() < len(self.shapes):
            raise InputError(
                f"voxel id of case number {cases[(cases < 0) | (cases >= len(self.shapes))][0]}; the bank "
                f"has {len(self.shapes)} cases"
            )
        beyond = positions >= self.n_voxels[cases]
        if beyond.any():
            case = cases[beyond][0]
            raise InputError(
                f"voxel id at position {positions[beyond][0]} of case number {case}, which has "
                f"{self.n_voxels[case]} voxels"
            )
        for case in np.unique(cases[self.label_addresses[cases] == 0]).tolist():
            self.pair(case)
