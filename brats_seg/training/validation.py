"""The numbers that pick the best checkpoint."""

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
"""What each metric of something is the mean of."""


@dataclass(frozen=True)
class InnerScores:
    """How the inner cases were segmented: for each region the mean over the cases where it is there, in the
    reference or in the prediction.

    Attributes:
        dice: mean Dice by region; NaN where no case has it, or the classes of the task do not make it.
        n_cases: cases that the mean is over, by region.
        value: of the metric asked for; NaN where no case has what it is of.
    """

    dice: dict[str, float]
    n_cases: dict[str, int]
    value: float


def check_metric(metric: Metric, *, of: str | None, classes: Sequence[str]) -> None:
    """Raise `UsageError` where there is no such metric, or `of` is no region or class (they are listed), or
    goes with another metric.
    """
    metrics = ("mean_dice", *_SCORES, "last")
    if metric not in metrics:
        raise UsageError(f"validation.metric '{metric}': must be one of {', '.join(metrics)}")
    choices = _members(classes)
    refuse(
        (
            metric in _SCORES and of not in choices,
            f"validation.of '{of}': metric '{metric}' is of a region or class of the task: "
            f"{', '.join(choices)}",
        ),
        (
            metric not in _SCORES and of is not None,
            f"validation.of '{of}': metric '{metric}' is of all of them; leave it out",
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

    A region or class that is empty in reference and prediction alike leaves its case out; empty in one of
    them is a Dice of 0. Sensitivity leaves out the cases whose reference has none. Voxels outside the brain
    count as healthy; in a bank grouped to tumor classes alone, what is no tumor is not looked at.

    Args:
        network: in evaluation mode, on the runtime's device.
        bank: its selected cases are the inner cases.
        runtime: its ranks share the cases.
        divisor: what the sides of the network's input must be a multiple of.
        metric: "mean_dice" and "last" give the mean of the regions' Dice (of the tumor's for healthy or
            tumor, of the classes' among tumor classes alone); the others are of one region or class.
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
    """What can be scored: the regions that the classes make, and the classes."""
    regions = {region: region_classes(region, classes) for region in regions_of(classes)}
    if HEALTHY not in classes:
        del regions["whole"]  # all there is
    if TUMOR in classes:
        regions = {"whole": (list(classes).index(TUMOR),)}
    return regions | {name: (k,) for k, name in enumerate(classes)}


def _judged_by(classes: Sequence[str]) -> tuple[str, ...]:
    """Regions or classes whose Dice "mean_dice" is the mean of."""
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
