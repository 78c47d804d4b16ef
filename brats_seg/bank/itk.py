"""What SimpleITK does to a volume: another spacing, and N4 bias correction."""

import hashlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
from jaxtyping import Float32, Num

from brats_seg.core.arrays import read_npy
from brats_seg.core.errors import InputError
from brats_seg.core.files import atomic
from brats_seg.core.shapes import Mask, Volume

Spacing = tuple[float, float, float]
Shape = tuple[int, int, int]

# the bias field is smooth: fitting it on every fourth voxel is 60 times faster, as in Tustison et al. 2010
_SHRINK = 4
_ITERATIONS = [50, 50, 50, 50]


def resampled_shape(shape: Shape, *, spacing_mm: Spacing, to_mm: Spacing) -> Shape:
    """(Z, Y, X) of the grid of another spacing that covers the same block of space."""
    z, y, x = (max(1, round(n * old / new)) for n, old, new in zip(shape, spacing_mm, to_mm, strict=True))
    return z, y, x


def resample(
    volume: Volume, *, spacing_mm: Spacing, to_mm: Spacing, shape: Shape, nearest: bool = False
) -> Num[np.ndarray, "new_z new_y new_x"]:
    """The volume on a grid of another spacing whose first voxel starts where the old one's does.

    Args:
        volume: (Z, Y, X), any number type.
        spacing_mm, to_mm: (Z, Y, X), old and new.
        shape: (Z, Y, X) of the result.
        nearest: take the nearest voxel and keep the type (labels); else interpolate linearly, as float32.
    """
    image = sitk.GetImageFromArray(volume if nearest else volume.astype(np.float32))
    image.SetSpacing(spacing_mm[::-1])
    grid = sitk.ResampleImageFilter()
    grid.SetSize(shape[::-1])
    grid.SetOutputSpacing(to_mm[::-1])
    grid.SetOutputOrigin([(new - old) / 2 for old, new in zip(spacing_mm[::-1], to_mm[::-1], strict=True)])
    grid.SetInterpolator(sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear)
    grid.UseNearestNeighborExtrapolatorOn()
    return sitk.GetArrayFromImage(grid.Execute(image))


def correct_bias(volume: Volume, brain: Mask, *, cache: Path | None = None) -> Float32[np.ndarray, "z y x"]:
    """Divide a volume by its bias field, which N4 (Tustison et al. 2010) fits to the brain.

    Costs 90 times all the rest of a case's preparation: with `cache`, a folder, the field of this very volume
    and brain is read from there, or stored there (a 64th of the volume's voxels).
    """
    field = None
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        told = repr((volume.shape, volume.dtype.name)).encode() + volume.tobytes() + brain.tobytes()
        path = cache / f"{hashlib.sha256(told).hexdigest()}.npy"
        with suppress(InputError):  # absent or damaged: made again
            field = read_npy(path)
    if field is None:
        field = _fit_log_field(volume.astype(np.float32), brain)
        if cache is not None:
            with atomic(path) as part, part.open("wb") as file:
                np.save(file, field)
    coarse = sitk.GetImageFromArray(field)
    coarse.SetSpacing([float(_SHRINK)] * 3)
    coarse.SetOrigin([(_SHRINK - 1) / 2] * 3)
    grid = sitk.ResampleImageFilter()
    grid.SetSize(volume.shape[::-1])
    grid.UseNearestNeighborExtrapolatorOn()
    log_field = sitk.GetArrayFromImage(grid.Execute(coarse))
    return volume.astype(np.float32) / np.exp(log_field)


def _fit_log_field(volume: Float32[np.ndarray, "z y x"], brain: Mask) -> Float32[np.ndarray, "a b c"]:
    shrink = [_SHRINK] * 3
    image = sitk.Shrink(sitk.GetImageFromArray(volume), shrink)
    mask = sitk.Shrink(sitk.GetImageFromArray(brain.astype(np.uint8)), shrink)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(_ITERATIONS)
    n4.SetNumberOfThreads(1)  # the same sums in the same order on every machine; modalities run side by side
    n4.Execute(image, mask)
    return sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image))
