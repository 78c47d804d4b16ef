"""The validation scores that choose the best checkpoint."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal

import numpy as np
from torch import nn

from brats_seg.bank.bank import PatchBank
from brats_seg.core.errors import UsageError, refuse
from brats_seg.core.runtime import Runtime
from brats_seg.evaluation.overlap import JointHistogram, Overlap, joint_histogram, overlap_scores
from brats_seg.inference.dense import Feed, label_map
from brats_seg.inference.windowed import choose_window
from brats_seg.scans.grouping import HEALTHY, TUMOR
from brats_seg.scans.labels import OUTSIDE, REGIONS, region_classes, regions_of

Metric = Literal["mean_dice", "sensitivity", "f_score", "sensitivity_and_f_score", "iou", "last"]

_dice = attrgetter("dice")
_SCORES: Mapping[str, tuple[Callable[[Overlap], float], ...]] = {
    "sensitivity": (lambda overlap: overlap.sensitivity,),
    "f_score": (_dice,),
    "sensitivity_and_f_score": (lambda overlap: overlap.sensitivity, _dice),
    "iou": (lambda overlap: overlap.iou,),
}
"""For each metric of a region or class, the scores whose mean it is."""


@dataclass(frozen=True)
class InnerScores:
    """Scores of the inner cases: for each region the mean over the cases that have the region in the
    reference or in the prediction.

    Attributes:
        dice: mean Dice by region; NaN if no case has the region, or the classes of the task do not form the
            region.
        n_cases: number of cases of the mean, by region.
        value: value of the metric; NaN if no case has the region or class of the metric.
    """

    dice: dict[str, float]
    n_cases: dict[str, int]
    value: float


def check_metric(metric: Metric, *, of: str | None, classes: Sequence[str]) -> None:
    """Raise `UsageError` if the metric does not exist, `of` is not a region or class (the message lists
    them), or the metric does not use `of`.
    """
    metrics = ("mean_dice", *_SCORES, "last")
    if metric not in metrics:
        raise UsageError(f"validation.metric '{metric}': must be one of {', '.join(metrics)}")
    choices = _members(classes)
    refuse(
        (
            metric in _SCORES and of not in choices,
            f"validation.of '{of}': metric '{metric}' needs a region or class of the task: "
            f"{', '.join(choices)}",
        ),
        (
            metric not in _SCORES and of is not None,
            f"validation.of '{of}': metric '{metric}' uses all regions; leave it out",
        ),
    )


def score_inner_cases(
    network: nn.Module,
    bank: PatchBank,
    *,
    runtime: Runtime,
    divisor: int = 16,
    metric: Metric = "mean_dice",
    of: str | None = None,
) -> InnerScores:
    """Segment the bank's selected cases whole and score them; every rank gets the scores.

    If a region or class is empty in reference and prediction, the case is left out. If it is empty in one of
    them, its Dice is 0. Sensitivity leaves out cases whose reference does not have the region or class.
    Voxels outside the brain count as healthy. In a bank that is grouped to tumor classes only, voxels that
    are not tumor are ignored.

    Args:
        network: in evaluation mode, on the device of the runtime.
        bank: its selected cases are the inner cases.
        runtime: its ranks share the cases.
        divisor: the sides of the network's input must be multiples of this number.
        metric: "mean_dice" and "last" give the mean Dice of the regions (of the tumor for classes healthy and
            tumor, of the classes for tumor classes only). The other metrics use one region or class:
            "f_score" is its Dice, "sensitivity_and_f_score" the mean of both.
        of: name of the region or class.

    Raises:
        UsageError: see `check_metric`.
    """
    check_metric(metric, of=of, classes=bank.classes)
    own_histograms = {
        case: _histogram(network, bank, case, divisor)
        for case in bank.selected[runtime.rank :: runtime.world_size]
    }
    by_case: dict[int, JointHistogram] = {}
    for part in runtime.gather(own_histograms):
        by_case |= part
    # In the order of the cases, so that the sums do not depend on the number of ranks.
    histograms = [by_case[case] for case in bank.selected]
    members = _members(bank.classes)

    def mean_of(name: str, score: Callable[[Overlap], float]) -> tuple[float, int]:
        values = [score(overlap_scores(histogram, members[name])) for histogram in histograms]
        defined = [value for value in values if not np.isnan(value)]
        return _mean(defined), len(defined)

    dice = {region: mean_of(region, _dice) if region in members else (float("nan"), 0) for region in REGIONS}
    if metric in _SCORES:
        value = _mean([mean_of(str(of), score)[0] for score in _SCORES[metric]])
    else:
        judged = [mean_of(name, _dice)[0] for name in _judged_by(bank.classes)]
        value = _mean([value for value in judged if not np.isnan(value)])
    return InnerScores(
        {region: mean for region, (mean, _) in dice.items()},
        {region: n for region, (_, n) in dice.items()},
        value,
    )


def _members(classes: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Everything that can be scored: the regions that the classes form, and the classes."""
    regions = {region: region_classes(region, classes) for region in regions_of(classes)}
    if HEALTHY not in classes:
        del regions["whole"]  # it would be all voxels
    if TUMOR in classes:
        regions = {"whole": (list(classes).index(TUMOR),)}
    return regions | {name: (k,) for k, name in enumerate(classes)}


def _judged_by(classes: Sequence[str]) -> tuple[str, ...]:
    """The regions or classes over which "mean_dice" is the mean."""
    if TUMOR in classes:
        return (TUMOR,)
    return regions_of(classes) if HEALTHY in classes else tuple(classes)


def _histogram(network: nn.Module, bank: PatchBank, case: int, divisor: int) -> JointHistogram:
    image, reference = bank.volume(case)
    window = choose_window(network, patch_size=bank.patch_size, image_shape=image.shape, divisor=divisor)
    feed = Feed(3 if len(bank.patch_size) == 3 else 2, divisor, window, bank.slices_around)
    predicted = label_map(network, image, feed=feed)
    outside = reference == OUTSIDE
    if HEALTHY in bank.classes:
        reference = np.where(outside, np.uint8(bank.classes.index(HEALTHY)), reference)
    else:
        reference, predicted = reference[~outside][None, None], predicted[~outside][None, None]
    return joint_histogram(reference, predicted, len(bank.classes))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
