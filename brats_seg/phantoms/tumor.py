"""The diseased half of a phantom: position of a tumor, growth of core and edema to their volumes."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from scipy.ndimage import gaussian_filter

from brats_seg.core.errors import UsageError, refuse
from brats_seg.core.shapes import Mask, TissueMap
from brats_seg.phantoms.brain import Brain, Field, Grid, Point, horn_distance, smooth_noise
from brats_seg.scans.labels import OUTSIDE, TISSUES

HEALTHY, NECROSIS, EDEMA, NON_ENHANCING, ENHANCING, CAVITY = range(len(TISSUES))
LOW_GRADE_CORE = 2.5
"""The non-enhancing share of a case without enhancing tumor, divided by the cohort's mean."""


@dataclass(frozen=True)
class Traits:
    """Averages of a cohort. Shares are of brain voxels, means over a cohort; lengths are in voxels at size
    96.

    Attributes:
        edema, enhancing, necrosis, non_enhancing: shares of the tissue classes; BraTS 2013 has 0.011, 0.0038,
            0.0018, 0.0012.
        without_enhancing: share of cases whose core has no enhancing tumor.
        lesion_sd: standard deviation of the logarithm of a lesion's volume.
        contrast: 1 as in `phantom_image.INTENSITY`; 0.5 halves the difference between tumor and white matter.
        border_vox: distance of the drawn border from the visible one.
        bright_spots: share of healthy voxels that look like edema (white-matter spots, caps of the
            ventricles).
        vessels: share of healthy voxels that enhance (vessels, sinuses, choroid plexus).
        noise: standard deviation of the noise, in units of white matter on T1.
        bias: standard deviation of the logarithm of the bias field.
        cavities: share of cases with a resection cavity.
        tumors: number of tumors of a case; together they have the volume of one.
    """

    edema: float = 0.011
    enhancing: float = 0.0038
    necrosis: float = 0.0018
    non_enhancing: float = 0.0012
    without_enhancing: float = 1 / 6
    lesion_sd: float = 0.35
    contrast: float = 1.0
    border_vox: float = 0.5
    bright_spots: float = 0.026
    vessels: float = 0.008
    noise: float = 0.04
    bias: float = 0.04
    cavities: float = 0.0
    tumors: float = 1.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < math.inf:
                raise UsageError(f"traits: {name} {value:g}: every trait is finite and 0 or more")
        refuse(
            (
                self.tumors < 1 or self.tumors % 1,
                f"traits: tumors {self.tumors:g}: a case has 1 tumor or more",
            ),
            (
                self.tumor >= 0.1,
                f"traits: the tumor shares sum to {self.tumor:g}; they must sum to less than 0.1",
            ),
        )

    @property
    def tumor(self) -> float:
        """Share of all tumor classes."""
        return self.edema + self.enhancing + self.necrosis + self.non_enhancing


class Lesion(NamedTuple):
    """One patient's tumor: volume divided by the cohort's mean, and its tissues."""

    scale: float
    enhancing: bool
    cavity: bool


@dataclass(frozen=True)
class Tumor:
    """A tumor and its edema.

    Attributes:
        tissue: indices into `labels.TISSUES`, 255 outside the brain.
        visible: share of the edema's signal in a voxel, from 0 to 1; the drawn border differs a little from
            the contour at 0.5.
    """

    tissue: TissueMap
    visible: Field


def place_tumor(rng: Generator) -> Point:
    """A point of the white matter of one hemisphere, away from outline, midline and ventricles."""
    while True:
        x, y, z = (float(a) for a in rng.uniform((0.20, -0.55, -0.08), (0.45, 0.60, 0.36)))
        inside = (x / 0.50) ** 2 + (y / 0.66) ** 2 + ((z - 0.06) / 0.36) ** 2 < 1
        if inside and horn_distance((x, y, z)) > 0.19:
            return x * (1 if rng.random() < 0.5 else -1), y, z


def grow_tumor(
    brain: Brain, grid: Grid, rng: Generator, *, center: Point, lesion: Lesion, traits: Traits
) -> Tumor:
    """Grow core and edema to their volumes: the voxels with the smallest deformed distance from the center.

    Necrosis is the middle of the core; the rest is a rim that enhances, except for patches. Edema follows
    white matter; its drawn border differs from the visible one, as for an expert.
    """
    voxel = grid.half / 48
    noise = [smooth_noise(rng, grid.shape, scale_vox=s * voxel) for s in (13, 6, 5, 4, 10, 5, 4)]
    reach = _reach(brain, grid, rng, center=center) * (1 + 0.16 * noise[0] + 0.08 * noise[1])
    n = {
        name: round(share * lesion.scale * int(brain.inside.sum()))
        for name, share in _shares(lesion, traits).items()
    }
    n_core = n["necrosis"] + n["enhancing"] + n["non_enhancing"]
    core = lowest(reach, n_core)
    necrosis = lowest(np.where(core, reach + 0.6 * voxel * noise[2], np.inf), n["necrosis"])
    patches = lowest(np.where(core & ~necrosis, noise[3] + 0.4 * noise[0], np.inf), n["non_enhancing"])
    delay = _delay(
        brain, reach, coarse=noise[4], fine=noise[5], start=float(reach[core].max(initial=0)), voxel=voxel
    )
    delay[core] = np.inf
    edema = lowest(delay + traits.border_vox * voxel * noise[6], n["edema"])
    tissue = np.where(brain.inside, np.uint8(HEALTHY), np.uint8(OUTSIDE))
    tissue[edema], tissue[core], tissue[patches], tissue[necrosis] = EDEMA, ENHANCING, NON_ENHANCING, NECROSIS
    if lesion.cavity:
        tissue[lowest(np.where(core, reach + 2 * voxel * noise[2], np.inf), n_core // 2)] = CAVITY
    edge = float(delay[lowest(delay, n["edema"])].max(initial=0)) if n["edema"] else -np.inf
    return Tumor(tissue, np.clip(0.5 + (edge - delay) / (1.3 * voxel), 0, 1).astype(np.float32))


def together(first: Tumor, second: Tumor) -> Tumor:
    """Two tumors in one brain. Where the tumors overlap, core replaces edema."""
    hidden = (second.tissue == HEALTHY) | ((second.tissue == EDEMA) & (first.tissue != HEALTHY))
    return Tumor(np.where(hidden, first.tissue, second.tissue), np.maximum(first.visible, second.visible))


def lowest(field: Field, n: int) -> Mask:
    """Mask of the n voxels where a field is lowest."""
    mask = np.zeros(field.shape, bool)
    if n > 0:
        mask.flat[np.argpartition(field, min(n, field.size) - 1, axis=None)[:n]] = True
    return mask & np.isfinite(field)


def _reach(brain: Brain, grid: Grid, rng: Generator, *, center: Point) -> Field:
    """Distance from the center in voxels, stretched at random; infinite where no tumor grows: outside, at the
    surface, in a ventricle.
    """
    stretch = np.exp(rng.normal(0, 0.12, 3)).astype(np.float32)
    offsets = (
        (grid.x - center[0]) * stretch[0],
        (grid.y - center[1]) * stretch[1],
        (grid.z - center[2]) * stretch[2],
    )
    distance = np.sqrt(offsets[0] ** 2 + offsets[1] ** 2 + offsets[2] ** 2) * np.float32(grid.half)
    surface_vox = np.float32(1.5 * grid.half / 48)
    closed = (
        ~brain.inside | (brain.depth_vox < surface_vox) | (brain.ventricle_vox < 0) | (brain.cerebrum_vox < 1)
    )
    return np.where(closed, np.float32(np.inf), distance)


def _delay(brain: Brain, reach: Field, *, coarse: Field, fine: Field, start: float, voxel: float) -> Field:
    """Path length of the edema to a voxel, in voxels: short along white matter, long in gray matter, infinite
    in fluid.
    """
    ease = 0.45 + 0.9 * gaussian_filter(brain.white, 0.8 * voxel)
    delay = np.maximum(reach - start, 0) / ease + voxel * (1.2 * coarse + 0.35 * fine)
    return np.where((brain.csf > 0.5) | ~np.isfinite(reach), np.float32(np.inf), delay.astype(np.float32))


def _shares(lesion: Lesion, traits: Traits) -> dict[str, float]:
    """Shares of one case, such that the cohort's means are those of the traits."""
    if not lesion.enhancing:
        return {
            "edema": traits.edema,
            "enhancing": 0.0,
            "necrosis": 0.0,
            "non_enhancing": LOW_GRADE_CORE * traits.non_enhancing,
        }
    rest = 1 - traits.without_enhancing
    solid = traits.non_enhancing * (1 - LOW_GRADE_CORE * traits.without_enhancing) / rest
    return {
        "edema": traits.edema,
        "enhancing": traits.enhancing / rest,
        "necrosis": traits.necrosis / rest,
        "non_enhancing": max(solid, 0.0),
    }
