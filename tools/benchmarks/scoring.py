"""Dice, HD95 and a whole case of three regions, from two label maps; every figure equal to MONAI's to 4
decimals.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.metrics import ConfusionMatrixMetric, DiceMetric, HausdorffDistanceMetric
from scipy import ndimage

from benchmarks.cohort import REAL_DATA, classes_of, find_scans
from benchmarks.measure import Contender, Result, interleave
from brats_seg.evaluation.overlap import joint_histogram, overlap_scores
from brats_seg.evaluation.scores import make_pair, score_case
from brats_seg.evaluation.surface import hd95_of
from brats_seg.scans.labels import REGIONS, region_classes, schema_named, to_tissue
from brats_seg.scans.volume import read_volume

SPACING_MM = (1.0, 1.0, 1.0)
DECIMALS = 4
Scores = dict[str, list[float]]
"""Metric -> a value for each region."""


def run(*, work: Path, quick: bool) -> Result:
    """Ours beside MONAI's metrics and one pass over both maps, over all cases there are (phantoms: three)."""
    cases = find_scans(work, n_cases=1 if quick else 8 if REAL_DATA in os.environ else 3)
    classes = classes_of(cases)
    members = [region_classes(region, classes) for region in REGIONS]
    ours, theirs, copies = [], [], []
    for case in cases:
        assert case.label is not None
        reference = to_tissue(read_volume(case.label)[0], schema_named(case.schema), classes)
        prediction = worse(reference, edema=classes.index("edema"))
        ours.append(_ours(reference, prediction, classes, members))
        theirs.append(_monais(reference, prediction, members))
        copies.append(copying(reference, prediction))
        _check_equal(
            {name: score() for name, score in ours[-1].items()},
            {name: score() for name, score in theirs[-1].items()},
        )
    contenders = [
        *(
            Contender(f"ours, {name}", _each([of_case[name] for of_case in ours]), per_turn=3)
            for name in ours[0]
        ),
        *(Contender(f"MONAI, {name}", _each([of_case[name] for of_case in theirs])) for name in theirs[0]),
        Contender("copying both maps", _each(copies), per_turn=3),
    ]
    seconds = interleave(contenders, rounds=5)
    return _result({name: taken / len(cases) for name, taken in seconds.items()}, tuple(theirs[0]))


def _each(of_cases: Sequence[Callable[[], object]]) -> Callable[[], None]:
    def score() -> None:
        for of_case in of_cases:
            of_case()

    return score


def worse(reference: np.ndarray, *, edema: int) -> np.ndarray:
    """A prediction as networks make them: moved by a voxel or two, with holes, and a false blob far off."""
    coarse = np.random.default_rng(0).standard_normal([n // 8 + 1 for n in reference.shape])
    holes = ndimage.zoom(coarse, 8, order=1)[tuple(slice(n) for n in reference.shape)] > 0.9
    moved = np.where(holes, 0, np.roll(reference, (1, 2, -1), (0, 1, 2))).astype(np.uint8)
    blob = tuple(slice(2 * n // 3, 2 * n // 3 + 5) for n in reference.shape)
    moved[blob] = np.maximum(moved[blob], edema)
    return moved


def copying(reference: np.ndarray, prediction: np.ndarray) -> Callable[[], object]:
    """The limit: every voxel of both maps is read once."""
    buffer = np.empty_like(reference)

    def copy() -> None:
        np.copyto(buffer, reference)
        np.copyto(buffer, prediction)

    return copy


def _ours(
    reference: np.ndarray, prediction: np.ndarray, classes: tuple[str, ...], members: list[tuple[int, ...]]
) -> dict[str, Callable[[], Scores]]:
    def dice() -> Scores:
        histogram = joint_histogram(reference, prediction, len(classes))
        return {"dice": [overlap_scores(histogram, of_region).dice for of_region in members]}

    def hd95() -> Scores:
        pair = make_pair(reference, prediction, spacing_mm=SPACING_MM)
        return {"hd95": [hd95_of(pair.distances(of_region, "directed"), "directed") for of_region in members]}

    def whole_case() -> Scores:
        scores = score_case(
            reference,
            prediction,
            classes=classes,
            spacing_mm=SPACING_MM,
            conventions=("brats2020",),
            tissues=False,
        )
        return {
            "dice": [s.dice for s in scores],
            "hd95": [s.hd95_mm for s in scores],
            "sensitivity": [s.sensitivity for s in scores],
            "specificity": [s.specificity for s in scores],
        }

    return {"Dice": dice, "HD95": hd95, "whole case": whole_case}


def _monais(
    reference: np.ndarray, prediction: np.ndarray, members: list[tuple[int, ...]]
) -> dict[str, Callable[[], Scores]]:
    """From the label maps, as ours; and, "regions ready", without the time it takes to find the three regions
    in them.
    """

    def regions() -> tuple[torch.Tensor, torch.Tensor]:
        masks = (
            np.stack([np.isin(labels, of_region) for of_region in members])
            for labels in (prediction, reference)
        )
        a, b = (torch.from_numpy(mask)[None] for mask in masks)
        return a, b

    def dice(a: torch.Tensor, b: torch.Tensor) -> Scores:
        return {"dice": _listed(DiceMetric(include_background=True, reduction="none")(a.float(), b.float()))}

    def hd95(a: torch.Tensor, b: torch.Tensor) -> Scores:
        return {
            "hd95": _listed(
                HausdorffDistanceMetric(include_background=True, percentile=95, reduction="none")(a, b)
            )
        }

    def confusion(a: torch.Tensor, b: torch.Tensor) -> Scores:
        names = ("sensitivity", "specificity")
        metric = ConfusionMatrixMetric(
            include_background=True, metric_name=names, compute_sample=True, reduction="none"
        )
        metric(a.float(), b.float())
        return {name: _listed(found) for name, found in zip(names, metric.aggregate(), strict=True)}

    def whole_case(a: torch.Tensor, b: torch.Tensor) -> Scores:
        return dice(a, b) | hd95(a, b) | confusion(a, b)

    ready = regions()
    return {
        "Dice": lambda: dice(*regions()),
        "HD95": lambda: hd95(*regions()),
        "whole case": lambda: whole_case(*regions()),
        "Dice, regions ready": lambda: dice(*ready),
        "HD95, regions ready": lambda: hd95(*ready),
        "whole case, regions ready": lambda: whole_case(*ready),
    }


def _listed(found: Any) -> list[float]:
    """The values of each region of the only case, of a tensor (case, region)."""
    return [float(value) for value in found[0]]


def _check_equal(ours: dict[str, Scores], theirs: dict[str, Scores]) -> None:
    """MONAI has no number for a region that is empty: what counts there is a matter of convention."""
    for task, scores in theirs.items():
        for metric, values in scores.items():
            found = ours[task.removesuffix(", regions ready")][metric]
            known = np.isfinite(values)
            if not np.allclose(
                np.array(found)[known], np.array(values)[known], rtol=0, atol=0.5 * 10**-DECIMALS
            ):
                raise SystemExit(f"scoring: {metric} of {', '.join(REGIONS)} is {found}; MONAI has {values}")


def _result(seconds: dict[str, float], tasks: tuple[str, ...]) -> Result:
    ours, limit = seconds["ours, whole case"], seconds["copying both maps"]
    ratios = {
        f"MONAI, {task}": seconds[f"MONAI, {task}"] / seconds[f"ours, {task.removesuffix(', regions ready')}"]
        for task in tasks
    }
    rates = {name: 1 / taken for name, taken in seconds.items()}
    return Result(
        "scoring", "cases per second: Dice, HD95, sensitivity, specificity of three "
                   "regions", 1 / ours, 1 / limit, "MONAI",
        ratios={"MONAI": ratios.pop("MONAI, whole case"), **ratios}, share_of_limit=limit / ours,
        rows=rates | {f"{name}, ms": 1000 * taken for name, taken in seconds.items()},
    )  # fmt: skip
