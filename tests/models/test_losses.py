import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from monai.losses import DiceLoss
from monai.losses import FocalLoss as MonaiFocalLoss
from torch.nn.functional import cross_entropy, one_hot

from brats_seg.core import sections as knobs
from brats_seg.core.errors import UsageError
from brats_seg.models.losses import LOSSES, TAKE_WEIGHTS, Loss, make_loss

CLASSES = ("healthy", "necrotic_or_non_enhancing", "edema", "enhancing_core")
GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(3, 5, 8, 6, generator=GENERATOR)
TARGETS = torch.randint(0, 5, (3, 8, 6), generator=GENERATOR).to(torch.uint8)
FOUR_LOGITS, FOUR_TARGETS = LOGITS[:, :4], TARGETS % 4
PRIOR = (0.9, 0.04, 0.03, 0.03)


def four_class_loss(kind: str, *, outside: str = "healthy") -> Loss:
    """Any loss, on the classes that every loss takes."""
    return make_loss(kind, outside=outside, classes=CLASSES, prior=PRIOR)


def test_a_sure_and_right_answer_costs_nothing_and_a_blind_one_the_logarithm_of_the_classes() -> None:
    sure = 100 * one_hot(TARGETS.long(), 5).movedim(-1, 1).float()
    assert make_loss("cross_entropy")(sure, TARGETS).tolist() == [0, 0, 0]
    blind = make_loss("cross_entropy")(torch.zeros(3, 5, 8, 6), TARGETS)
    torch.testing.assert_close(blind, torch.full((3,), 5.0).log())


def test_cross_entropy_equals_torch() -> None:
    whole = cross_entropy(LOGITS, TARGETS.long())
    torch.testing.assert_close(make_loss("cross_entropy")(LOGITS, TARGETS).mean(), whole)


def test_focal_equals_monai() -> None:
    reference = MonaiFocalLoss(to_onehot_y=True, use_softmax=True, gamma=2.0, reduction="none")(
        LOGITS, TARGETS[:, None]
    )
    torch.testing.assert_close(make_loss("focal")(LOGITS, TARGETS), reference.sum(1).flatten(1).mean(1))


def test_dice_cross_entropy_equals_monai() -> None:
    dice = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, reduction="none")(
        LOGITS, TARGETS[:, None]
    )
    both = dice.flatten(1).mean(1) + make_loss("cross_entropy")(LOGITS, TARGETS)
    torch.testing.assert_close(make_loss("dice_cross_entropy")(LOGITS, TARGETS), both)


def test_dice_is_of_every_class_where_none_is_healthy() -> None:
    half, truth = torch.zeros(1, 2, 8, 6), torch.zeros(1, 8, 6, dtype=torch.uint8)
    half[:, 0], truth[:, :4] = 20.0, 1  # says class 0 everywhere; half of it is class 1
    found = [make_loss("dice_cross_entropy", classes=names)(x, truth) - make_loss("cross_entropy")(x, truth)
             for names in (("edema", "enhancing_core"), ("healthy", "tumor"))
             for x in (half, half.flip(1))]  # fmt: skip
    expected = [1 - (2 / 3 + 0) / 2, 1 - (0 + 2 / 3) / 2, 1.0, 1 - 2 / 3]
    torch.testing.assert_close(torch.cat(found), torch.tensor(expected), atol=1e-4, rtol=0)


def test_dice_over_the_batch_is_one_fraction_of_all_its_voxels() -> None:
    """Two patches of four voxels. In the first the tumor of two voxels is found; in the second a voxel is
    called tumor that is none.
    """
    truth = torch.tensor([[[1, 1, 0, 0]], [[0, 0, 0, 0]]], dtype=torch.uint8)
    said = torch.tensor([[[1, 1, 0, 0]], [[0, 1, 0, 0]]])
    logits = 40 * one_hot(said, 2).movedim(-1, 1).double()
    entropy = make_loss("cross_entropy")(logits, truth)
    of_each = make_loss("dice_cross_entropy")(logits, truth) - entropy
    of_batch = make_loss(knobs.Loss(kind="dice_cross_entropy", dice="batch"))(logits, truth) - entropy
    # Each patch: 2 x 2 / (2 + 2) = 1 and 0. Both together: 2 x 2 / (3 + 2) = 0.8.
    torch.testing.assert_close(of_each, torch.tensor([0.0, 1.0]).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(of_batch, torch.tensor([0.2, 0.2]).double(), atol=1e-4, rtol=0)


def test_dice_over_the_batch_is_monais() -> None:
    dice = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)(
        LOGITS, TARGETS[:, None]
    )
    section = knobs.Loss(kind="dice_cross_entropy", dice="batch")
    found = make_loss(section)(LOGITS, TARGETS) - make_loss("cross_entropy")(LOGITS, TARGETS)
    torch.testing.assert_close(found.mean(), dice)


def test_weights_are_factors_on_the_voxels_of_a_class() -> None:
    weights = (0.0, 1.0, 2.0, 3.0, 4.0)
    expected = cross_entropy(LOGITS, TARGETS.long(), reduction="none") * torch.tensor(weights)[TARGETS.long()]
    torch.testing.assert_close(
        make_loss("cross_entropy", class_weights=weights)(LOGITS, TARGETS), expected.flatten(1).mean(1)
    )


@pytest.mark.parametrize("kind", sorted(LOSSES))
def test_outside_counts_as_healthy_or_not_at_all(kind: str) -> None:
    outside = FOUR_TARGETS.clone()
    outside[:, :4] = 255
    healthy = FOUR_TARGETS.clone()
    healthy[:, :4] = 0
    loss = four_class_loss(kind)
    torch.testing.assert_close(loss(FOUR_LOGITS, outside), loss(FOUR_LOGITS, healthy))
    inside_alone = loss(FOUR_LOGITS[:, :, 4:], FOUR_TARGETS[:, 4:])
    torch.testing.assert_close(four_class_loss(kind, outside="ignore")(FOUR_LOGITS, outside), inside_alone)


@pytest.mark.parametrize("kind", sorted(LOSSES))
def test_a_patch_of_air_alone_costs_nothing_when_air_is_ignored(kind: str) -> None:
    assert four_class_loss(kind, outside="ignore")(FOUR_LOGITS, torch.full_like(TARGETS, 255)).tolist() == [
        0,
        0,
        0,
    ]


@pytest.mark.parametrize("kind", sorted(LOSSES))
def test_an_example_costs_the_same_in_any_company_and_in_3d(kind: str) -> None:
    loss = four_class_loss(kind)
    torch.testing.assert_close(
        loss(FOUR_LOGITS, FOUR_TARGETS)[1:2], loss(FOUR_LOGITS[1:2], FOUR_TARGETS[1:2])
    )
    flat = loss(FOUR_LOGITS, FOUR_TARGETS)
    torch.testing.assert_close(
        loss(FOUR_LOGITS.unflatten(2, (2, 4)), FOUR_TARGETS.unflatten(1, (2, 4))), flat
    )


@pytest.mark.parametrize("kind", sorted(LOSSES))
def test_float64_stays_and_less_becomes_float32(kind: str) -> None:
    loss = four_class_loss(kind)
    of_double, of_single, of_half = (
        loss(FOUR_LOGITS.to(dtype), FOUR_TARGETS) for dtype in (torch.float64, torch.float32, torch.bfloat16)
    )
    assert (of_double.dtype, of_single.dtype, of_half.dtype) == (torch.float64, torch.float32, torch.float32)
    torch.testing.assert_close(of_double.float(), of_single)


# Asymmetric unified focal loss


def test_unified_focal_by_hand() -> None:
    """Four voxels, two of them tumor. p of the reference's class: 0.75 and 0.25 of the tumor voxels, 0.75
    each of the healthy ones.

    Cross-entropy part: tumor 0.6 (0.287682 + 1.386294), healthy 0.4 x 0.25^0.5 x 0.287682 twice: (1.004386 +
    0.115073) / 4 = 0.279865. Healthy: TP 1.5, FN 0.5, FP 0.25 + 0.75 = 1: 1 - 1.5 / (1.5 + 0.6 x 0.5 + 0.4 x
    1) = 1 - 1.5 / 2.2 = 0.318182. Tumor: TP 1, FN 1, FP 0.5: 1 - 1 / (1 + 0.6 + 0.2) = 0.444444, to the power
    0.5 0.666667. Mean of both 0.492424. Half of each part: 0.386145.
    """
    tumor = torch.tensor([[[0.75, 0.25, 0.25, 0.25]]], dtype=torch.float64)
    logits = torch.stack([(1 - tumor).log(), tumor.log()], 1)
    loss = make_loss("unified_focal")
    assert loss(logits, torch.tensor([[[1, 1, 0, 0]]], dtype=torch.uint8)).item() == pytest.approx(
        0.386145, abs=1e-5
    )


def unified_focal(*, weight: float, delta: float) -> knobs.Loss:
    return knobs.Loss(kind="unified_focal", unified_weight=weight, unified_delta=delta, unified_gamma=0.0)


def test_unified_focal_without_focus_is_weighted_cross_entropy_and_tversky() -> None:
    loss = make_loss(unified_focal(weight=0.0, delta=0.7))
    weighted = make_loss("cross_entropy", class_weights=(0.3, 0.7, 0.7, 0.7, 0.7))
    torch.testing.assert_close(loss(LOGITS, TARGETS), weighted(LOGITS, TARGETS))
    dice = (
        DiceLoss(include_background=True, to_onehot_y=True, softmax=True, reduction="none")(
            LOGITS, TARGETS[:, None]
        )
        .flatten(1)
        .mean(1)
    )
    loss = make_loss(unified_focal(weight=1.0, delta=0.5))
    torch.testing.assert_close(loss(LOGITS, TARGETS), dice)


@pytest.mark.parametrize(
    ("kind", "by_lesion"),
    [
        *((kind, "none") for kind in sorted(LOSSES)),
        *(("dice_cross_entropy", by) for by in ("blob", "components")),
    ],
)
def test_gradients_are_finite_where_all_is_right_wrong_or_healthy(kind: str, by_lesion: str) -> None:
    loss = make_loss(knobs.Loss(kind=kind, by_lesion=by_lesion), classes=CLASSES, prior=PRIOR)
    for truth in (FOUR_TARGETS, torch.zeros_like(FOUR_TARGETS), torch.full_like(FOUR_TARGETS, 255)):
        right = 200 * one_hot(truth.long() % 255, 4).movedim(-1, 1).float()
        for logits in (right, -right, FOUR_LOGITS, torch.zeros_like(right)):
            logits = logits.clone().requires_grad_()
            value = loss(logits, truth)
            (gradient,) = torch.autograd.grad(value.sum(), logits)
            assert value.isfinite().all()
            assert gradient.isfinite().all()


# Regions


@pytest.mark.parametrize(
    ("truth", "regions"), [(0, ()), (2, ("whole",)), (1, ("whole", "core")), (3, ("whole", "core", "active"))]
)
def test_the_region_loss_is_a_sigmoid_for_each_region(truth: int, regions: tuple[str, ...]) -> None:
    z = torch.tensor([0.5, -0.2, 0.4, 1.0])
    p = {"whole": (z[2] - z[0]).sigmoid(), "core": (z[1] - z[2]).sigmoid(), "active": (z[3] - z[1]).sigmoid()}
    entropy = -sum(torch.log(p[r] if r in regions else 1 - p[r]) for r in p) / 3
    dice = sum(2 * p[r] / (p[r] + 1) if r in regions else 0 * p[r] for r in p) / 3
    found = four_class_loss("region")(z.view(1, 4, 1, 1), torch.full((1, 1, 1), truth, dtype=torch.uint8))
    torch.testing.assert_close(found, (entropy + 1 - dice).view(1), atol=1e-4, rtol=0)


@given(st.tuples(*[st.floats(-4, 4, width=32)] * 3).map(sorted))
def test_the_likeliest_class_is_where_the_sigmoids_are_cut(steps: list[float]) -> None:
    """Nested regions: active is never likelier than core, nor core than whole."""
    active, core, whole = steps
    assume(min(map(abs, steps)) > 1e-3)
    z = dict(
        zip(
            ("healthy", "edema", "necrotic_or_non_enhancing", "enhancing_core"),
            (0.0, whole, whole + core, sum(steps)),
            strict=True,
        )
    )
    by_regions = (
        "healthy"
        if whole < 0
        else "edema"
        if core < 0
        else "necrotic_or_non_enhancing"
        if active < 0
        else "enhancing_core"
    )
    assert max(z, key=z.__getitem__) == by_regions


@pytest.mark.parametrize(
    "classes",
    [
        ("healthy", "necrotic_core", "edema", "non_enhancing_core", "enhancing_core"),
        (*CLASSES, "resection_cavity"),
        ("healthy", "tumor"),
        CLASSES[1:],
        None,
    ],
)
def test_regions_of_other_classes_are_refused_with_the_reason(classes: tuple[str, ...] | None) -> None:
    with pytest.raises(
        UsageError,
        match=r"loss.kind 'region' needs the classes healthy, .*cannot tell necrotic from non-enhancing core",
    ):
        make_loss("region", classes=classes)


# Logit adjustment


def test_adjusted_logits_are_cross_entropy_of_logits_plus_log_prior() -> None:
    shifted = FOUR_LOGITS + 1.5 * torch.tensor(PRIOR).log()[:, None, None]
    expected = make_loss("cross_entropy")(shifted, FOUR_TARGETS)
    torch.testing.assert_close(
        make_loss(knobs.Loss(kind="logit_adjusted", tau=1.5), prior=PRIOR)(FOUR_LOGITS, FOUR_TARGETS),
        expected,
    )


def test_trained_to_the_end_adjusted_logits_are_the_balanced_ones() -> None:
    """Of examples that look alike, as many of each class as the prior says, the bare logits learn nothing of
    the prior.
    """
    logits = torch.zeros(1, 4, 100, dtype=torch.float64, requires_grad=True)
    targets = torch.arange(4, dtype=torch.uint8).repeat_interleave(torch.tensor([90, 4, 3, 3]))[None]
    loss = four_class_loss("logit_adjusted")
    (gradient,) = torch.autograd.grad(loss(logits, targets), logits)
    torch.testing.assert_close(gradient.sum(2), torch.zeros(1, 4, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("prior", "classes", "message"),
    [
        (None, None, "needs the natural share of each class"),
        ((0.9, 0.1, 0.0), CLASSES[:3], "the training cases contain no edema"),
        ((0.9, 0.1, 0.0), None, "the training cases contain no 2"),
    ],
)
def test_a_prior_without_a_class_is_refused(
    prior: tuple[float, ...] | None, classes: tuple[str, ...] | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        make_loss("logit_adjusted", prior=prior, classes=classes)


def test_wrong_names_are_refused() -> None:
    with pytest.raises(UsageError, match=r"kind: Input should be 'cross_entropy', .* \(got 'hinge'\)"):
        make_loss("hinge")


@pytest.mark.parametrize("kind", sorted(set(LOSSES) - set(TAKE_WEIGHTS)))
def test_useless_weights_are_refused(kind: str) -> None:
    with pytest.raises(
        UsageError, match=f"'{kind}' does not use class weights; use cross_entropy or dice_cross_entropy"
    ):
        make_loss(kind, class_weights=(1.0, 2.0, 1.0, 1.0), classes=CLASSES, prior=PRIOR)
