"""Name -> network, one dict."""

from collections.abc import Callable
from math import gcd
from typing import Any

from monai.networks.nets import BasicUNet, UNet
from torch import nn

from brats_seg.config import Network
from brats_seg.errors import UsageError

Builder = Callable[[Network, int, int, int], nn.Module]
"""(network, n_channels, n_classes, n_dims) -> module from (B, n_channels, *patch) to logits (B, n_classes, *patch)."""

MAX_GROUPS = 8
"""Of a group norm."""


def make_network(network: Network, *, n_channels: int, n_classes: int, n_dims: int) -> nn.Module:
    """Build a network by its name, freshly initialized from torch's global generator.

    Returns:
        A module from float inputs (B, n_channels, *patch) to logits (B, n_classes, *patch), `n_dims` patch axes.

    Raises:
        UsageError: an unknown name, a patch of another dimension, or channels that the network or its norm cannot take.
    """
    if network.name not in NETWORKS:
        raise UsageError(f"network.name '{network.name}' is unknown; the names are {', '.join(NETWORKS)}")
    wanted = DIMENSIONS[network.name]
    if n_dims != wanted:
        raise UsageError(f"network.name '{network.name}' takes patches of {wanted} axes; patch.size has {n_dims}")
    return NETWORKS[network.name](network, n_channels, n_classes, n_dims)


def network_divisor(network: Network) -> int:
    """What every side of an input must be a multiple of: the network halves it this often."""
    n_halvings = BASIC_LEVELS - 2 if network.name == "basic_unet2d" else len(network.channels) - 1
    return 2**n_halvings


def check_patch_size(network: Network, *, patch_size: tuple[int, ...]) -> None:
    """Raise `UsageError` where a side of the patch does not fit the network's halvings."""
    divisor = network_divisor(network)
    if any(side % divisor for side in patch_size):
        shown = " x ".join(map(str, patch_size))
        raise UsageError(f"patch.size {shown}: '{network.name}' with {len(network.channels)} channels needs multiples of {divisor}")


def _unet(network: Network, n_channels: int, n_classes: int, n_dims: int) -> nn.Module:
    """MONAI's residual U-Net (Kerfoot et al. 2018); the first layer already halves the resolution."""
    if len(network.channels) < 2:
        raise UsageError(f"network.channels {list(network.channels)}: '{network.name}' needs at least 2 numbers")
    return UNet(
        spatial_dims=n_dims,
        in_channels=n_channels,
        out_channels=n_classes,
        channels=network.channels,
        strides=(2,) * (len(network.channels) - 1),
        num_res_units=network.num_res_units,
        # With residual units MONAI normalizes the class channels of the last upsampling too.
        norm=_norm(network, (*network.channels, n_classes)),
        dropout=network.dropout,
    )


BASIC_LEVELS = 6
"""MONAI's BasicUNet takes five levels of features and the width of the last layer."""


def _basic_unet(network: Network, n_channels: int, n_classes: int, n_dims: int) -> nn.Module:
    """The plain U-Net (Ronneberger et al. 2015; MONAI's form after Falk et al. 2019): two convolutions at full resolution on both sides."""
    if len(network.channels) != BASIC_LEVELS:
        raise UsageError(
            f"network.channels {list(network.channels)}: '{network.name}' needs {BASIC_LEVELS} numbers, such as 16, 16, 32, 64, 128, 16"
        )
    return BasicUNet(
        spatial_dims=n_dims,
        in_channels=n_channels,
        out_channels=n_classes,
        features=network.channels,
        norm=_norm(network, network.channels),
        dropout=network.dropout,
    )


def _norm(network: Network, widths: tuple[int, ...]) -> Any:
    """MONAI's name and settings; groups are as many as divide the widths of all normalized layers, 8 at most."""
    if network.norm == "group":
        return ("group", {"num_groups": gcd(MAX_GROUPS, *widths)})
    return (network.norm, {"affine": True})


NETWORKS: dict[str, Builder] = {
    "unet2d": _unet,
    "basic_unet2d": _basic_unet,
    "unet3d": _unet,
}
DIMENSIONS = {"unet2d": 2, "basic_unet2d": 2, "unet3d": 3}
