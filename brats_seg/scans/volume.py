"""NIfTI and MetaImage <-> array + geometry; the only module that knows file axis order and orientation.

`nifti.py` and `metaimage.py` know one format each, `geometry.py` the position in space for both; all other
modules import from here.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Num
from nibabel.orientations import apply_orientation

from brats_seg.core.errors import InputError
from brats_seg.core.files import atomic
from brats_seg.core.shapes import Volume
from brats_seg.scans.case import ScanFile
from brats_seg.scans.geometry import (
    Geometry,
    ScanError,
    check_channel,
    from_lps,
    make_geometry,
    same_grid,
    to_lps,
)
from brats_seg.scans.metaimage import read_metaimage, read_metaimage_header, write_metaimage
from brats_seg.scans.nifti import read_nifti, read_nifti_header, write_nifti

__all__ = (
    "SUFFIXES", "Geometry", "ScanError", "make_geometry", "read_header", "read_volume", "read_volumes",
    "same_grid", "write_label_map", "write_volume",
)  # fmt: skip

SUFFIXES = (".nii.gz", ".nii", ".mha")
"""The file types read and written."""


def read_header(path: Path) -> Geometry:
    """Geometry of a file, from its header alone.

    Raises:
        ScanError: not a NIfTI or MetaImage file, or an invalid header, or one that claims more data than the
            file can hold.
    """
    return (read_metaimage_header(path) if _suffix(path) == ".mha" else read_nifti_header(path)).geometry


def read_volume(source: ScanFile | Path) -> tuple[Volume, Geometry]:
    """Read one volume as (Z, Y, X) in LPS, C-contiguous and writable, and its geometry.

    Values are as stored (integers stay integers, native byte order) unless `scl_slope` and `scl_inter` scale
    them: then float32, or float64 for 8-byte and 4-byte-integer sources. A file in LPS is not copied after
    unpacking; other orientations are permuted and flipped without interpolation.

    Raises:
        ScanError: as `read_header`; truncated or damaged data; a 4-D file without a channel, or without that
            channel.
    """
    return read_volumes([source if isinstance(source, ScanFile) else ScanFile(source)])[0]


def read_volumes(sources: Sequence[ScanFile]) -> list[tuple[Volume, Geometry]]:
    """Read several volumes, each file once, also for several channels of one 4-D file. Otherwise as
    `read_volume`.
    """
    wanted: dict[Path, list[int | None]] = {}
    for source in sources:
        wanted.setdefault(source.path, []).append(source.channel)
    volumes = {path: _read_channels(path, channels) for path, channels in wanted.items()}
    return [volumes[source.path][source.channel] for source in sources]


def write_label_map(path: Path, array: Num[np.ndarray, "z y x"], geometry: Geometry, *, dtype: str) -> None:
    """Write a label map (Z, Y, X) in LPS onto the native grid of its source, atomically.

    Affine, form codes and units are copied from the source; text, extensions and scaling of its header are
    not.

    Args:
        path: ends in one of `SUFFIXES`.
        array: whole label values.
        geometry: of the source, from `read_volume` or `read_header`.
        dtype: NumPy name of the number type to store, such as "uint8".

    Raises:
        InputError: another suffix, another shape than the geometry's, or values that `dtype` cannot hold.
    """
    if np.dtype(dtype).kind in "iu" and array.size:
        limits = np.iinfo(dtype)
        if array.min() < limits.min or array.max() > limits.max:
            raise InputError(
                f"{path}: values from {array.min()} to {array.max()} do not fit in {dtype}; use a wider dtype"
            )
    write_volume(path, array, geometry, dtype=dtype)


def write_volume(
    path: Path, array: Num[np.ndarray, "z y x *channels"], geometry: Geometry, *, dtype: str
) -> None:
    """Write a volume (Z, Y, X), or a stack (Z, Y, X, channel), in LPS; stacks as NIfTI only. Otherwise as
    `write_label_map`.
    """
    if array.shape[:3] != geometry.shape:
        raise InputError(
            f"{path}: array of shape {array.shape[:3]} (Z, Y, X); expected the {geometry.shape} of its "
            "geometry"
        )
    suffix = _suffix(path)
    xyz = np.moveaxis(array, (0, 1, 2), (2, 1, 0)).astype(dtype, copy=False)
    native = apply_orientation(xyz, from_lps(geometry.axis_codes))
    with atomic(path) as part:
        if suffix == ".mha":
            write_metaimage(part, native, geometry)
        else:
            write_nifti(part, native, geometry, compress=suffix == ".nii.gz")


def _suffix(path: Path) -> str:
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return suffix
    raise ScanError(path, "is not a supported file type", expected=f"one of {', '.join(SUFFIXES)}")


def _read_channels(
    path: Path, channels: Sequence[int | None]
) -> dict[int | None, tuple[np.ndarray, Geometry]]:
    if _suffix(path) == ".mha":
        header, only = read_metaimage(path)
        native = {0: only}
    else:
        header, native = read_nifti(path, channels)
    turn = to_lps(header.geometry.axis_codes)
    lps = {
        c: np.ascontiguousarray(apply_orientation(array, turn).transpose(2, 1, 0))
        for c, array in native.items()
    }
    return {c: (lps[check_channel(path, c, n_channels=header.n_channels)], header.geometry) for c in channels}
