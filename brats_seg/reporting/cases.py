"""One case to look at: reference and prediction on one grid, as volumes, confusion and pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from brats_seg.core.errors import InputError
from brats_seg.core.shapes import Mask, TissueMap, Volume
from brats_seg.evaluation.overlap import JointHistogram, joint_histogram
from brats_seg.reporting.figures import HEALTHY, Picture, gray_levels, overlay
from brats_seg.scans.case import Case
from brats_seg.scans.labels import schema_named, to_tissue
from brats_seg.scans.predictions import written_schema
from brats_seg.scans.volume import read_volume

MODALITY_WORDS = {"t2f": "FLAIR", "t1c": "T1c", "t2w": "T2", "t1n": "T1"}
"""Modalities in the order in which a person looks at a glioma: edema on the first, the enhancing rim on the
second.
"""
MARGIN_VOX = 4


@dataclass(frozen=True)
class SeenCase:
    """A case with its reference and its prediction in memory.

    Attributes:
        case: its scans and label.
        classes: tissue classes, healthy first.
        reference: (Z, Y, X) class indices.
        prediction: (Z, Y, X) class indices.
        scans: every modality the case has, (Z, Y, X).
        spacing_mm: (Z, Y, X).
        problems: a line for each scan that could not be used.
    """

    case: Case
    classes: tuple[str, ...]
    reference: TissueMap
    prediction: TissueMap
    scans: dict[str, Volume]
    spacing_mm: tuple[float, float, float]
    problems: tuple[str, ...] = ()

    @property
    def brain(self) -> Mask | None:
        """Any modality non-zero; None if the case has a label but no scans."""
        return np.any([scan != 0 for scan in self.scans.values()], axis=0) if self.scans else None

    def confusion(self) -> JointHistogram:
        """Voxels by reference and predicted class; if the scans exist, air healthy in both is left out."""
        counts = joint_histogram(self.reference, self.prediction, len(self.classes))
        brain = self.brain
        if brain is not None:
            counts[HEALTHY, HEALTHY] -= np.count_nonzero(
                ~brain & (self.reference == HEALTHY) & (self.prediction == HEALTHY)
            )
        return counts


@dataclass(frozen=True)
class PictureRow:
    """One modality: its slice alone, under the reference, under the prediction."""

    name: str
    columns: tuple[tuple[str, Picture], ...]


def see_case(
    case: Case, prediction: Path, classes: Sequence[str], *, prediction_schema: str | None = None
) -> SeenCase:
    """Read the reference, the prediction (in the label schema that `written_schema` tells) and the scans of a
    case.

    `prediction_schema` is the schema of a prediction that is not in a `predictions.csv`.

    A scan that cannot be read, or has another shape, is left out and named in `problems`.

    Raises:
        InputError: no reference, an unreadable label map, shapes that differ, or a label value outside the
            schema.
    """
    if case.label is None:
        raise InputError(f"{case.id}: no reference label map in {case.folder}")
    stored, geometry = read_volume(case.label)
    predicted, _ = read_volume(prediction)
    if predicted.shape != stored.shape:
        raise InputError(
            f"{case.id}: {prediction} has shape {predicted.shape}; its reference has {stored.shape}"
        )
    scans, problems = _scans(case, shape=stored.shape)
    return SeenCase(
        case,
        tuple(classes),
        reference=to_tissue(stored, schema_named(case.schema), classes),
        prediction=to_tissue(
            predicted, schema_named(written_schema(case, prediction, untold=prediction_schema)), classes
        ),
        scans=scans,
        spacing_mm=geometry.spacing_mm,
        problems=problems,
    )


def see_prediction(case: Case, prediction: Path, classes: Sequence[str]) -> SeenCase:
    """`see_case` of a case without a reference: the prediction is used as the reference."""
    predicted, geometry = read_volume(prediction)
    scans, problems = _scans(case, shape=predicted.shape)
    tissue = to_tissue(predicted, schema_named(written_schema(case, prediction)), classes)
    return SeenCase(case, tuple(classes), tissue, tissue, scans, geometry.spacing_mm, problems)


def _scans(case: Case, *, shape: tuple[int, ...]) -> tuple[dict[str, Volume], tuple[str, ...]]:
    scans, problems = {}, []
    for name, file in case.modalities.items():
        try:
            scan, _ = read_volume(file)
        except InputError as error:
            problems.append(f"{case.id}: {error}")
            continue
        if scan.shape == shape:
            scans[name] = scan
        else:
            problems.append(f"{case.id}: {file}: shape {scan.shape}; its reference has {shape}")
    return scans, tuple(problems)


def best_slice(seen: SeenCase) -> int:
    """Index Z of the slice with the largest reference region; without one, with the most predicted tumor;
    else the middle.
    """
    for labels in (seen.reference, seen.prediction):
        areas = np.count_nonzero(labels != HEALTHY, axis=(1, 2))
        if areas.any():
            return int(areas.argmax())
    return seen.reference.shape[0] // 2


def case_pictures(
    seen: SeenCase, *, modalities: Sequence[str] = ("t2f", "t1c"), z: int | None = None, scale: int = 2
) -> tuple[PictureRow, ...]:
    """Pictures of one axial slice, cropped to the brain: each modality alone, under the reference, under the
    prediction.

    Args:
        seen: the case.
        modalities: which ones; those the case has not are left out.
        z: the slice; `best_slice` by default.
        scale: screen pixels for each voxel.
    """
    brain = seen.brain
    z = best_slice(seen) if z is None else z
    if brain is None:
        return ()
    return tuple(
        _picture_row(seen, name, brain=brain, z=z, scale=scale) for name in modalities if name in seen.scans
    )


def _picture_row(seen: SeenCase, modality: str, *, brain: Mask, z: int, scale: int) -> PictureRow:
    scan = seen.scans[modality]
    window = _extent(np.any(brain, axis=(0, 2))), _extent(np.any(brain, axis=(0, 1)))  # in Y and in X
    low, high = np.percentile(scan[brain], (0.5, 99.5)) if brain.any() else (0.0, 1.0)
    gray = gray_levels(scan[z][window], low=float(low), high=float(high))
    reference, prediction = seen.reference[z][window], seen.prediction[z][window]
    layers = {
        "scan alone": (np.zeros_like(reference), None),
        "reference": (reference, None),
        "prediction": (prediction, None if seen.reference is seen.prediction else reference),
    }
    aspect = seen.spacing_mm[1] / seen.spacing_mm[2]
    columns = tuple(
        (name, overlay(gray, labels, classes=seen.classes, outline=outline, scale=scale, aspect=aspect))
        for name, (labels, outline) in layers.items()
    )
    return PictureRow(MODALITY_WORDS[modality], columns)


def _extent(is_filled: Bool[np.ndarray, " n"]) -> slice:
    filled = np.flatnonzero(is_filled)
    if len(filled) == 0:
        return slice(None)
    return slice(max(int(filled[0]) - MARGIN_VOX, 0), int(filled[-1]) + MARGIN_VOX + 1)
