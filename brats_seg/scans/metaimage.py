"""MetaImage (.mha) <-> native array + geometry. Files are read here, line by line, and written by SimpleITK.

ITK accepts headers that it never writes: another file as the voxels, "key: value", or a number of axes that
makes it crash. For damaged voxels (a changed byte, a wrong checksum) SimpleITK returns an array without an
error. It is not faster either (0.10 s for a BraTS volume).
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from jaxtyping import Num

from brats_seg.core.arrays import MAX_INFLATION, fill, inflate, native_order
from brats_seg.core.errors import InputError
from brats_seg.core.files import shown
from brats_seg.scans.geometry import Geometry, ScanError, Stored, check_size, opened_scan, place

RAS_OF_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MOST_HEADER_BYTES = 1 << 16
_NEEDED = ("NDims", "DimSize", "ElementType")
_LINE = re.compile(r"([A-Za-z0-9_|]+) *=([^\r\n]*)")
_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}


def read_metaimage_header(path: Path) -> Stored:
    """Read and check only the header. Raises `ScanError`."""
    with opened_scan(path, kind="MetaImage") as file:
        return _header(path, file)[0]


def read_metaimage(path: Path) -> tuple[Stored, np.ndarray]:
    """The header, and the voxels as a native (i, j, k) array. Raises `ScanError`."""
    with opened_scan(path, kind="MetaImage") as file:
        stored, n_packed = _header(path, file)
        n_bytes = int(np.prod(stored.geometry.shape, dtype=np.int64)) * stored.dtype.itemsize
        file.seek(stored.offset)
        if n_packed is None:
            raw = fill(file, n_bytes)
            if raw.size < n_bytes:
                raise EOFError(f"it ends {n_bytes - raw.size:,} bytes too early")
        else:
            raw = inflate(file, n_packed, n_bytes=n_bytes)
    values = native_order(raw, stored.dtype)
    return stored, values.reshape(stored.geometry.native_shape, order="F")


def write_metaimage(part: Path, native: np.ndarray, geometry: Geometry) -> None:
    """Write a native (i, j, k) array, compressed."""
    if native.ndim != 3:
        raise InputError(
            f"{part}: a stack of {native.shape[3]} volumes cannot be written as .mha; use .nii.gz"
        )
    image = placed(
        SimpleITK.GetImageFromArray(np.ascontiguousarray(native.T)), RAS_OF_LPS @ geometry.affine_mm
    )
    staged = part.with_name(part.name + ".mha")  # ITK chooses the file type by the suffix
    try:
        SimpleITK.WriteImage(image, str(staged), useCompression=True)
        os.replace(staged, part)
    finally:
        staged.unlink(missing_ok=True)


def placed(image: SimpleITK.Image, affine: Num[np.ndarray, "4 4"]) -> SimpleITK.Image:
    """The image with its voxels placed by an affine: index (x, y, z, 1) -> (L, P, S, 1) in mm."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    return image


def _header(path: Path, file: Any) -> tuple[Stored, int | None]:
    """The checked header of a file opened at its start, and the number of bytes of packed voxels; None if the
    voxels are not packed.
    """
    fields, offset = _fields(path, file)
    if int(fields["NDims"][:9]) != 3 or _numbers(
        path, fields, "ElementNumberOfChannels", n=1, default=[1.0]
    ) != [1.0]:
        axes_and_numbers = (
            f"{fields['NDims']} axes and {fields.get('ElementNumberOfChannels', '1')} numbers per voxel"
        )
        raise ScanError(path, f"has {axes_and_numbers}", expected="3 axes and 1 number per voxel")
    shape = [int(n) for n in _numbers(path, fields, "DimSize", n=3)]
    if fields["ElementType"] not in _TYPES:
        raise _senseless(path, "ElementType", fields)
    if not _flag(path, fields, "BinaryData", default="True") or _numbers(
        path, fields, "HeaderSize", n=1, default=[0.0]
    ) != [0.0]:
        raise ScanError(
            path,
            "stores its voxels as text, or not directly after its header",
            expected="BinaryData = True, and no HeaderSize",
        )
    orders = {
        _flag(path, fields, key, default="False")
        for key in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
        if key in fields
    }
    if len(orders) > 1:
        raise _senseless(path, "ElementByteOrderMSB", fields)
    dtype = np.dtype((">" if orders == {True} else "<") + _TYPES[fields["ElementType"]])
    n_data = os.fstat(file.fileno()).st_size - offset
    n_bytes = int(np.prod(shape, dtype=object)) * dtype.itemsize
    is_packed = _flag(path, fields, "CompressedData", default="False")
    n_packed = (
        int(_numbers(path, fields, "CompressedDataSize", n=1, default=[float(n_data)])[0])
        if is_packed
        else None
    )
    if n_packed is not None and not 0 <= n_packed <= n_data:
        raise ScanError(
            path, f"is truncated: {n_data:,} of {n_packed:,} bytes of data", expected="a whole MetaImage file"
        )
    check_size(
        path, shape, n_bytes=n_bytes, capacity=n_data if n_packed is None else n_packed * MAX_INFLATION
    )
    geometry = place(path, shape, affine=_affine(path, fields), dtype=dtype.newbyteorder("="), grid=None)
    return Stored(geometry, dtype, offset, 1, None), n_packed


def _fields(path: Path, file: Any) -> tuple[dict[str, str], int]:
    """Key -> value of every line up to `ElementDataFile`, and the first byte after it."""
    expected = f"{', '.join(_NEEDED)} and ElementDataFile = LOCAL in its header"
    no_header = ScanError(path, "is not a MetaImage file", expected=expected)
    start = file.read(_MOST_HEADER_BYTES)
    fields: dict[str, str] = {}
    offset = 0
    while "ElementDataFile" not in fields:
        line, newline, _ = start[offset:].partition(b"\n")
        match = _LINE.fullmatch(line.decode("latin1").rstrip("\r"))
        if match is None or not newline:
            raise no_header
        if match[1] in fields:
            raise ScanError(path, f"has {match[1]} twice in its header", expected="each key once")
        fields[match[1]] = match[2].strip()
        offset += len(line) + 1
    if fields["ElementDataFile"] not in ("LOCAL", "Local", "local"):
        raise ScanError(path, "has its voxels in another file", expected="ElementDataFile = LOCAL")
    if not all(re.match(r"\w", fields.get(key, "")) for key in _NEEDED) or not fields["NDims"].isdecimal():
        raise no_header
    return fields, offset


def _affine(path: Path, fields: Mapping[str, str]) -> np.ndarray:
    """Native voxel index -> RAS in millimeters. A row of the matrix in the file is the direction of an axis
    of the voxels.
    """
    spacing = _numbers(path, fields, _first(fields, "ElementSpacing", "ElementSize"), n=3, default=[1.0] * 3)
    turn = _numbers(
        path,
        fields,
        _first(fields, "TransformMatrix", "Rotation", "Orientation"),
        n=9,
        default=np.eye(3).ravel().tolist(),
    )
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(turn, (3, 3)).T * spacing
    affine[:3, 3] = _numbers(
        path, fields, _first(fields, "Offset", "Position", "Origin"), n=3, default=[0.0] * 3
    )
    return RAS_OF_LPS @ affine


def _first(fields: Mapping[str, str], *names: str) -> str:
    """The name of a field in this header, out of several possible names."""
    return next((name for name in names if name in fields), names[0])


def _numbers(
    path: Path, fields: Mapping[str, str], key: str, *, n: int, default: list[float] | None = None
) -> list[float]:
    if key not in fields and default is not None:
        return default
    try:
        numbers = [float(text) for text in fields[key].split()]
    except ValueError:
        numbers = []
    whole = key not in ("DimSize", "NDims") or all(number.is_integer() for number in numbers)
    if len(numbers) != n or not np.isfinite(numbers).all() or not whole:
        raise _senseless(path, key, fields)
    return numbers


def _flag(path: Path, fields: Mapping[str, str], key: str, *, default: str) -> bool:
    value = fields.get(key, default).lower()
    if value not in ("true", "false", "1", "0"):
        raise _senseless(path, key, fields)
    return value in ("true", "1")


def _senseless(path: Path, key: str, fields: Mapping[str, str]) -> ScanError:
    return ScanError(
        path,
        f"has a MetaImage header that is invalid: {key} = {shown(fields[key])}",
        expected="a valid header",
    )
