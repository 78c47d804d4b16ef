"""The numbers that pick the best checkpoint."""

from dataclasses import dataclass

import numpy as np
from torch import nn

from brats_seg.bank.bank import PatchBank
from brats_seg.core.runtime import Runtime
from brats_seg.evaluation.overlap import joint_histogram, overlap_scores
from brats_seg.inference.dense import label_map
from brats_seg.inference.windowed import choose_window
from brats_seg.scans.labels import OUTSIDE, REGIONS, region_classes


@dataclass(frozen=True)
class InnerScores:
    """Dice on the inner cases: for each region the mean over the cases where it is there, in the reference or in the prediction.

    Attributes:
        dice: mean Dice by region; NaN where no case has it.
        n_cases: cases that the mean is over, by region.
    """

    dice: dict[str, float]
    n_cases: dict[str, int]

    def value_of(self, metric: str) -> float:
        """A region's Dice, or under "mean_dice" and "last" the mean of the regions that have one; NaN where there is none."""
        if metric in self.dice:
            return self.dice[metric]
        known = [value for value in self.dice.values() if not np.isnan(value)]
        return sum(known) / len(known) if known else float("nan")


def score_inner_cases(network: nn.Module, bank: PatchBank, *, runtime: Runtime, divisor: int = 16) -> InnerScores:
    """Segment the bank's selected cases whole and score them; every rank gets the scores.

    A region that is empty in reference and prediction alike leaves its case out; empty in one of them is a Dice of 0. Voxels outside the
    brain count as healthy.

    Args:
        network: in evaluation mode, on the runtime's device.
        bank: its selected cases are the inner cases.
        runtime: its ranks share the cases.
        divisor: what the sides of the network's input must be a multiple of.
    """
    mine = {case: _score_case(network, bank, case, divisor) for case in bank.selected[runtime.rank :: runtime.world_size]}
    by_case: dict[int, dict[str, float]] = {}
    for part in runtime.gather(mine):
        by_case |= part
    # In the order of the cases, so that the sum does not depend on the number of ranks.
    values = {region: [by_case[case][region] for case in bank.selected if not np.isnan(by_case[case][region])] for region in REGIONS}
    return InnerScores(
        dice={region: sum(found) / len(found) if found else float("nan") for region, found in values.items()},
        n_cases={region: len(found) for region, found in values.items()},
    )


def _score_case(network: nn.Module, bank: PatchBank, case: int, divisor: int) -> dict[str, float]:
    image, tissue = bank.volume(case)
    window = choose_window(network, patch_size=bank.patch_size)
    predicted = label_map(network, image, n_dims=3 if len(bank.patch_size) == 3 else 2, divisor=divisor, window=window)
    reference = np.where(tissue == OUTSIDE, np.uint8(0), tissue)
    histogram = joint_histogram(reference, predicted, len(bank.classes))
    return {region: overlap_scores(histogram, region_classes(region, bank.classes)).dice for region in REGIONS}
