"""NIfTI <-> native array + geometry: the header is read and checked first, then the voxels. isal unpacks,
nibabel parses.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import nibabel
import numpy as np
from isal import igzip, isal_zlib
from nibabel.spatialimages import HeaderDataError

from brats_seg.core.arrays import MAX_INFLATION, fill, native_order
from brats_seg.scans.geometry import (
    Geometry,
    NiftiGrid,
    ScanError,
    Stored,
    check_channel,
    check_size,
    opened_scan,
    place,
)

_FORM_CODES = frozenset(nibabel.nifti1.xform_codes.value_set())
_GZIP_MAGIC = b"\x1f\x8b"


def read_nifti_header(path: Path) -> Stored:
    """Read and check only the header. Raises `ScanError`."""
    with _opened(path) as (_, header):
        return header


def read_nifti(path: Path, channels: Sequence[int | None]) -> tuple[Stored, dict[int, np.ndarray]]:
    """The header, and the wanted channels as native (i, j, k) arrays, in native byte order, scaled, read
    sequentially.

    Raises:
        ScanError: a header or data with a problem; a channel that does not exist.
    """
    with _opened(path) as (stream, header):
        shape = header.geometry.native_shape
        n_bytes = math.prod(shape) * header.dtype.itemsize
        arrays = {}
        for channel in sorted({check_channel(path, c, n_channels=header.n_channels) for c in channels}):
            stream.seek(header.offset + channel * n_bytes)
            values = _scaled(native_order(_filled(path, stream, n_bytes), header.dtype), header.scaling)
            arrays[channel] = values.reshape(shape, order="F")
        if stream.tell() == header.offset + header.n_channels * n_bytes:
            stream.read(1)  # at the end of a gzip stream this checks its CRC and length
        return header, arrays


def write_nifti(part: Path, native: np.ndarray, geometry: Geometry, *, compress: bool) -> None:
    """Write a native (i, j, k) or (i, j, k, channel) array with the grid of the geometry, and no other header
    field of the source.
    """
    header = nibabel.Nifti1Header()
    header.set_data_dtype(native.dtype)
    header.set_data_shape(native.shape)
    header["vox_offset"], header["scl_slope"], header["scl_inter"] = 352, 1, 0
    _place_header(header, geometry)
    head = header.binaryblock + bytes(4)
    body = np.ascontiguousarray(native.T).reshape(-1).view(np.uint8).data
    with part.open("wb") as file:
        if not compress:
            file.write(head)
            file.write(body)
            return
        packer = isal_zlib.compressobj(level=2, wbits=31)  # 31: gzip, without name or time
        file.writelines((packer.compress(head), packer.compress(body), packer.flush()))


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Stored]]:
    """The open stream and its checked header; each error of unpacking becomes one line."""
    packed = path.name.lower().endswith(".gz")
    with opened_scan(path, kind="NIfTI") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise ScanError(path, "is empty (0 bytes)", expected="a NIfTI file")
        if packed != (file.peek(2)[:2] == _GZIP_MAGIC):
            name = "gzip-compressed NIfTI file (.nii.gz)" if packed else "plain NIfTI file (.nii)"
            raise ScanError(
                path, f"is not a {name} though its name says so", expected="the content that the suffix names"
            )
        with igzip.IGzipFile(fileobj=file, mode="rb") if packed else file as stream:
            yield stream, _header(path, stream, capacity=size * (MAX_INFLATION if packed else 1))


def _header(path: Path, stream: Any, *, capacity: int) -> Stored:
    block = stream.read(352)
    sizes = {int.from_bytes(block[:4], "little"), int.from_bytes(block[:4], "big")}
    kind = nibabel.Nifti2Header if 540 in sizes else nibabel.Nifti1Header
    block += stream.read(kind.sizeof_hdr + 4 - len(block)) if kind is nibabel.Nifti2Header else b""
    if not sizes & {348, 540} or len(block) < kind.sizeof_hdr:
        raise ScanError(path, "is not a NIfTI file", expected="a NIfTI header at its start")
    try:
        header = kind(block[: kind.sizeof_hdr], check=False)
        if bytes(header["magic"])[:3] not in (b"n+1", b"n+2"):
            raise ScanError(
                path, f"has the magic {bytes(header['magic'])!r}", expected="a single-file NIfTI (n+1)"
            )
        for code in ("qform_code", "sform_code"):
            if int(header[code]) not in _FORM_CODES:
                header[code] = 0  # as nibabel reads it: no such transform
        if header["pixdim"][0] == 0:
            header["pixdim"][0] = 1  # as in the standard
        return _understood(path, header, capacity=capacity)
    except (HeaderDataError, KeyError, ValueError, OverflowError) as error:
        raise ScanError(
            path, f"has a NIfTI header that is invalid: {error}", expected="a valid header"
        ) from None


def _understood(path: Path, header: Any, *, capacity: int) -> Stored:
    shape = tuple(int(n) for n in header.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    shape = (*shape, 1) if len(shape) == 2 else shape
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise ScanError(path, f"stores voxels as {dtype}", expected="integers or floats of 1 to 8 bytes")
    offset = max(int(header["vox_offset"]), header.single_vox_offset)
    check_size(path, shape, n_bytes=offset + math.prod(shape) * dtype.itemsize, capacity=capacity)
    slope, inter = header.get_slope_inter()
    scaling = None if slope is None or (slope, inter) == (1, 0) else (float(slope), float(inter))
    geometry = place(
        path, shape[:3], affine=header.get_best_affine(), dtype=dtype.newbyteorder("="), grid=_grid(header)
    )
    return Stored(geometry, dtype, offset, shape[3] if len(shape) == 4 else 1, scaling)


def _grid(header: Any) -> NiftiGrid:
    b, c, d = (_finite(header[f"quatern_{axis}"]) for axis in "bcd")
    x, y, z = (_finite(header[f"qoffset_{axis}"]) for axis in "xyz")
    return NiftiGrid(
        pixdim=tuple(_finite(v) for v in header["pixdim"][:4]),
        qform_code=int(header["qform_code"]),
        sform_code=int(header["sform_code"]),
        quaternion=(b, c, d),
        offset=(x, y, z),
        srow=tuple(tuple(_finite(v) for v in header[f"srow_{axis}"]) for axis in "xyz"),
        xyzt_units=int(header["xyzt_units"]),
    )


def _finite(value: Any) -> float:
    """A field that no form code uses may have any value; JSON has no NaN."""
    return float(value) if np.isfinite(value) else 0.0


def _place_header(header: nibabel.Nifti1Header, geometry: Geometry) -> None:
    grid = geometry.nifti
    if grid is None:
        header.set_qform(np.asarray(geometry.affine), code=1)
        header.set_sform(np.asarray(geometry.affine), code=1)
        header["xyzt_units"] = 2
        return
    header["pixdim"][:4] = grid.pixdim
    header["qform_code"], header["sform_code"], header["xyzt_units"] = (
        grid.qform_code,
        grid.sform_code,
        grid.xyzt_units,
    )
    for axis, value in zip("bcd", grid.quaternion, strict=True):
        header[f"quatern_{axis}"] = value
    for axis, value, row in zip("xyz", grid.offset, grid.srow, strict=True):
        header[f"qoffset_{axis}"], header[f"srow_{axis}"] = value, row


def _filled(path: Path, stream: Any, n_bytes: int) -> np.ndarray:
    buffer = fill(stream, n_bytes)
    if buffer.size < n_bytes:
        raise ScanError(
            path,
            f"is truncated: it ends {n_bytes - buffer.size:,} bytes too early",
            expected="a whole NIfTI file",
        )
    return buffer


def _scaled(values: np.ndarray, scaling: tuple[float, float] | None) -> np.ndarray:
    if scaling is None:
        return values
    wide = values.dtype.itemsize == 8 or (values.dtype.kind in "iu" and values.dtype.itemsize == 4)
    slope, inter = np.array(scaling, np.float64 if wide else np.float32)
    return cast(np.ndarray, values.astype(slope.dtype) * slope + inter)
