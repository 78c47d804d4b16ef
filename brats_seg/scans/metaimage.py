"""MetaImage (.mha) <-> native array + geometry, by SimpleITK; compressed voxels are unpacked here, as ITK takes damaged ones for whole."""

import math
import os
import re
from pathlib import Path
from typing import cast

import numpy as np
import SimpleITK
from isal import isal_zlib

from brats_seg.errors import InputError
from brats_seg.scans.geometry import MAX_INFLATION, Geometry, ScanError, Stored, check_size, place

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_UNPACK_ERROR = cast(type[Exception], isal_zlib.error)
_NEEDED = (b"NDims", b"DimSize", b"ElementType")
_DATA_FOLLOWS = re.compile(rb"ElementDataFile *= *LOCAL *\r?\n")


def read_metaimage_header(path: Path) -> Stored:
    """Read and check the header alone. Raises `ScanError`."""
    reader, _ = _reader(path)
    return _stored(path, reader)


def read_metaimage(path: Path) -> tuple[Stored, np.ndarray]:
    """The header, and the voxels as a native (i, j, k) array. Raises `ScanError`."""
    reader, head = _reader(path)
    stored = _stored(path, reader)
    if _is_packed(head):
        return stored, _unpacked(path, head, stored).reshape(stored.geometry.native_shape, order="F")
    try:
        return stored, SimpleITK.GetArrayFromImage(reader.Execute()).transpose(2, 1, 0)
    except RuntimeError:
        raise ScanError(path, "is truncated or damaged", expected="a whole MetaImage file") from None


def write_metaimage(part: Path, native: np.ndarray, geometry: Geometry) -> None:
    """Write a native (i, j, k) array, compressed."""
    if native.ndim != 3:
        raise InputError(f"{part}: a stack of {native.shape[3]} volumes cannot be written as .mha; use .nii.gz")
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(native.T))
    affine = _LPS_TO_RAS @ geometry.affine_mm
    spacing = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / spacing).flatten().tolist())
    staged = part.with_name(part.name + ".mha")  # ITK goes by the suffix
    try:
        SimpleITK.WriteImage(image, str(staged), useCompression=True)
        os.replace(staged, part)
    finally:
        staged.unlink(missing_ok=True)


def _reader(path: Path) -> tuple[SimpleITK.ImageFileReader, bytes]:
    """A reader whose file has been checked to hold what its header claims, and that header."""
    head, n_data = _head(path)
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("MetaImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        raise ScanError(path, "has a MetaImage header that makes no sense", expected="a sound one") from None
    if reader.GetNumberOfComponents() != 1 or reader.GetDimension() != 3:
        found = f"{reader.GetDimension()} axes and {reader.GetNumberOfComponents()} numbers per voxel"
        raise ScanError(path, f"has {found}", expected="3 axes and 1 number per voxel")
    claimed = re.search(rb"CompressedDataSize *= *(\d+)", head)
    if claimed and int(claimed[1]) > n_data:
        raise ScanError(path, f"is truncated: {n_data:,} of {int(claimed[1]):,} bytes of data", expected="a whole MetaImage file")
    n_bytes = math.prod(reader.GetSize()) * _dtype(reader).itemsize
    check_size(path, reader.GetSize(), n_bytes=n_bytes, capacity=n_data * (MAX_INFLATION if _is_packed(head) else 1))
    return reader, head


def _head(path: Path) -> tuple[bytes, int]:
    """The text at the start, and how many bytes follow it; read first because ITK prints what it cannot parse on standard error."""
    try:
        with path.open("rb") as file:
            head = file.read(1 << 16)
    except OSError as error:
        raise ScanError(path, f"cannot be read: {error.strerror}", expected="a file") from None
    end = _DATA_FOLLOWS.search(head)
    if end is None or not all(re.search(rb"(?m)^%b *= *\w" % key, head) for key in _NEEDED):
        needed = b", ".join(_NEEDED).decode()
        raise ScanError(path, "is not a MetaImage file", expected=f"{needed} and ElementDataFile = LOCAL in its header")
    return head[: end.end()], path.stat().st_size - end.end()


def _is_packed(head: bytes) -> bool:
    return re.search(rb"CompressedData *= *[Tt1]", head) is not None


def _unpacked(path: Path, head: bytes, stored: Stored) -> np.ndarray:
    n_bytes = math.prod(stored.geometry.shape) * stored.dtype.itemsize
    unpacker = isal_zlib.decompressobj(wbits=47)  # 47: zlib or gzip, as ITK
    with path.open("rb") as file:
        file.seek(len(head))
        try:
            body = unpacker.decompress(file.read(), n_bytes + 1)
        except _UNPACK_ERROR as error:
            raise ScanError(path, f"is truncated or damaged: {error}", expected="a whole MetaImage file") from None
    if len(body) != n_bytes or not unpacker.eof:
        raise ScanError(path, f"is truncated or damaged: it unpacks to other than {n_bytes:,} bytes", expected="a whole MetaImage file")
    is_big_endian = re.search(rb"ByteOrderMSB *= *[Tt1]", head) is not None
    values = np.frombuffer(body, stored.dtype.newbyteorder(">" if is_big_endian else "<"))
    return values.astype(stored.dtype)  # a copy, which can be written to


def _stored(path: Path, reader: SimpleITK.ImageFileReader) -> Stored:
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(reader.GetDirection()).reshape(3, 3) * np.asarray(reader.GetSpacing())
    affine[:3, 3] = reader.GetOrigin()
    dtype = _dtype(reader)
    return Stored(place(path, reader.GetSize(), affine=_LPS_TO_RAS @ affine, dtype=dtype, grid=None), dtype, 0, 1, None)


def _dtype(reader: SimpleITK.ImageFileReader) -> np.dtype:
    voxel = SimpleITK.Image([1, 1, 1], reader.GetPixelID())
    return SimpleITK.GetArrayFromImage(voxel).dtype
