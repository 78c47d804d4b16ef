import pytest
import torch
from monai.losses import DiceLoss
from monai.losses import FocalLoss as MonaiFocalLoss
from torch.nn.functional import cross_entropy, one_hot

from brats_seg.errors import UsageError
from brats_seg.models.losses import LOSSES, make_loss

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(3, 5, 8, 6, generator=GENERATOR)
TARGETS = torch.randint(0, 5, (3, 8, 6), generator=GENERATOR).to(torch.uint8)


def test_a_sure_and_right_answer_costs_nothing_and_a_blind_one_the_logarithm_of_the_classes() -> None:
    sure = 100 * one_hot(TARGETS.long(), 5).movedim(-1, 1).float()
    assert make_loss("cross_entropy")(sure, TARGETS).tolist() == [0, 0, 0]
    blind = make_loss("cross_entropy")(torch.zeros(3, 5, 8, 6), TARGETS)
    torch.testing.assert_close(blind, torch.full((3,), 5.0).log())


def test_cross_entropy_equals_torch() -> None:
    whole = cross_entropy(LOGITS, TARGETS.long())
    torch.testing.assert_close(make_loss("cross_entropy")(LOGITS, TARGETS).mean(), whole)


def test_focal_equals_monai() -> None:
    reference = MonaiFocalLoss(to_onehot_y=True, use_softmax=True, gamma=2.0, reduction="none")(LOGITS, TARGETS[:, None])
    torch.testing.assert_close(make_loss("focal")(LOGITS, TARGETS), reference.sum(1).flatten(1).mean(1))


def test_dice_cross_entropy_equals_monai() -> None:
    dice = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, reduction="none")(LOGITS, TARGETS[:, None])
    both = dice.flatten(1).mean(1) + make_loss("cross_entropy")(LOGITS, TARGETS)
    torch.testing.assert_close(make_loss("dice_cross_entropy")(LOGITS, TARGETS), both)


def test_weights_are_factors_on_the_voxels_of_a_class() -> None:
    weights = (0.0, 1.0, 2.0, 3.0, 4.0)
    expected = cross_entropy(LOGITS, TARGETS.long(), reduction="none") * torch.tensor(weights)[TARGETS.long()]
    torch.testing.assert_close(make_loss("cross_entropy", class_weights=weights)(LOGITS, TARGETS), expected.flatten(1).mean(1))


@pytest.mark.parametrize("kind", sorted(LOSSES))
def test_outside_counts_as_healthy_or_not_at_all(kind: str) -> None:
    outside = TARGETS.clone()
    outside[:, :4] = 255
    healthy = TARGETS.clone()
    healthy[:, :4] = 0
    torch.testing.assert_close(make_loss(kind, outside="healthy")(LOGITS, outside), make_loss(kind)(LOGITS, healthy))
    inside_alone = make_loss(kind)(LOGITS[:, :, 4:], TARGETS[:, 4:])
    torch.testing.assert_close(make_loss(kind, outside="ignore")(LOGITS, outside), inside_alone)


@pytest.mark.parametrize("kind", sorted(LOSSES))
def test_a_patch_of_air_alone_costs_nothing_when_air_is_ignored(kind: str) -> None:
    assert make_loss(kind, outside="ignore")(LOGITS, torch.full_like(TARGETS, 255)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("kind", sorted(LOSSES))
def test_an_example_costs_the_same_in_any_company_and_in_3d(kind: str) -> None:
    loss = make_loss(kind)
    torch.testing.assert_close(loss(LOGITS, TARGETS)[1:2], loss(LOGITS[1:2], TARGETS[1:2]))
    torch.testing.assert_close(loss(LOGITS.unflatten(2, (2, 4)), TARGETS.unflatten(1, (2, 4))), loss(LOGITS, TARGETS))


def test_bfloat16_logits_give_float32_losses() -> None:
    assert make_loss("cross_entropy")(LOGITS.bfloat16(), TARGETS).dtype == torch.float32


def test_wrong_names_and_useless_weights_are_refused() -> None:
    with pytest.raises(UsageError, match=r"loss.kind 'hinge' is unknown; the names are cross_entropy"):
        make_loss("hinge")
    with pytest.raises(UsageError, match="'focal' takes none"):
        make_loss("focal", class_weights=(1.0, 2.0))
