"""Reference and prediction of one case, cropped, and what was measured on them already."""

from collections.abc import Mapping
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
from brats_seg.evaluation.table import Convention

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
    _lesions: dict[tuple[Members, str], Lesions] = field(default_factory=dict, repr=False)

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

    def lesions(
        self, members: Members, convention: Convention, *, region: str, tissues: Mapping[str, int]
    ) -> Lesions:
        """The region, lesion by lesion, as a lesion-wise convention has it.

        Args:
            members: class indices of the region.
            convention: whose rule is followed.
            region: name of the region or tissue class.
            tissues: class index of each tissue class.
        """
        key, rule = (members, convention.name), convention.lesions
        assert rule is not None
        if key not in self._lesions:
            reference, prediction = self.masks(members)
            self._lesions[key] = match_lesions(
                reference,
                prediction,
                spacing_mm=self.spacing_mm,
                rule=rule,
                region=region,
                others={
                    name: self.masks((tissues[name],))[0]
                    for name in rule.joined_by.get(region, ())
                    if name in tissues
                },
                hd95=convention.hd95,
                tolerances_mm=convention.lesion_tolerances_at(self.spacing_mm),
            )
        return self._lesions[key]


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


RIM = 6
"""One more than the most dilations of the lesion-wise scores."""
