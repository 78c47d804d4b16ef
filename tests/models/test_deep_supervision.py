import pytest
import torch
from monai.networks.blocks.dynunet_block import UnetOutBlock
from monai.networks.nets import DynUNet
from torch import nn

from brats_seg.core.errors import UsageError
from brats_seg.core.sections import Network
from brats_seg.models.deep_supervision import coarse_targets, level_weights, supervised_loss
from brats_seg.models.losses import make_loss
from brats_seg.models.networks import NETWORKS, make_network, output_layer

SUPERVISED = [name for name, recipe in NETWORKS.items() if recipe.supervised]
CROSS_ENTROPY = make_loss("cross_entropy")


def knobs(name: str, *, deep_supervision: int, channels: tuple[int, ...] = (4, 8, 16, 32)) -> Network:
    return Network(
        name=name, channels=channels, num_res_units=1, norm="instance", deep_supervision=deep_supervision
    )


def build(network: Network, n_dims: int) -> nn.Module:
    torch.manual_seed(0)
    return make_network(network, n_channels=2, n_classes=3, n_dims=n_dims)


# The loss


def test_weights_by_hand() -> None:
    assert level_weights(1) == (1,)
    assert level_weights(2) == pytest.approx((2 / 3, 1 / 3))
    assert level_weights(3) == pytest.approx((4 / 7, 2 / 7, 1 / 7))


def test_targets_of_a_level_by_hand() -> None:
    targets = torch.tensor([[[0, 9, 1, 9], [9, 9, 9, 9], [255, 9, 3, 9], [9, 9, 9, 9]]], dtype=torch.uint8)
    assert coarse_targets(targets, level=0).tolist() == targets.tolist()
    assert coarse_targets(targets, level=1).tolist() == [[[0, 1], [255, 3]]]
    assert coarse_targets(targets, level=2).tolist() == [[[0]]]
    assert coarse_targets(targets, level=1).dtype == torch.uint8
    volume = torch.arange(8 * 8 * 8, dtype=torch.uint8).reshape(1, 8, 8, 8)
    nearest = nn.functional.interpolate(volume[:, None].float(), scale_factor=0.25, mode="nearest")[:, 0]
    assert torch.equal(coarse_targets(volume, level=2).float(), nearest)


def test_the_loss_of_two_outputs_is_two_thirds_of_the_first_and_a_third_of_the_second() -> None:
    generator = torch.Generator().manual_seed(0)
    fine, coarse = torch.randn(2, 3, 4, 4, generator=generator), torch.randn(2, 3, 2, 2, generator=generator)
    targets = torch.randint(0, 3, (2, 4, 4), generator=generator, dtype=torch.uint8)
    expected = (2 * CROSS_ENTROPY(fine, targets) + CROSS_ENTROPY(coarse, targets[:, ::2, ::2])) / 3
    torch.testing.assert_close(supervised_loss(CROSS_ENTROPY, (fine, coarse), targets), expected)
    assert torch.equal(supervised_loss(CROSS_ENTROPY, fine, targets), CROSS_ENTROPY(fine, targets))


# The networks


@pytest.mark.parametrize("n_dims", [2, 3])
@pytest.mark.parametrize("name", SUPERVISED)
def test_outputs_in_training_halve_and_all_weights_learn(name: str, n_dims: int) -> None:
    network = knobs(name, deep_supervision=2)
    built = build(network, n_dims)
    inputs, targets = torch.randn(2, 2, *[16] * n_dims), torch.zeros(2, *[16] * n_dims, dtype=torch.uint8)
    outputs = built(inputs)
    assert [tuple(o.shape) for o in outputs] == [(2, 3, *[side] * n_dims) for side in (16, 8, 4)]
    supervised_loss(CROSS_ENTROPY, outputs, targets).mean().backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for p in output_layer(network, built).parameters()
    )
    assert all(p.grad is not None for p in built.parameters())


@pytest.mark.parametrize("n_dims", [2, 3])
@pytest.mark.parametrize("name", SUPERVISED)
def test_in_evaluation_there_is_one_output_and_without_supervision_in_training_too(
    name: str, n_dims: int
) -> None:
    deep, plain = (build(knobs(name, deep_supervision=n), n_dims) for n in (2, 0))
    plain.load_state_dict(
        {key: value for key, value in deep.state_dict().items() if key in plain.state_dict()}
    )
    inputs = torch.randn(1, 2, *[16] * n_dims)
    with torch.no_grad():
        first, *others = deep(inputs)
        assert len(others) == 2
        assert torch.equal(plain(inputs), first)
        assert torch.equal(deep.eval()(inputs), first)  # an instance norm is the same in both modes


@pytest.mark.parametrize("res_block", [False, True])
def test_dynunet_is_monais_with_the_same_names_and_start(res_block: bool) -> None:
    network = Network(name="dynunet", channels=(4, 8, 8), num_res_units=int(res_block))
    ours = build(network, 3)
    torch.manual_seed(0)
    theirs = DynUNet(
        3, 2, 3, kernel_size=(3,) * 3, strides=(1, 2, 2), upsample_kernel_size=(2, 2), filters=(4, 8, 8),
        norm_name=("batch", {"affine": True}), res_block=res_block,
    )  # fmt: skip
    theirs.output_block = UnetOutBlock(3, 4, 3)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    inputs = torch.randn(1, 2, 8, 8, 8)
    assert torch.equal(ours(inputs), theirs(inputs))


def test_levels_that_are_not_there_are_refused() -> None:
    with pytest.raises(
        UsageError,
        match=r"deep_supervision 1: 'unet2d' has no such outputs; use 0, or one of dynunet, segresnet_ds",
    ):
        build(Network(deep_supervision=1), 2)
    message = (
        "network.deep_supervision 3: 'dynunet' with 4 channels has 2 outputs below full resolution; use fewer"
    )
    with pytest.raises(UsageError, match=message):
        build(knobs("dynunet", deep_supervision=3), 3)


def test_the_sizes_that_the_training_page_prints() -> None:
    def n_weights(name: str, **others: object) -> int:
        network = Network.model_validate({"name": name, "norm": "instance", **others})
        with torch.device("meta"):
            return sum(
                p.numel() for p in make_network(network, n_channels=4, n_classes=4, n_dims=3).parameters()
            )

    five = {"channels": (16, 32, 64, 128, 128)}
    assert n_weights("dynunet", num_res_units=0, **five) == 3_746_436
    assert n_weights("dynunet", num_res_units=1, **five) == 3_774_372
    assert (
        n_weights("dynunet", num_res_units=1, deep_supervision=2, **five) == 3_774_764
    )  # 4 classes x (32 + 1 + 64 + 1)
    assert n_weights("segresnet_ds", num_res_units=2, channels=(16, 32, 64, 128)) == 4_981_764
    assert n_weights("mednext", num_res_units=2, channels=(32, 64, 128, 256, 512)) == pytest.approx(
        5.6e6, rel=0.01
    )  # published
