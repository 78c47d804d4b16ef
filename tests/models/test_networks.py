import pytest
import torch

from brats_seg.config import Network
from brats_seg.errors import UsageError
from brats_seg.models.networks import DIMENSIONS, NETWORKS, check_patch_size, make_network, network_divisor

SMALL = {"unet2d": (8, 16, 24), "unet3d": (8, 16, 24), "basic_unet2d": (8, 8, 8, 16, 16, 8)}


def test_reference_network_has_the_published_size() -> None:
    network = make_network(Network(), n_channels=4, n_classes=5, n_dims=2)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(1.61e6, rel=0.01)


def test_cpu_network_has_half_a_million_weights() -> None:
    network = make_network(Network(name="basic_unet2d", channels=(16, 16, 32, 64, 128, 16)), n_channels=4, n_classes=5, n_dims=2)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(0.5e6, rel=0.01)


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
def test_every_network_keeps_the_grid_and_gives_a_logit_for_each_class(name: str, norm: str) -> None:
    knobs = Network.model_validate({"name": name, "channels": SMALL[name], "num_res_units": 1, "norm": norm})
    n_dims, side = DIMENSIONS[name], 2 * network_divisor(knobs)
    network = make_network(knobs, n_channels=4, n_classes=5, n_dims=n_dims)
    assert network(torch.zeros(2, 4, *[side] * n_dims)).shape == (2, 5, *[side] * n_dims)


def test_sides_must_fit_the_halvings() -> None:
    assert network_divisor(Network()) == 8
    assert network_divisor(Network(name="basic_unet2d", channels=(16, 16, 32, 64, 128, 16))) == 16
    check_patch_size(Network(), patch_size=(64, 72))
    with pytest.raises(UsageError, match=r"patch.size 64 x 33.*multiples of 8"):
        check_patch_size(Network(), patch_size=(64, 33))


@pytest.mark.parametrize(
    ("knobs", "n_dims", "message"),
    [
        (Network(name="unet4d"), 2, "network.name 'unet4d' is unknown; the names are unet2d"),
        (Network(), 3, "takes patches of 2 axes; patch.size has 3"),
        (Network(channels=(32,)), 2, "at least 2 numbers"),
        (Network(name="basic_unet2d"), 2, "needs 6 numbers"),
    ],
)
def test_what_cannot_be_built_is_refused_by_knob(knobs: Network, n_dims: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_network(knobs, n_channels=4, n_classes=5, n_dims=n_dims)
