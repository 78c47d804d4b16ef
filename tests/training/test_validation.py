from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_bank import write_bank
from torch import Tensor, nn

from brats_seg.bank.bank import PatchBank
from brats_seg.core.runtime import Runtime
from brats_seg.training.validation import InnerScores, score_inner_cases

CPU = Runtime(torch.device("cpu"))


class Oracle(nn.Module):
    """Reads the class off channel 0."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(x[:, 0].round().long().clamp(0, 4), 5).movedim(-1, 1).float()


def bank_of(path: Path, labels: dict[str, np.ndarray], predicted: dict[str, np.ndarray]) -> PatchBank:
    write_bank(path, names=tuple(labels))
    for case in labels:
        image = np.zeros((*labels[case].shape, 4), np.float16)
        image[..., 0] = predicted[case]
        image[..., 3] = 1  # brain everywhere
        np.save(path / "cases" / case / "image.npy", image)
        np.save(path / "cases" / case / "label.npy", labels[case])
    return PatchBank(path, patch_size=(16, 16))


def test_dice_by_hand_with_empty_regions_left_out(tmp_path: Path) -> None:
    shape = (5, 32, 24)
    a, b, c = (np.zeros(shape, np.uint8) for _ in range(3))
    a[0, 0, :4] = 2, 4, 4, 1
    guess = a.copy()
    guess[0, 0, 1] = 2  # one of two enhancing voxels taken for edema
    b[0, 0, :2] = 2  # no core, found exactly
    b[1] = 255  # outside the brain counts as healthy
    wrong = c.copy()
    wrong[0, 0, 0] = 4  # nothing there, one voxel claimed
    bank = bank_of(tmp_path / "bank", {"A": a, "B": b, "C": c}, {"A": guess, "B": np.where(b == 255, 0, b), "C": wrong})
    scores = score_inner_cases(Oracle().eval(), bank.select(["A", "B"]), runtime=CPU)
    assert scores.n_cases == {"whole": 2, "core": 1, "active": 1}
    assert scores.dice == pytest.approx({"whole": 1.0, "core": 2 * 2 / (2 + 3), "active": 2 * 1 / (1 + 2)})
    alone = score_inner_cases(Oracle().eval(), bank.select(["C"]), runtime=CPU)
    assert alone.dice == {"whole": 0, "core": 0, "active": 0}


def test_metric_is_a_region_or_the_mean_of_those_there_are() -> None:
    scores = InnerScores(dice={"whole": 0.8, "core": 0.4, "active": float("nan")}, n_cases={"whole": 1, "core": 1, "active": 0})
    assert scores.value_of("mean_dice") == pytest.approx(0.6)
    assert scores.value_of("core") == 0.4
    nothing = InnerScores(dice={"whole": float("nan")}, n_cases={"whole": 0})
    assert np.isnan(nothing.value_of("mean_dice"))
