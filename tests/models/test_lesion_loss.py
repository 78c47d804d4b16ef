"""Examples by hand: where the network is right it says its answer with a probability of 0.75, -log 0.287682,
where it is wrong 1.386294.
"""

from typing import Literal

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from brats_seg.core import sections as knobs
from brats_seg.core.errors import UsageError
from brats_seg.models.lesion_loss import lesion_loss, number_regions
from brats_seg.models.losses import make_loss

By = Literal["blob", "components"]
TRUTH = torch.tensor([[[1, 2, 0, 0, 0, 0, 1]]])
"""Two lesions: voxels 0 and 1, and voxel 6."""
P_TUMOR = torch.tensor([[[0.75, 0.75, 0.25, 0.75, 0.25, 0.25, 0.25]]], dtype=torch.float64)
"""The first lesion is found, voxel 3 is taken for tumor, and the second lesion is missed."""


def logits_of(p_tumor: torch.Tensor) -> torch.Tensor:
    """Logits of healthy and two tumor classes, which share the probability of tumor."""
    return torch.stack([(1 - p_tumor).log(), (p_tumor / 4).log(), (p_tumor * 3 / 4).log()], 1)


def test_each_voxel_belongs_to_the_nearest_lesion() -> None:
    regions, example_of = number_regions(TRUTH.numpy() > 0, by="components")
    assert regions.tolist() == [[[1, 1, 1, 1, 2, 2, 2]]]
    assert example_of.tolist() == [0, 0]


def test_a_blob_has_the_lesion_alone_and_the_rest_is_around_it() -> None:
    tumor = np.concatenate([TRUTH.numpy() > 0, np.zeros((1, 1, 7), bool), TRUTH.numpy() > 0])
    regions, example_of = number_regions(tumor, by="blob")
    assert regions.tolist() == [[[3, 3, 0, 0, 0, 0, 4]], [[1] * 7], [[5, 5, 2, 2, 2, 2, 6]]]
    assert example_of.tolist() == [0, 0, 2, 2]


def test_voxels_that_share_a_corner_are_one_lesion() -> None:
    corner = np.zeros((1, 3, 3, 3), bool)
    corner[0, 0, 0, 0] = corner[0, 1, 1, 1] = True
    assert len(number_regions(corner, by="blob")[1]) == 1
    assert len(number_regions(corner[:, 1], by="blob")[1]) == 1
    corner[0, 1, 1, 1], corner[0, 2, 2, 2] = False, True
    assert len(number_regions(corner, by="blob")[1]) == 2


@pytest.mark.parametrize(
    ("by", "of_first", "of_second"),
    [
        # Voxels 0 to 3: Dice 2 x 1.5 / (2.5 + 2) = 0.666667, entropy (3 x 0.287682 + 1.386294) / 4 =
        # 0.562335. Voxels 4 to 6: Dice 2 x 0.25 / (0.75 + 1) = 0.285714, entropy (2 x 0.287682 + 1.386294) /
        # 3 = 0.653886.
        ("components", 1 - 0.666667 + 0.562335, 1 - 0.285714 + 0.653886),
        # Voxels 0 to 5: Dice 2 x 1.5 / (3 + 2) = 0.6, entropy (5 x 0.287682 + 1.386294) / 6 = 0.470784.
        # Voxels 2 to 6: Dice 2 x 0.25 / (1.75 + 1) = 0.181818, entropy (3 x 0.287682 + 2 x 1.386294) / 5 =
        # 0.727127.
        ("blob", 1 - 0.6 + 0.470784, 1 - 0.181818 + 0.727127),
    ],
)
def test_two_lesions_by_hand(by: By, of_first: float, of_second: float) -> None:
    found = lesion_loss(logits_of(P_TUMOR), TRUTH, None, by=by)
    assert found.tolist() == pytest.approx([(of_first + of_second) / 2], abs=1e-4)


def test_an_example_without_a_lesion() -> None:
    """Eight healthy voxels called tumor with 0.25: one region of Dice 0 and entropy 0.287682; no blob."""
    logits, healthy = (
        logits_of(torch.full((1, 2, 4), 0.25, dtype=torch.float64)),
        torch.zeros(1, 2, 4, dtype=torch.int64),
    )
    assert lesion_loss(logits, healthy, None, by="components").tolist() == pytest.approx([1.287682], abs=1e-4)
    assert lesion_loss(logits, healthy, None, by="blob").tolist() == [0]


@pytest.mark.parametrize("by", ["blob", "components"])
def test_an_example_costs_the_same_in_any_company_and_voxels_left_out_cost_nothing(by: By) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 3, 9, 9, generator=generator)
    truth = (torch.rand(3, 9, 9, generator=generator) > 0.8).long()
    truth[1] = 0
    together = lesion_loss(logits, truth, None, by=by)
    for i in range(3):
        torch.testing.assert_close(
            together[i : i + 1], lesion_loss(logits[i : i + 1], truth[i : i + 1], None, by=by)
        )
    truth[:, 5:] = 0
    counted = torch.ones(3, 9, 9, dtype=torch.bool)
    counted[:, 5:] = False
    torch.testing.assert_close(
        lesion_loss(logits, truth, counted, by=by), lesion_loss(logits[:, :, :5], truth[:, :5], None, by=by)
    )


def test_one_lesion_is_the_loss_of_the_whole_patch() -> None:
    logits = torch.randn(1, 3, 6, 5, 4, generator=torch.Generator().manual_seed(0)).double()
    truth = torch.zeros(1, 6, 5, 4, dtype=torch.int64)
    truth[0, 1:3, 1:4, 2:] = 2
    evidence = torch.logsumexp(logits[:, 1:], 1) - logits[:, 0]
    p, t = evidence.sigmoid(), (truth > 0).double()
    whole = 1 - 2 * (p * t).sum() / (p + t).sum() + binary_cross_entropy_with_logits(evidence, t)
    for by in ("components", "blob"):
        torch.testing.assert_close(lesion_loss(logits, truth, None, by=by)[0], whole, atol=1e-4, rtol=0)


def test_it_is_added_to_dice_and_cross_entropy() -> None:
    logits, targets = logits_of(P_TUMOR), TRUTH.to(torch.uint8)
    targets[0, 0, 3] = 255  # outside counts as healthy
    section = knobs.Loss(kind="dice_cross_entropy", by_lesion="blob", by_lesion_weight=0.5)
    added = make_loss(section)(logits, targets)
    alone = make_loss("dice_cross_entropy")(logits, targets)
    torch.testing.assert_close(added, alone + 0.5 * lesion_loss(logits, TRUTH, None, by="blob"))


def test_it_needs_a_healthy_class() -> None:
    section = knobs.Loss(kind="dice_cross_entropy", by_lesion="blob")
    with pytest.raises(UsageError, match=r"loss.by_lesion 'blob' needs a network with the class healthy"):
        make_loss(section, classes=("edema", "enhancing_core"))
