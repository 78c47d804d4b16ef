"""Label map -> a surface for each region (.stl)."""

import numpy as np
from skimage.measure import marching_cubes

from brats_seg.core.shapes import Mask
from brats_seg.scans.geometry import Geometry

_HEADER = b"brats-seg surface, millimeters, SPACE=LPS"
"""From this text 3D Slicer reads the directions of the axes."""
_TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("rest", "<u2")])


def stl_bytes(mask: Mask, geometry: Geometry) -> bytes:
    """A binary STL of the border of a region, in LPS millimeters: halfway between voxels in and out, by
    marching cubes, without smoothing.

    Args:
        mask: (Z, Y, X) in LPS; a voxel or more is in.
        geometry: of the scan.
    """
    corners, faces, _, _ = marching_cubes(np.pad(mask, 1).astype(np.float32), 0.5)
    to_ras = geometry.lps_affine
    places = (corners[:, ::-1] - 1) @ to_ras[:3, :3].T + to_ras[:3, 3]
    triangles = np.zeros(len(faces), _TRIANGLE)
    triangles["corners"] = (places * (-1, -1, 1))[faces]
    sides = np.diff(triangles["corners"], axis=1)
    normal = np.cross(sides[:, 0], sides[:, 1])
    triangles["normal"] = normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    return _HEADER.ljust(80) + np.uint32(len(faces)).tobytes() + triangles.tobytes()
