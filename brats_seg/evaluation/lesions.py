"""Lesion-wise scores as in BraTS: each reference lesion is compared with all predictions that touch it, or
one to one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from brats_seg.core.shapes import Mask
from brats_seg.evaluation.surface import Definition, Spacing, grown, hd95_mm, joint_crop, mean_surface_dice

Numbers = Int[np.ndarray, "z y x"]
"""Number of the lesion at each voxel, 0 elsewhere."""

_FACES_AND_EDGES = ndimage.generate_binary_structure(3, 2)
_ALL_NEIGHBORS = np.ones((3, 3, 3), bool)
_OFFSETS = [offset for offset in product((-1, 0, 1), repeat=3) if 0 in offset]
"""The offsets from a voxel to itself and to its neighbors that share a face or an edge."""
_LEAST_DICE = 1e-6


@dataclass(frozen=True)
class LesionRule:
    """What a lesion is, and which lesions are compared. The defaults are those of gliomas in 2023.

    Attributes:
        matching: "touching": a reference lesion is compared with all predicted lesions that its growth
            touches. "one_to_one": components of reference and prediction are paired so that the sum of Dice
            is largest.
        dilations: how many times a reference lesion is dilated to find its neighbors and its predictions.
        smallest_mm3: reference lesions of this volume or less are not scored.
        smallest_of: other values of `smallest_mm3`, by name of the region or tissue class.
        joined_by: region or tissue class -> tissue classes. Lesions that touch the same lesion of one of
            these classes are joined, one class after the other.
        predictions: "joined": predicted lesions are dilated and merged like reference lesions, and those of
            `smallest_mm3` or less are left out.
        false_lesions: "left_out": false lesions do not lower a mean.
        missed_lesions: "left_out": means are over found lesions only.
        large_mm3: reference lesions of at least this volume are averaged; smaller ones are only counted as
            detected or not. 0 averages all.
        detected_dice: Dice from which a lesion counts as detected, where `large_mm3` is set.
    """

    matching: Literal["touching", "one_to_one"] = "touching"
    dilations: int = 3
    smallest_mm3: float = 50.0
    smallest_of: Mapping[str, float] = field(default_factory=dict)
    joined_by: Mapping[str, Sequence[str]] = field(default_factory=dict)
    predictions: Literal["single", "joined"] = "single"
    false_lesions: Literal["counted", "left_out"] = "counted"
    missed_lesions: Literal["counted", "left_out"] = "counted"
    large_mm3: float = 0.0
    detected_dice: float = 0.0


GLIOMA_2023 = LesionRule()


@dataclass(frozen=True)
class FoundLesion:
    """A reference lesion and its prediction.

    Attributes:
        mm3: volume of the reference lesion.
        dice: of the two.
        hd95_mm: of the two; NaN if distances were not measured.
        surface_dice: of the two, for each tolerance.
    """

    mm3: float
    dice: float
    hd95_mm: float = float("nan")
    surface_dice: tuple[float, ...] = ()


@dataclass(frozen=True)
class Lesions:
    """The found, missed and false lesions of one region.

    Attributes:
        found: reference lesions that have a predicted lesion.
        missed_mm3: volume of each reference lesion that has none.
        false_mm3: volume of each predicted lesion that no reference lesion has, small ones included.
    """

    found: tuple[FoundLesion, ...]
    missed_mm3: tuple[float, ...]
    false_mm3: tuple[float, ...]

    @property
    def dice(self) -> tuple[float, ...]:
        """One for every reference lesion that was found."""
        return tuple(lesion.dice for lesion in self.found)

    @property
    def hd95_mm(self) -> tuple[float, ...]:
        """One for every reference lesion that was found."""
        return tuple(lesion.hd95_mm for lesion in self.found)

    @property
    def n_missed(self) -> int:
        """Reference lesions without a prediction."""
        return len(self.missed_mm3)

    @property
    def n_false(self) -> int:
        """Predicted lesions without a reference."""
        return len(self.false_mm3)

    @property
    def n_counted(self) -> int:
        """The number of lesions in a mean over all lesions."""
        return len(self.found) + self.n_missed + self.n_false


def match_lesions(
    reference: Mask,
    prediction: Mask,
    *,
    spacing_mm: Spacing,
    rule: LesionRule = GLIOMA_2023,
    region: str = "whole",
    others: Mapping[str, Mask] | None = None,
    hd95: Definition | Literal["left_out"] = "surface_weighted",
    tolerances_mm: Sequence[float] = (),
) -> Lesions:
    """Compare every reference lesion with its predicted lesions (Saluja et al., BraTS 2023 lesion-wise
    metrics, and BraTS 2024; one to one as panoptica does for BraTS 2026).

    Lesions are 26-connected. With the matching "touching", reference lesions that meet after dilation (over
    faces and edges) are one lesion. A reference lesion is compared with all predicted lesions that it touches
    after dilation; the whole of each predicted lesion counts. Reference lesions that are too small are left
    out, but a prediction that touches them is not a false positive.

    Args:
        reference: (Z, Y, X).
        prediction: the same, same shape.
        spacing_mm: voxel size along (Z, Y, X).
        rule: what a lesion is.
        region: name of the region or tissue class, for the parts of the rule that differ by it.
        others: reference masks of the tissue classes that the rule names in `joined_by`.
        hd95: definition of HD95; "left_out" skips HD95 and surface Dice, which take most of the time.
        tolerances_mm: of surface Dice.
    """
    margin = rule.dilations + 1 if rule.matching == "touching" else 1
    box = grown(joint_crop(reference.view(np.uint8), prediction.view(np.uint8)), reference.shape, by=margin)
    reference, prediction = reference[box], prediction[box]
    voxel_mm3 = float(np.prod(np.asarray(spacing_mm, np.float64)))
    compare = partial(
        _compare, voxel_mm3=voxel_mm3, spacing_mm=spacing_mm, hd95=hd95, tolerances_mm=tolerances_mm
    )
    if rule.matching == "one_to_one":
        return _one_to_one(reference, prediction, voxel_mm3=voxel_mm3, compare=compare)
    lesions = _merged_lesions(reference, rule.dilations)
    for tissue in rule.joined_by.get(region, ()):
        if others is not None and tissue in others:
            lesions = _joined(lesions, _merged_lesions(others[tissue][box], rule.dilations))
    smallest_mm3 = rule.smallest_of.get(region, rule.smallest_mm3)
    if rule.predictions == "joined":
        predicted = _merged_lesions(prediction, rule.dilations)
        sizes = np.bincount(predicted.ravel())
        predicted = np.where(sizes[predicted] * voxel_mm3 <= smallest_mm3, 0, predicted)
    else:
        predicted, _ = ndimage.label(prediction, _ALL_NEIGHBORS)
    return _touched(
        lesions,
        predicted,
        dilations=rule.dilations,
        smallest_mm3=smallest_mm3,
        voxel_mm3=voxel_mm3,
        compare=compare,
    )


def _compare(
    truth: Mask,
    answer: Mask,
    *,
    voxel_mm3: float,
    spacing_mm: Spacing,
    hd95: Definition | Literal["left_out"],
    tolerances_mm: Sequence[float],
) -> FoundLesion:
    """A reference lesion against what was predicted for it."""
    mm3 = float(truth.sum()) * voxel_mm3
    dice = 2.0 * float((truth & answer).sum()) / float(truth.sum() + answer.sum())
    if hd95 == "left_out":
        return FoundLesion(mm3, dice)
    near = grown(joint_crop(truth.view(np.uint8), answer.view(np.uint8)), truth.shape, by=1)
    return FoundLesion(
        mm3,
        dice,
        hd95_mm(truth[near], answer[near], spacing_mm=spacing_mm, definition=hd95),
        mean_surface_dice(truth[near], answer[near], spacing_mm=spacing_mm, tolerances_mm=tolerances_mm),
    )


def _touched(
    lesions: Numbers,
    predicted: Numbers,
    *,
    dilations: int,
    smallest_mm3: float,
    voxel_mm3: float,
    compare: Callable[[Mask, Mask], FoundLesion],
) -> Lesions:
    touched: set[int] = set()
    pairs: list[FoundLesion] = []
    missed: list[float] = []
    for lesion, found_in in enumerate(ndimage.find_objects(lesions), start=1):
        if found_in is None:
            continue
        near = grown(found_in, lesions.shape, by=dilations + 1)
        own = lesions[near] == lesion
        hits = _touching(own, predicted[near], dilations)
        touched.update(hits)
        mm3 = float(own.sum()) * voxel_mm3
        if mm3 <= smallest_mm3:
            continue
        if hits:
            pairs.append(compare(lesions == lesion, np.isin(predicted, hits)))
        else:
            missed.append(mm3)
    sizes = np.bincount(predicted.ravel())
    false = [float(n) * voxel_mm3 for i, n in enumerate(sizes) if i and n and i not in touched]
    return Lesions(tuple(pairs), tuple(missed), tuple(false))


def _one_to_one(
    reference: Mask, prediction: Mask, *, voxel_mm3: float, compare: Callable[[Mask, Mask], FoundLesion]
) -> Lesions:
    """Pairs of components with the largest sum of Dice (the assignment of panoptica's MaxBipartiteMatching);
    components without a common voxel are not paired.
    """
    lesions, n_lesions = ndimage.label(reference, _ALL_NEIGHBORS)
    predicted, n_predicted = ndimage.label(prediction, _ALL_NEIGHBORS)
    shared = np.zeros((n_lesions + 1, n_predicted + 1), np.int64)
    both = reference & prediction
    np.add.at(shared, (lesions[both], predicted[both]), 1)
    n_voxels = np.bincount(lesions.ravel(), minlength=n_lesions + 1)[1:]
    n_answer = np.bincount(predicted.ravel(), minlength=n_predicted + 1)[1:]
    dice = 2 * shared[1:, 1:] / (n_voxels[:, None] + n_answer[None, :])
    pairs = [
        (i, j)
        for i, j in zip(*linear_sum_assignment(dice, maximize=True), strict=True)
        if dice[i, j] > _LEAST_DICE
    ]
    lesions_found = [compare(lesions == i + 1, predicted == j + 1) for i, j in pairs]
    rows, columns = {i for i, _ in pairs}, {j for _, j in pairs}
    return Lesions(
        tuple(lesions_found),
        tuple(float(n) * voxel_mm3 for i, n in enumerate(n_voxels) if i not in rows),
        tuple(float(n) * voxel_mm3 for j, n in enumerate(n_answer) if j not in columns),
    )


def _merged_lesions(reference: Mask, dilations: int) -> Numbers:
    """Number of the lesion at each voxel of the reference, 0 elsewhere. Lesions that meet after dilation
    share a number.
    """
    grown = (
        ndimage.binary_dilation(reference, _FACES_AND_EDGES, iterations=dilations) if dilations else reference
    )
    labels, _ = ndimage.label(grown, _ALL_NEIGHBORS)
    return np.where(reference, labels, 0)


def _joined(lesions: Numbers, others: Numbers) -> Numbers:
    """Lesions that touch (by a face or an edge) the same lesion of another tissue become one. A lesion that
    touches several is joined to the first of them in the order of x, then y, then z.
    """
    order = {int(i): n for n, i in enumerate(dict.fromkeys(others.transpose(2, 1, 0).ravel().tolist()))}
    padded = np.pad(others, 1)
    partner: dict[int, int] = {}
    for shift in _OFFSETS:
        moved = padded[tuple(slice(1 + s, 1 + s + n) for s, n in zip(shift, others.shape, strict=True))]
        meet = (lesions > 0) & (moved > 0)
        for lesion, other in {(int(a), int(b)) for a, b in zip(lesions[meet], moved[meet], strict=True)}:
            if lesion not in partner or order[other] < order[partner[lesion]]:
                partner[lesion] = other
    table = np.arange(int(lesions.max(initial=0)) + 1)
    first: dict[int, int] = {}
    for lesion, other in sorted(partner.items()):
        table[lesion] = first.setdefault(other, lesion)
    return table[lesions]


def _touching(
    lesion: Bool[np.ndarray, "z y x"], predicted: Int[np.ndarray, "z y x"], dilations: int
) -> list[int]:
    grown = ndimage.binary_dilation(lesion, _FACES_AND_EDGES, iterations=dilations) if dilations else lesion
    return [int(i) for i in np.unique(predicted[grown]) if i != 0]
