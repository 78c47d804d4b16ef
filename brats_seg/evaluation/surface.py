"""HD95 by its three definitions, and surface Dice, from nearest neighbors among surface elements."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, UInt8
from scipy.spatial import cKDTree
from skimage.measure import marching_cubes, mesh_surface_area

from brats_seg.core.kernels import joint_box, nearest_in_rows, steps_along_x, surface_voxels
from brats_seg.core.shapes import Mask, TissueMap

Definition = Literal["directed", "pooled", "surface_weighted"]
"""How a 95th percentile of surface distances becomes one number (`hd95_mm`)."""
OfReference = Float64[np.ndarray, "n"]
"""A value for each surface element of the reference."""
OfPrediction = Float64[np.ndarray, "m"]
"""A value for each surface element of the prediction."""
Spacing = Sequence[float | int]
"""Voxel size in mm along (Z, Y, X)."""

REACH_VOX = 16
"""Largest distance of the search on the grid. A distance of d takes about 3 d^2 steps. For one or two voxels,
as between most label maps and their references, this is 20 times faster than a k-d tree; across a whole head
it is 10 times slower. A search without a result adds 10 ms.
"""

_CORNER_WEIGHTS = np.array([[[128, 64], [32, 16]], [[8, 4], [2, 1]]], np.uint8)


@dataclass(frozen=True)
class SurfaceDistances:
    """Distance in mm from each element of one surface to the nearest element of the other, with the weight of
    each element.

    An element is a surface voxel of weight 1, or a surface patch with its area in mm2.
    """

    from_reference_mm: OfReference
    from_prediction_mm: OfPrediction
    reference_weights: OfReference
    prediction_weights: OfPrediction


def joint_crop(a: TissueMap, b: TissueMap) -> tuple[slice, slice, slice]:
    """The smallest block with all voxels that are not 0 in at least one map; empty slices if there is no such
    voxel.
    """
    z0, z1, y0, y1, x0, x1 = (int(i) for i in joint_box(a, b))
    return slice(z0, z1), slice(y0, y1), slice(x0, x1)


def grown(box: tuple[slice, ...], shape: Sequence[int], *, by: int) -> tuple[slice, ...]:
    """The block, widened on each side by this number of voxels, within a volume of this shape."""
    return tuple(slice(max(0, s.start - by), min(n, s.stop + by)) for s, n in zip(box, shape, strict=True))


def hd95_mm(
    reference: Mask, prediction: Mask, *, spacing_mm: Spacing, definition: Definition = "directed"
) -> float:
    """The 95th percentile of the distances between two surfaces, in mm; NaN where a mask is empty.

    Args:
        reference: (Z, Y, X).
        prediction: the same, same shape.
        spacing_mm: voxel size along (Z, Y, X).
        definition: `directed` is the larger of the two directed 95th percentiles over surface voxels (MONAI's
            HausdorffDistanceMetric); `pooled` is the percentile of both directions together (MedPy's hd95,
            nnU-Net); `surface_weighted` is the larger directed percentile over surface patches weighted by
            area (surface-distance; BraTS 2023).
    """
    return hd95_of(
        distances_for(reference, prediction, spacing_mm=spacing_mm, definition=definition), definition
    )


def distances_for(
    reference: Mask, prediction: Mask, *, spacing_mm: Spacing, definition: Definition
) -> SurfaceDistances:
    """The surface distances that a definition of HD95 uses."""
    if definition == "surface_weighted":
        return patch_distances(reference, prediction, spacing_mm=spacing_mm)
    return voxel_distances(reference, prediction, spacing_mm=spacing_mm)


def hd95_of(distances: SurfaceDistances, definition: Definition) -> float:
    """One HD95 in mm from given distances; NaN where a surface is empty."""
    a, b = distances.from_reference_mm, distances.from_prediction_mm
    if a.size == 0 or b.size == 0:
        return float("nan")
    if definition == "pooled":
        return float(np.percentile(np.concatenate((a, b)), 95))
    if definition == "directed":
        return float(max(np.percentile(a, 95), np.percentile(b, 95)))
    return max(
        _weighted_percentile(a, distances.reference_weights),
        _weighted_percentile(b, distances.prediction_weights),
    )


def surface_dice(distances: SurfaceDistances, *, tolerance_mm: float) -> float:
    """Share of both surfaces, by weight, within the tolerance of the other (Nikolov et al. 2018); NaN where
    both are empty.
    """
    total = distances.reference_weights.sum() + distances.prediction_weights.sum()
    if total == 0:
        return float("nan")
    close = distances.reference_weights[distances.from_reference_mm <= tolerance_mm].sum()
    close += distances.prediction_weights[distances.from_prediction_mm <= tolerance_mm].sum()
    return float(close / total)


def mean_surface_dice(
    reference: Mask, prediction: Mask, *, spacing_mm: Spacing, tolerances_mm: Sequence[float]
) -> tuple[float, ...]:
    """For each tolerance, the mean of the shares of the two surfaces (voxels) that lie within it of the other
    (BraTS 2024 and later, as GaNDLF and panoptica count); NaN where a mask is empty.
    """
    if not tolerances_mm:
        return ()
    return mean_surface_dice_of(
        voxel_distances(reference, prediction, spacing_mm=spacing_mm), tolerances_mm=tolerances_mm
    )


def mean_surface_dice_of(distances: SurfaceDistances, *, tolerances_mm: Sequence[float]) -> tuple[float, ...]:
    """`mean_surface_dice` of distances between surface voxels."""
    sides = distances.from_reference_mm, distances.from_prediction_mm
    if not all(side.size for side in sides):
        return (float("nan"),) * len(tolerances_mm)
    return tuple(float(np.mean([np.mean(side <= mm) for side in sides])) for mm in tolerances_mm)


def voxel_distances(reference: Mask, prediction: Mask, *, spacing_mm: Spacing) -> SurfaceDistances:
    """Distances between surface voxels: those with a face on a voxel outside the mask, or on the border of
    the array.

    Args:
        reference: (Z, Y, X).
        prediction: the same, same shape.
        spacing_mm: voxel size along (Z, Y, X).
    """
    return region_distances(reference.view(np.uint8), prediction.view(np.uint8), (1,), spacing_mm=spacing_mm)


def region_distances(
    reference: TissueMap, prediction: TissueMap, members: Sequence[int], *, spacing_mm: Spacing
) -> SurfaceDistances:
    """`voxel_distances` of the region that has these class indices, straight from the two tissue maps (Z, Y,
    X).
    """
    inside = np.zeros(256, bool)
    inside[list(members)] = True
    surface_a, surface_b = surface_voxels(reference, inside), surface_voxels(prediction, inside)
    box = joint_crop(surface_a.view(np.uint8), surface_b.view(np.uint8))
    a, b = _distances(surface_a[box], surface_b[box], spacing_mm)
    return SurfaceDistances(a, b, np.ones(a.size), np.ones(b.size))


def patch_distances(reference: Mask, prediction: Mask, *, spacing_mm: Spacing) -> SurfaceDistances:
    """Distances between surface patches: corners that have some, but not all, of their eight voxels in the
    mask.

    Same arguments as `voxel_distances`. Weights are areas in mm2 by marching cubes, as in
    google-deepmind/surface-distance.
    """
    box = joint_crop(reference.view(np.uint8), prediction.view(np.uint8))
    codes_a, codes_b = _corner_codes(reference[box]), _corner_codes(prediction[box])
    surface_a, surface_b = ((codes != 0) & (codes != 255) for codes in (codes_a, codes_b))
    areas = _patch_areas(tuple(float(s) for s in spacing_mm))
    a, b = _distances(surface_a, surface_b, spacing_mm)
    return SurfaceDistances(
        a,
        b,
        _in_distance_order(areas[codes_a], surface_a, surface_b),
        _in_distance_order(areas[codes_b], surface_b, surface_a),
    )


def _distances(
    a: Bool[np.ndarray, "z y x"], b: Bool[np.ndarray, "z y x"], spacing_mm: Spacing
) -> tuple[OfReference, OfPrediction]:
    """Elements of both surfaces come first, at distance 0; only the rest needs a search."""
    if not a.any() or not b.any():
        return np.full(int(a.sum()), np.inf), np.full(int(b.sum()), np.inf)
    zeros = np.zeros(int((a & b).sum()))
    return np.concatenate((zeros, _nearest_mm(a & ~b, b, spacing_mm))), np.concatenate(
        (zeros, _nearest_mm(b & ~a, a, spacing_mm))
    )


def _in_distance_order(
    values: Float64[np.ndarray, "z y x"], own: Bool[np.ndarray, "z y x"], other: Bool[np.ndarray, "z y x"]
) -> OfReference:
    if not own.any() or not other.any():
        return values[own]
    return np.concatenate((values[own & other], values[own & ~other]))


def _nearest_mm(
    points: Bool[np.ndarray, "z y x"], surface: Bool[np.ndarray, "z y x"], spacing_mm: Spacing
) -> OfReference:
    """Distance from each point to the nearest element of the surface: short distances by a search on the
    grid, long ones by a k-d tree.
    """
    spacing = np.asarray(spacing_mm, np.float64)
    nearest = nearest_in_rows(
        points, steps_along_x(surface), spacing, REACH_VOX * math.sqrt(spacing[0] * spacing[1])
    )
    far = np.isinf(nearest)
    if far.any():
        # Unbalanced trees build twice as fast and are searched as fast: the points lie on a grid.
        tree = cKDTree(np.argwhere(surface) * spacing, balanced_tree=False, compact_nodes=False)
        nearest[far] = tree.query(np.argwhere(points)[far] * spacing)[0]
    return nearest


def _weighted_percentile(distances_mm: OfReference, weights: OfReference) -> float:
    """The distance at which 95 % of the area is reached (compute_robust_hausdorff of surface-distance)."""
    order = np.argsort(distances_mm, kind="stable")
    reached = np.cumsum(weights[order]) / weights.sum()
    return float(distances_mm[order][min(int(np.searchsorted(reached, 0.95)), len(order) - 1)])


def _corner_codes(mask: Bool[np.ndarray, "z y x"]) -> UInt8[np.ndarray, "z1 y1 x1"]:
    """For each corner: one bit for each of the eight voxels around it, set if the voxel is in the mask."""
    padded = np.pad(mask, 1).view(np.uint8)
    codes = np.zeros([n + 1 for n in mask.shape], np.uint8)
    n_z, n_y, n_x = codes.shape
    for dz, dy, dx in np.ndindex(2, 2, 2):
        codes += padded[dz : dz + n_z, dy : dy + n_y, dx : dx + n_x] * _CORNER_WEIGHTS[dz, dy, dx]
    return codes


@lru_cache(maxsize=16)
def _patch_areas(spacing_mm: tuple[float, ...]) -> Float64[np.ndarray, "256"]:
    """Area in mm2 of the surface inside one cell between voxel centers, by the code of its eight corners.

    Classic marching cubes (Lorensen 1987) cuts edges in the middle and joins full corners across a face;
    surface-distance's table takes the code or its complement, whichever has fewer corners set. All 256 areas
    equal its table (tested).
    """
    areas = np.zeros(256)
    for code in range(1, 255):
        few = code if code.bit_count() <= 4 else 255 - code
        vertices, faces, _, _ = marching_cubes(
            ((few & _CORNER_WEIGHTS) != 0).astype(np.float32), 0.5, spacing=spacing_mm, method="lorensen"
        )
        areas[code] = mesh_surface_area(vertices.astype(np.float64), faces)  # float32 of voxels of 1 mm
    return areas
