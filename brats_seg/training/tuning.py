"""Find the strength of prior correction, region thresholds and clean-up thresholds on the inner cases of one
or several runs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from brats_seg.bank.bank import PatchBank
from brats_seg.core.progress import track
from brats_seg.core.shapes import Mask, TissueMap
from brats_seg.core.statistics import paired_difference
from brats_seg.evaluation.conventions import CONVENTIONS
from brats_seg.evaluation.lesions import match_lesions
from brats_seg.evaluation.overlap import joint_histogram, overlap_scores
from brats_seg.evaluation.scores import RIM
from brats_seg.evaluation.surface import grown, joint_crop
from brats_seg.inference.decisions import Cleanup, clean_up, cut_regions
from brats_seg.inference.dense import brain_mask, class_probabilities, most_likely
from brats_seg.inference.options import Objective, Settings
from brats_seg.inference.segmenter import Segmenter
from brats_seg.models.readout import Readout
from brats_seg.scans.labels import OUTSIDE, region_classes, regions_of

STRENGTHS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Strengths of prior correction that are tried."""
THRESHOLDS = (0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8)
"""Thresholds of the probability of a region that are tried. If several are best, the first is used."""
COMPONENTS_MM3 = (10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
COMPONENT_SHARES = (0.05, 0.1, 0.2)
"""Shares of the largest component. They are below 0.3, so that a second tumor with a third of the size of the
first tumor is kept.
"""
ENHANCING_MM3 = (20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
KNOBS: Mapping[str, Sequence[float]] = {
    "threshold_whole": THRESHOLDS,
    "min_component_mm3": COMPONENTS_MM3,
    "min_component_share": COMPONENT_SHARES,
    "threshold_core": THRESHOLDS,
    "min_core_component_mm3": COMPONENTS_MM3,
    "threshold_active": THRESHOLDS,
    "min_active_component_mm3": COMPONENTS_MM3,
    "min_enhancing_mm3": ENHANCING_MM3,
}
"""The thresholds that are tried after the strength, in this order: from the whole tumor inward, because each
region lies in the region before.
"""
FEWEST_PATIENTS = 3
"""With fewer patients no threshold is used. With two patients, both gain by chance in one of four trials, and
several values are tried.
"""

Places = Int64[np.ndarray, "n"]
"""Flat positions of n voxels."""
Classes = UInt8[np.ndarray, "n"]
"""The class of each of n voxels."""
Factors = Float32[np.ndarray, "k"]
"""Factors of the class probabilities."""

_TIE = 1e-6  # a gain below this value is a rounding error


@dataclass(frozen=True, eq=False)
class SeenCase:
    """An inner case of a run with the predictions of its network, stored only for the voxels that are tumor
    in the reference or can become tumor with any setting.

    Attributes:
        id: id of the case.
        patient: patient of the case.
        run: number of the run of the network.
        classes, readout: classes and readout of the network.
        spacing_mm: voxel size along (Z, Y, X).
        shape: shape (Z, Y, X) of the box that contains the voxels and a border around them.
        places: flat positions of the voxels in the box.
        probabilities: class probabilities without prior correction.
        reference: class of each voxel.
        factors: strength -> factor of each class probability, before the probabilities are normalized again.
        scores: scores that were already computed.
    """

    id: str
    patient: str
    run: int
    classes: tuple[str, ...]
    readout: Readout
    spacing_mm: tuple[float, ...]
    shape: tuple[int, ...]
    places: Places
    probabilities: Float32[np.ndarray, "k n"]
    reference: Classes
    factors: Mapping[float, Factors]
    scores: dict[tuple[Settings, Objective], float] = field(default_factory=dict, repr=False)


def see_cases(
    segmenter: Segmenter, bank: PatchBank, *, shifts: Mapping[float, tuple[float, ...] | None], run: int = 0
) -> Iterator[SeenCase]:
    """Run a network once on the selected cases of the bank.

    Args:
        segmenter: a segmenter without `class_shift`.
        bank: its selected cases are the inner cases of the run. No other case is read.
        shifts: strength of prior correction -> values that it adds to the logits of each class. The first
            strength is 0, the last is the largest.
        run: number of the run.
    """
    nothing = (0.0,) * len(bank.classes)
    factors = {
        strength: np.exp(nothing if shift is None else shift).astype(np.float32)
        for strength, shift in shifts.items()
    }
    for number in track(bank.selected, total=len(bank.selected), label="tuning"):
        image, tissue = bank.volume(number)
        reference = np.where(tissue == OUTSIDE, np.uint8(0), tissue)
        probabilities = class_probabilities(
            segmenter.network,
            image,
            feed=segmenter.feed_for(image),
            readout=segmenter.readout,
        )
        brain, needed = brain_mask(image), reference != 0
        for factor in (
            factors[min(factors)],
            factors[max(factors)],
        ):  # the tumor probability of a voxel is highest at one of the two ends
            weighted = probabilities * factor[:, None, None, None]
            needed |= brain & (
                weighted[0] < (1.001 - min(THRESHOLDS)) * weighted.sum(axis=0)
            )  # 0.001 for rounding
        box = _box(needed)
        inside = needed[box]
        healthy = np.eye(len(bank.classes), 1, dtype=np.float32)[:, :, None, None]  # outside the brain
        seen = np.where(brain[box], probabilities[:, *box], healthy)
        yield SeenCase(
            id=bank.cases[number].id,
            patient=bank.cases[number].patient,
            run=run,
            classes=tuple(bank.classes),
            readout=segmenter.readout,
            spacing_mm=tuple(bank.cases[number].spacing_mm),
            shape=inside.shape,
            places=np.flatnonzero(inside),
            probabilities=np.ascontiguousarray(seen[:, inside]),
            reference=reference[box][inside],
            factors=factors,
        )


def search(
    cases: Sequence[SeenCase], *, objective: Objective = "dice", cleanup: bool = True
) -> tuple[Settings, dict[str, Any]]:
    """Find the best settings for all cases together: first the strength, then one threshold after the other.

    The strength with the best mean score is used, and the smallest one if several are equal. A threshold is
    used if its best value raises the score with cases of at least `FEWEST_PATIENTS` patients, and the 95 %
    interval of the paired difference excludes zero. Otherwise the default is kept.

    Args:
        cases: cases of one or several runs. Only strengths that all cases have are tried.
        objective: the score to maximize.
        cleanup: whether thresholds are tried. If not, the strength is the best one without clean-up.

    Returns:
        The settings, and the fields of `Tuning` that say how they were found.
    """

    def scores(settings: Settings) -> dict[str, float]:
        return {f"{case.run} {case.id}": _score(case, settings, objective) for case in cases}

    def mean(settings: Settings) -> float:
        return float(np.mean(list(scores(settings).values())))

    def gain(first: Settings, second: Settings) -> dict[str, Any]:
        return paired_difference(
            scores(first),
            scores(second),
            patient_of={f"{case.run} {case.id}": case.patient for case in cases},
        )

    def best_of(candidates: Sequence[Settings]) -> Settings:
        means = [mean(candidate) for candidate in candidates]
        return candidates[next(i for i, value in enumerate(means) if value >= max(means) - _TIE)]

    strengths = [strength for strength in cases[0].factors if all(strength in case.factors for case in cases)]
    best, notes = best_of([Settings(correct_priors=strength) for strength in strengths]), []
    n_patients = len({case.patient for case in cases})
    for knob, values in _knobs(cases[0].classes).items() if cleanup else ():
        candidate = best_of([best, *(replace(best, **{knob: value}) for value in values)])
        if candidate == best:
            continue
        step_gain = gain(best, candidate)
        if n_patients >= FEWEST_PATIENTS and step_gain["interval95"][0] > 0:
            best = candidate
            continue
        what = f"{knob} {getattr(candidate, knob):g} would raise the score by {step_gain['mean']:.4f}"
        low, high = step_gain["interval95"] or (0.0, 0.0)
        why = (
            f"{n_patients} of the {FEWEST_PATIENTS} required patients"
            if n_patients < FEWEST_PATIENTS
            else f"95 % interval {low:.4f} to {high:.4f}"
        )
        notes.append(f"{what} ({why}): not taken over")
    whole_gain = gain(Settings(), best)
    return best, {
        "n_cases": len(cases),
        "n_patients": n_patients,
        "n_runs": len({case.run for case in cases}),
        "objective": objective,
        "score": round(mean(best), 6),
        "score_before": round(mean(Settings()), 6),
        "gain_interval95": whole_gain["interval95"]
        and tuple(round(end, 6) for end in whole_gain["interval95"]),
        "notes": tuple(notes),
    }


def _knobs(classes: Sequence[str]) -> dict[str, Sequence[float]]:
    """The knobs of `KNOBS` whose regions consist of the classes."""
    made = set(regions_of(classes)) | ({"enhancing"} if "enhancing_core" in classes else set())
    whole_knobs = ("min_component_mm3", "min_component_share")
    return {k: v for k, v in KNOBS.items() if k in whole_knobs or made & set(k.split("_"))}


def _score(case: SeenCase, settings: Settings, objective: Objective) -> float:
    """The objective for one case, computed once for each point of the search."""
    key = (settings, objective)
    if key not in case.scores:
        labels = _labels(case, settings)
        case.scores[key] = (
            _lesion_dice(case, labels) if objective == "lesion_dice" else _mean_dice(case, labels)
        )
    return case.scores[key]


def _labels(case: SeenCase, settings: Settings) -> Classes:
    probabilities = case.probabilities[:, None, None]
    if settings.correct_priors:
        weighted = probabilities * case.factors[settings.correct_priors][:, None, None, None]
        probabilities = weighted / weighted.sum(axis=0)
    labels = most_likely(probabilities, np.ones(probabilities.shape[1:], bool), readout=case.readout)
    labels = cut_regions(labels, probabilities, classes=case.classes, thresholds=settings.thresholds)
    if settings.cleanup == Cleanup():
        return labels[0, 0]
    cleaned = clean_up(
        _in_box(case, labels[0, 0]),
        classes=case.classes,
        spacing_mm=case.spacing_mm,
        cleanup=settings.cleanup,
    )
    return cleaned.ravel()[case.places]


def _mean_dice(case: SeenCase, labels: Classes) -> float:
    """The mean Dice over the regions that the classes form. Voxels that are healthy in both maps are not
    stored, because Dice does not need them.
    """
    histogram = joint_histogram(case.reference[None, None], labels[None, None], len(case.classes))
    values = [
        overlap_scores(histogram, region_classes(region, case.classes)).dice
        for region in regions_of(case.classes)
    ]
    return float(
        np.mean([CONVENTIONS["brats2020"].both_empty if np.isnan(value) else value for value in values])
    )


def _lesion_dice(case: SeenCase, labels: Classes) -> float:
    rule, members = CONVENTIONS["brats2023"], region_classes("whole", case.classes)
    reference, prediction = (np.isin(_in_box(case, one), members) for one in (case.reference, labels))
    lesions = match_lesions(reference, prediction, spacing_mm=case.spacing_mm, hd95="left_out")
    n_alone = lesions.n_missed + lesions.n_false
    return (
        (sum(lesions.dice) + n_alone * rule.one_empty) / lesions.n_counted
        if lesions.n_counted
        else rule.both_empty
    )


def _in_box(case: SeenCase, labels: Classes) -> TissueMap:
    """A label map (Z, Y, X) of the box from those of the stored voxels."""
    box = np.zeros(case.shape, np.uint8)
    box.ravel()[case.places] = labels
    return box


def _box(needed: Mask) -> tuple[slice, slice, slice]:
    """The box around the voxels of a mask with a border, so that lesions can grow as in the whole image; one
    voxel for an empty mask.
    """
    as_map = needed.view(np.uint8)
    box = joint_crop(as_map, as_map) if needed.any() else (slice(0, 1),) * 3
    z, y, x = grown(box, needed.shape, by=RIM)
    return z, y, x
