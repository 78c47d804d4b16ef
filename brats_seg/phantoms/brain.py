"""The healthy half of a phantom: the shape of a brain and the share of fluid, gray and white matter in every
voxel.

Lengths are in units of half the slice width, so that the same anatomy fits every size: x runs from right (-1)
to left (1), y from front (-1) to back (1), z from the base of the skull (-0.65) to the crown (0.65). Shapes
are signed distances (negative inside), after the formulas of Quilez for ellipsoids and capsules; the sulci
are the zero set of a smooth noise, cut off at the depth of a sulcus.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float32
from numpy.random import Generator

from brats_seg.core.shapes import Mask

Field = Float32[np.ndarray, "z y x"]
"""One number per voxel."""
Axis = Float32[np.ndarray, "_ _ _"]
"""A coordinate: one number per voxel, or an array of axes (Z, Y, X) that is broadcast to all voxels."""
Point = tuple[float, float, float]
"""(x, y, z) in half widths."""

CEREBRUM = ((0.0, 0.0, 0.06), (0.70, 0.88, 0.54))
TEMPORAL_LOBE = ((0.38, -0.12, -0.20), (0.27, 0.46, 0.26))
CEREBELLUM = ((0.21, 0.45, -0.36), (0.29, 0.33, 0.22))
BRAINSTEM = ((0.0, 0.20, -0.42), (0.13, 0.15, 0.36))
DEEP_GRAY = (
    ((0.11, 0.10, 0.02), (0.09, 0.14, 0.10)),
    ((0.17, -0.24, 0.06), (0.05, 0.13, 0.09)),
    ((0.29, -0.08, 0.00), (0.07, 0.21, 0.12)),
)
"""Center and half axes of thalamus, head of caudate, and putamen with pallidum, of the left side."""
HORNS = ((0.09, -0.36, 0.05), (0.10, 0.00, 0.14), (0.20, 0.32, 0.06), (0.18, 0.52, 0.02))
TEMPORAL_HORN = ((0.21, 0.30, 0.04), (0.34, 0.06, -0.17))
BASE_Z = -0.24
"""Lower end of the cerebrum; temporal lobes, cerebellum and stem extend below it."""


@dataclass(frozen=True)
class Grid:
    """Coordinates of the voxels, (Z, Y, X) float32 each or broadcastable to it, in half widths; `half` is the
    half width in voxels.
    """

    x: Axis
    y: Axis
    z: Axis
    half: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """(Z, Y, X)."""
        shape = np.broadcast_shapes(self.x.shape, self.y.shape, self.z.shape)
        return shape[0], shape[1], shape[2]


@dataclass(frozen=True)
class Brain:
    """A brain without disease.

    Attributes:
        inside: the voxels of the brain.
        voxel: length, in voxels of this phantom, of 1 voxel at size 96.
        csf, gray, white: shares of the tissues in a voxel; they sum to 1 inside.
        depth_vox, cerebrum_vox: signed distance to the surface of brain and cerebrum, positive inside.
        ventricle_vox: signed distance to the ventricles, negative inside.
        fissure_vox: distance to the midline and the Sylvian fissures.
    """

    inside: Mask
    voxel: float
    csf: Field
    gray: Field
    white: Field
    depth_vox: Field
    ventricle_vox: Field
    fissure_vox: Field
    cerebrum_vox: Field


def grid_of(size: int) -> Grid:
    """The grid of a phantom of this size: (Z, Y, X) = (0.646 size, size, size), the 155 : 240 : 240 of a
    BraTS volume.
    """
    half = size / 2

    def axis(n: int) -> np.ndarray:
        return ((np.arange(n) - (n - 1) / 2) / half).astype(np.float32)

    n_slices = round(size * 155 / 240)
    return Grid(axis(size)[None, None, :], axis(size)[None, :, None], axis(n_slices)[:, None, None], half)


def smooth_noise(rng: Generator, shape: tuple[int, int, int], *, scale_vox: float) -> Field:
    """Smooth noise of mean 0 and variance 1, (Z, Y, X): white noise every `scale_vox` voxels, joined by cubic
    B-splines.
    """
    field = rng.standard_normal([int((n - 1) / scale_vox) + 4 for n in shape], dtype=np.float32)
    for axis, n in enumerate(shape):
        place = np.arange(n) / scale_vox
        cell = place.astype(np.int64)
        t = (place - cell).astype(np.float32)
        taps = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6
        along = [1, 1, 1]
        along[axis] = n
        parts = [np.take(field, cell + k, axis=axis) * tap.reshape(along) for k, tap in enumerate(taps)]
        field = parts[0] + parts[1] + parts[2] + parts[3]
    return field / np.float32((151 / 315) ** 1.5)  # 151/315: the mean of the sum of the squared taps


def ellipsoid(grid: Grid, center: Point, axes: Point, *, side: int = 1) -> Axis:
    """Signed distance to an ellipsoid; `side` -1 mirrors it to the right."""
    dx, dy, dz = grid.x - side * center[0], grid.y - center[1], grid.z - center[2]
    a, b, c = axes
    radius = np.sqrt((dx / a) ** 2 + (dy / b) ** 2 + (dz / c) ** 2)
    slope = np.sqrt((dx / (a * a)) ** 2 + (dy / (b * b)) ** 2 + (dz / (c * c)) ** 2)
    return radius * (radius - 1) / (slope + 1e-6)


def pair(grid: Grid, shape: tuple[Point, Point]) -> Axis:
    """Signed distance to an ellipsoid and its mirror image."""
    return np.minimum(ellipsoid(grid, *shape), ellipsoid(grid, *shape, side=-1))


def capsule(grid: Grid, start: Point, end: Point) -> Axis:
    """Distance to the segment between two points of the left side, for both sides at once."""
    ax, ay, az = (e - s for s, e in zip(start, end, strict=True))
    dx, dy, dz = np.abs(grid.x) - start[0], grid.y - start[1], grid.z - start[2]
    t = np.clip((dx * ax + dy * ay + dz * az) / (ax * ax + ay * ay + az * az), 0, 1)
    return np.sqrt((dx - t * ax) ** 2 + (dy - t * ay) ** 2 + (dz - t * az) ** 2)


def warp(grid: Grid, rng: Generator) -> Grid:
    """One person's anatomy: slightly rotated, scaled and deformed."""
    turn, roll = (float(angle) for angle in rng.normal(0, 0.03, 2))
    stretch = 1 + rng.normal(0, 0.025, 3)
    shape = grid.shape
    bend = [0.02 * smooth_noise(rng, shape, scale_vox=0.5 * grid.half) for _ in range(3)]
    x = grid.x + turn * grid.y + roll * grid.z + bend[0]
    y = grid.y - turn * grid.x + bend[1]
    z = grid.z - roll * grid.x + bend[2]
    sx, sy, sz = stretch.astype(np.float32)
    return Grid(x * sx, y * sy, z * sz, grid.half)


def horn_distance(point: Point) -> float:
    """Distance of a point from the midlines of the lateral ventricles, in half widths."""
    x, y, z = (np.full((1, 1, 1), a, np.float32) for a in point)
    here = Grid(x, y, z, half=1.0)
    return float(min(capsule(here, a, b).item() for a, b in (*pairwise(HORNS), TEMPORAL_HORN)))


def push(grid: Grid, center: Point, *, radius: float, strength: float) -> Grid:
    """Mass effect: the grid on which structures are displaced away from `center`."""
    dx, dy, dz = grid.x - center[0], grid.y - center[1], grid.z - center[2]
    pull = np.float32(strength) * np.exp(-(dx * dx + dy * dy + dz * dz) / np.float32((2 * radius) ** 2))
    return Grid(grid.x - pull * dx, grid.y - pull * dy, grid.z - pull * dz, grid.half)


def grow_brain(grid: Grid, deep: Grid, rng: Generator) -> Brain:
    """The brain whose outline lies on `grid` and whose deep structures and fissures lie on `deep` (the same
    grid, pushed by a tumor).
    """
    half, voxel = grid.half, grid.half / 48
    cerebrum, lower, outline = _outline(grid, rng)
    fissure_vox = _fissures(deep) * half
    ventricle_vox = _ventricles(deep, width=float(np.exp(rng.normal(0, 0.25)))) * half
    stem = ellipsoid(deep, *BRAINSTEM) < 0
    surface_vox = np.minimum(
        np.maximum(-cerebrum, -lower) * half, np.where(cerebrum < 0, fissure_vox, np.float32(99))
    )
    surface_vox[stem] = 99
    # |noise| grows by about 1 / 0.62 per scale: the product is close to a distance
    gyri = 0.065 * half * np.abs(smooth_noise(rng, grid.shape, scale_vox=0.105 * half)) + np.maximum(
        surface_vox - 0.16 * half, 0
    )
    folia = 0.03 * half * np.abs(smooth_noise(rng, grid.shape, scale_vox=0.05 * half)) + np.maximum(
        surface_vox - 0.12 * half, 0
    )
    sulcus_vox = np.where(lower < cerebrum, folia + 0.3, gyri)
    fluid = np.maximum(_ramp(0.35 * voxel - sulcus_vox), _ramp(0.3 * voxel - surface_vox))
    csf = np.maximum(fluid, _ramp(-ventricle_vox))
    ribbon = np.maximum(_ramp(2.1 * voxel - sulcus_vox), _ramp(2.4 * voxel - surface_vox))
    nuclei = np.float32(0.8) * _ramp(-np.minimum.reduce([pair(deep, s) for s in DEEP_GRAY]) * half)
    gray = np.minimum(np.maximum(ribbon, nuclei), 1 - csf)
    return Brain(
        outline < 0,
        voxel,
        csf,
        gray,
        1 - csf - gray,
        -outline * half,
        ventricle_vox,
        fissure_vox,
        -cerebrum * half,
    )


def _ramp(distance_vox: Field) -> Field:
    """Share of a voxel that a shape fills, from the signed distance to its surface (positive inside)."""
    return np.clip(distance_vox + 0.5, 0, 1).astype(np.float32)


def _outline(grid: Grid, rng: Generator) -> tuple[Field, Field, Field]:
    """Signed distances to the cerebrum, to cerebellum with stem, and to the whole brain."""
    upper = np.maximum(ellipsoid(grid, *CEREBRUM), BASE_Z - grid.z)
    cerebrum = np.minimum(upper, pair(grid, TEMPORAL_LOBE))
    lower = np.minimum(pair(grid, CEREBELLUM), ellipsoid(grid, *BRAINSTEM))
    wobble = 0.008 * smooth_noise(rng, grid.shape, scale_vox=0.16 * grid.half)
    return cerebrum + wobble, lower, np.minimum(cerebrum, lower) + wobble


def _fissures(grid: Grid) -> Field:
    """Distance to the sheet between the hemispheres (not through the corpus callosum) and to the two Sylvian
    fissures.
    """
    core = np.hypot(grid.y / 0.46, (grid.z - 0.02) / 0.22)
    between = np.hypot(grid.x, 0.25 * np.maximum(1 - core, 0))
    left = np.abs(grid.x)
    rise = grid.z + 0.10 - 0.25 * (grid.y + 0.1)
    sylvian = np.sqrt(
        rise**2 + np.maximum(0.40 - left, 0) ** 2 + np.maximum(np.abs(grid.y + 0.08) - 0.26, 0) ** 2
    )
    return np.minimum(between, sylvian).astype(np.float32)


def _ventricles(grid: Grid, *, width: float) -> Field:
    """Signed distance to the four ventricles."""
    horns = np.minimum.reduce([capsule(grid, a, b) for a, b in pairwise(HORNS)])
    taper = 0.07 + 0.012 * grid.y
    lateral = np.minimum(horns - width * taper, capsule(grid, *TEMPORAL_HORN) - width * 0.025)
    lateral = np.maximum(lateral, 0.02 - np.abs(grid.x))
    third = ellipsoid(grid, (0.0, 0.04, 0.0), (0.022 * width, 0.15, 0.10))
    fourth = ellipsoid(grid, (0.0, 0.31, -0.34), (0.05, 0.04, 0.09))
    return np.minimum(np.minimum(lateral, third), fourth).astype(np.float32)
