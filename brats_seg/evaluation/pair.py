"""Reference and prediction of one case, cropped, and what was measured on them already."""

from dataclasses import dataclass, field

import numpy as np

from brats_seg.core.shapes import Mask, TissueMap
from brats_seg.evaluation.lesions import Lesions, match_lesions
from brats_seg.evaluation.surface import (
    Definition,
    Spacing,
    SurfaceDistances,
    joint_crop,
    patch_distances,
    region_distances,
)

Members = tuple[int, ...]
"""The class indices that make a region."""


@dataclass(frozen=True)
class Pair:
    """Both tissue maps (Z, Y, X) of a case, cropped to what is not healthy in either.

    Active and enhancing core are the same voxels, and directed and pooled HD95 look at the same distances:
    each is measured once.
    """

    reference: TissueMap
    prediction: TissueMap
    spacing_mm: tuple[float, ...]
    _distances: dict[tuple[Members, bool], SurfaceDistances] = field(default_factory=dict, repr=False)
    _lesions: dict[Members, Lesions] = field(default_factory=dict, repr=False)

    def masks(self, members: Members) -> tuple[Mask, Mask]:
        """The region in the reference and in the prediction."""
        table = np.zeros(256, bool)
        table[list(members)] = True
        return table[self.reference], table[self.prediction]

    def distances(self, members: Members, definition: Definition) -> SurfaceDistances:
        """Between the two surfaces of the region."""
        key = members, definition == "surface_weighted"
        if key not in self._distances:
            if definition == "surface_weighted":
                self._distances[key] = patch_distances(*self.masks(members), spacing_mm=self.spacing_mm)
            else:
                self._distances[key] = region_distances(
                    self.reference, self.prediction, members, spacing_mm=self.spacing_mm
                )
        return self._distances[key]

    def lesions(self, members: Members) -> Lesions:
        """The region, lesion by lesion."""
        if members not in self._lesions:
            reference, prediction = self.masks(members)
            self._lesions[members] = match_lesions(reference, prediction, spacing_mm=self.spacing_mm)
        return self._lesions[members]


def make_pair(reference: TissueMap, prediction: TissueMap, *, spacing_mm: Spacing) -> Pair:
    """Crop the maps of a case; `spacing_mm` is the voxel size along (Z, Y, X).

    The crop keeps a rim of voxels where the image has one, so that a lesion grows inside it as it would in
    the whole image.
    """
    crop = tuple(
        slice(max(0, s.start - RIM), min(n, s.stop + RIM))
        for s, n in zip(joint_crop(reference, prediction), reference.shape, strict=True)
    )
    return Pair(
        np.ascontiguousarray(reference[crop]),
        np.ascontiguousarray(prediction[crop]),
        tuple(float(s) for s in spacing_mm),
    )


RIM = 4
"""One more than the three dilations of the lesion-wise scores."""
