"""Volumes and their grids <-> images of SimpleITK, in (L, P, S) millimeters."""

import numpy as np
import SimpleITK as sitk  # noqa: N813

from brats_seg.core.shapes import Volume
from brats_seg.scans.geometry import Affine, Geometry, make_geometry
from brats_seg.scans.metaimage import RAS_OF_LPS, placed


def to_itk(array: Volume, geometry: Geometry) -> sitk.Image:
    """An image of a volume that was read in LPS, with the same number type."""
    return placed(sitk.GetImageFromArray(array), RAS_OF_LPS @ geometry.lps_affine)


def affine_of(image: sitk.Image) -> Affine:
    """Index (x, y, z, 1) -> (L, P, S, 1) in mm."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return affine


def geometry_of(image: sitk.Image, *, dtype: str) -> Geometry:
    """The grid of an image whose axes are parallel or close to LPS."""
    x, y, z = image.GetSize()
    return make_geometry((z, y, x), affine=RAS_OF_LPS @ affine_of(image), dtype=dtype)


def resampled(
    image: sitk.Image, grid: sitk.Image, *, matrix: Affine, interpolator: int = sitk.sitkLinear
) -> sitk.Image:
    """The image on another grid, 0 where it has no voxel.

    Args:
        image: of any number type; the type is kept.
        grid: size and position of the result.
        matrix: a point of the grid, (L, P, S, 1) in mm -> the same point in the image.
        interpolator: of SimpleITK.
    """
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(matrix[:3, :3].ravel().tolist())
    transform.SetTranslation(matrix[:3, 3].tolist())
    return sitk.Resample(image, grid, transform, interpolator, 0.0)


def isotropic(image: sitk.Image, *, spacing_mm: float) -> sitk.Image:
    """An empty grid of equal spacing along all axes that covers the same volume of space."""
    old = np.array(image.GetSpacing())
    size = np.maximum(1, np.rint(np.array(image.GetSize()) * old / spacing_mm)).astype(int)
    affine = affine_of(image)
    directions = affine[:3, :3] / old
    corner = affine[:3, 3] - affine[:3, :3] @ (0.5, 0.5, 0.5)
    affine[:3, :3] = directions * spacing_mm
    affine[:3, 3] = corner + affine[:3, :3] @ (0.5, 0.5, 0.5)
    return placed(sitk.Image(size.tolist(), sitk.sitkUInt8), affine)
