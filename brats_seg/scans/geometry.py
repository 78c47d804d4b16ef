"""Where a volume's voxels lie: shape, spacing, orientation, and the header fields to write back."""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Num
from nibabel.orientations import aff2axcodes, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from brats_seg.core.arrays import UNPACK_ERRORS
from brats_seg.core.errors import InputError
from brats_seg.core.files import open_regular

Affine = Float64[np.ndarray, "4 4"]
Rows = tuple[tuple[float, ...], ...]

_MAX_VOXELS = (
    2**29
)  # 640 x 880 x 880, a whole head at 0.25 mm, is 496 million; a bank keeps a flat position in 32 bits
_LPS = ("L", "P", "S")
_MM_PER_UNIT = {
    0: 1.0,
    1: 1000.0,
    2: 1.0,
    3: 0.001,
}  # spatial codes of xyzt_units: unknown, meter, millimeter, micron


class ScanError(InputError):
    """A scan file has a problem. Besides the one-line message it has `path`, `what` (the problem) and
    `expected`.
    """

    def __init__(self, path: Path, what: str, *, expected: str):
        super().__init__(f"{path}: {what}; expected {expected}")
        self.path, self.what, self.expected = path, what, expected

    def __reduce__(self) -> tuple[Callable[..., "ScanError"], tuple[Path, str]]:
        return partial(ScanError, expected=self.expected), (self.path, self.what)


@contextmanager
def opened_scan(path: Path, *, kind: str) -> Iterator[io.BufferedReader]:
    """An open scan file. Each error of opening, reading or unpacking becomes one line.

    A damaged field may be a signaling NaN or overflow: it is recognized by its value, not by a NumPy warning.
    """
    try:
        file = open_regular(path)
    except OSError as error:
        raise ScanError(path, f"cannot be read: {error.strerror or error}", expected="a file") from None
    try:
        with file, np.errstate(invalid="ignore", over="ignore"):
            yield file
    except UNPACK_ERRORS as error:
        raise ScanError(path, f"is truncated or damaged: {error}", expected=f"a whole {kind} file") from None


@dataclass(frozen=True)
class NiftiGrid:
    """The header fields that place a NIfTI file's voxels in space, as stored, so that they can be written
    back unchanged.
    """

    pixdim: tuple[float, ...]
    qform_code: int
    sform_code: int
    quaternion: tuple[float, float, float]
    offset: tuple[float, float, float]
    srow: Rows
    xyzt_units: int


@dataclass(frozen=True)
class Geometry:
    """Where a volume's voxels lie, and how its file stores them.

    Attributes:
        shape: (Z, Y, X) after reading, in LPS.
        spacing_mm: (Z, Y, X) after reading, in LPS, in millimeters, whatever the unit of the file.
        affine: four rows; native voxel index (i, j, k, 1) -> (R, A, S, 1) in the file's own unit, as nibabel
            gives it.
        axis_codes: the direction in which each native axis i, j, k grows, such as ("L", "P", "S").
        dtype: NumPy name of the stored number type, native byte order.
        nifti: the fields to write back, None if the source is not NIfTI.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    affine: Rows
    axis_codes: tuple[str, str, str]
    dtype: str
    nifti: NiftiGrid | None = None

    @property
    def native_shape(self) -> tuple[int, int, int]:
        """(i, j, k) as stored."""
        lps = self.shape[::-1]
        i, j, k = (lps[int(axis)] for axis in to_lps(self.axis_codes)[:, 0])
        return i, j, k

    @property
    def affine_mm(self) -> Affine:
        """Index (i, j, k, 1) in the file -> (R, A, S, 1) in millimeters, whatever the unit of the file."""
        return np.diag([*(_unit_mm(self.nifti),) * 3, 1.0]) @ np.asarray(self.affine)

    @property
    def lps_affine(self) -> Affine:
        """Index (x, y, z, 1) after reading -> (R, A, S, 1) in millimeters."""
        return self.affine_mm @ inv_ornt_aff(to_lps(self.axis_codes), self.native_shape)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return asdict(self)


def make_geometry(
    shape: tuple[int, int, int],
    *,
    spacing_mm: tuple[float | int, float | int, float | int] = (1.0, 1.0, 1.0),
    orientation: str = "LPS",
    affine: Num[np.ndarray, "4 4"] | None = None,
    dtype: str = "int16",
) -> Geometry:
    """The geometry of a new volume.

    Args:
        shape: (Z, Y, X) in LPS.
        spacing_mm: (Z, Y, X) in LPS; ignored if `affine` is given.
        orientation: directions of the native axes i, j, k; they do not change the position of the volume in
            space.
        affine: native voxel index -> RAS in millimeters; overrides spacing and orientation.
        dtype: NumPy name of the number type to store.
    """
    if affine is None:
        z, y, x = spacing_mm
        lps_affine = np.array(
            [[-x, 0, 0, 0], [0, -y, 0, (shape[1] - 1) * y], [0, 0, z, 0], [0, 0, 0, 1]]
        )  # the origin of BraTS scans
        turn = to_lps(orientation)
        native_shape = tuple(shape[::-1][int(axis)] for axis in turn[:, 0])
        affine = lps_affine @ np.linalg.inv(inv_ornt_aff(turn, native_shape))
    rows = np.asarray(affine, np.float64)
    codes = _axis_codes(rows)
    return Geometry(shape, _spacing(rows, codes, 1.0), rows_of(rows), codes, np.dtype(dtype).name)


def same_grid(a: Geometry, b: Geometry, *, tolerance_mm: float = 1e-3) -> bool:
    """True if two volumes, read in LPS, have the same shape and each voxel at the same position.

    Every corner of the grid is compared; released files differ by rounding only (-0.0 for 0.0, float32 for
    float64).
    """
    if a.shape != b.shape:
        return False
    if a.affine == b.affine and a.axis_codes == b.axis_codes and _unit_mm(a.nifti) == _unit_mm(b.nifti):
        return True  # true for most pairs: saves 0.1 ms, and a case has sixteen pairs
    corners = np.array(
        [[x, y, z, 1] for x in (0, a.shape[2]) for y in (0, a.shape[1]) for z in (0, a.shape[0])], np.float64
    )
    return bool(np.abs(corners @ (a.lps_affine - b.lps_affine).T).max() <= tolerance_mm)


@dataclass(frozen=True)
class Stored:
    """The data description in a header: stored number type, first byte, number of stacked volumes, (slope,
    intercept) if the values are scaled.
    """

    geometry: Geometry
    dtype: np.dtype[Any]
    offset: int
    n_channels: int
    scaling: tuple[float, float] | None


def to_lps(codes: Sequence[str]) -> np.ndarray:
    """The axis change from native axes to LPS, as nibabel's orientation array: (LPS axis, 1 or -1) per native
    axis.
    """
    return ornt_transform(axcodes2ornt(tuple(codes)), axcodes2ornt(_LPS))


def from_lps(codes: Sequence[str]) -> np.ndarray:
    """The inverse of `to_lps`."""
    return ornt_transform(axcodes2ornt(_LPS), axcodes2ornt(tuple(codes)))


def place(
    path: Path,
    native_shape: Sequence[int],
    *,
    affine: np.ndarray,
    dtype: np.dtype[Any],
    grid: NiftiGrid | None,
) -> Geometry:
    """The geometry of a file. Raises `ScanError` if the affine does not place a volume in space."""
    try:
        codes = _axis_codes(affine)
    except InputError as error:
        raise ScanError(path, str(error), expected="finite rows and a spacing above 0") from None
    x, y, z = (int(native_shape[axis]) for axis in np.argsort(to_lps(codes)[:, 0]))
    return Geometry(
        (z, y, x), _spacing(affine, codes, _unit_mm(grid)), rows_of(affine), codes, dtype.name, grid
    )


def check_size(path: Path, shape: Sequence[int], *, n_bytes: int, capacity: int) -> None:
    """Before any memory is allocated, refuse a header whose size is implausible, or larger than `capacity`:
    the number of bytes that the file can hold, unpacked.
    """
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise ScanError(path, f"has the shape {tuple(shape)}", expected="three axes of at least one voxel")
    if math.prod(shape[:3]) > _MAX_VOXELS:
        raise ScanError(
            path, f"the header claims {math.prod(shape[:3]):,} voxels", expected=f"{_MAX_VOXELS:,} at most"
        )
    if n_bytes > capacity:
        raise ScanError(
            path,
            f"the header claims {n_bytes:,} bytes, too many for a file of {path.stat().st_size:,}",
            expected="a whole file",
        )


def check_channel(path: Path, channel: int | None, *, n_channels: int) -> int:
    """The channel to read. Raises `ScanError` if a file stacks volumes and no channel is named, or the
    channel does not exist.
    """
    if channel is None and n_channels > 1:
        raise ScanError(
            path,
            f"stacks {n_channels} volumes",
            expected="one volume, or a dataset.json that names the channels",
        )
    if (channel or 0) >= n_channels:
        raise ScanError(path, f"has no channel {channel}", expected=f"a channel from 0 to {n_channels - 1}")
    return channel or 0


def _unit_mm(grid: NiftiGrid | None) -> float:
    return 1.0 if grid is None else _MM_PER_UNIT.get(grid.xyzt_units & 7, 1.0)


def _axis_codes(affine: np.ndarray) -> tuple[str, str, str]:
    lengths = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    sound = (
        np.isfinite(affine).all()
        and lengths.min() > 0
        and abs(np.linalg.det(affine[:3, :3] / lengths)) > 1e-6
    )
    if not sound or np.isnan(io_orientation(affine)).any():
        raise InputError("the affine is not finite or maps voxels onto a plane")
    i, j, k = aff2axcodes(affine)
    return i, j, k


def _spacing(affine: np.ndarray, codes: Sequence[str], unit_mm: float) -> tuple[float, float, float]:
    native = np.sqrt((affine[:3, :3] ** 2).sum(axis=0)) * unit_mm
    x, y, z = (float(native[axis]) for axis in np.argsort(to_lps(codes)[:, 0]))
    return z, y, x


def rows_of(affine: np.ndarray) -> Rows:
    """A matrix as rows of plain numbers."""
    return tuple(tuple(float(v) for v in row) for row in affine)
