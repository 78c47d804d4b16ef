"""One function for each network name: the `network` section of a config -> a module."""

from math import gcd
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.nets import BasicUNet, SegResNet, SegResNetDS, SwinUNETR, UNet
from monai.networks.nets.attentionunet import AttentionLayer, AttentionUnet
from monai.networks.nets.basic_unet import UpCat
from torch import Tensor, nn

from brats_seg.core.errors import UsageError
from brats_seg.core.sections import Network
from brats_seg.models.deep_supervision import SupervisedDynUNet, SupervisedMedNeXt
from brats_seg.models.two_path import PUBLISHED_WIDTHS, InputCascade, TwoPath


class Cascade(nn.Module):
    """A detector and a classifier joined: p(tumor class) = (1 - p(healthy) of the detector) x p(class) of the
    classifier.

    Attributes:
        margin: number of voxels by which the output is smaller than the input on each side; the larger margin
            of the two networks.
    """

    def __init__(self, detector: nn.Module, classifier: nn.Module) -> None:
        """Join two trained networks.

        Args:
            detector: (B, M, *patch) -> logits of healthy and tumor (B, 2, *patch).
            classifier: (B, M, *patch) -> logits of the tumor classes (B, K - 1, *patch).
        """
        super().__init__()
        self.detector, self.classifier = detector, classifier
        self.margin = max(margin_of(detector), margin_of(classifier))

    def forward(self, x: Tensor) -> Tensor:
        """Inputs (B, M, *patch) -> logarithms of the class probabilities (B, K, *patch), healthy first."""
        healthy, tumor = F.log_softmax(_exact(self._shown(self.detector, x)), 1).split(1, dim=1)
        return torch.cat([healthy, tumor + F.log_softmax(_exact(self._shown(self.classifier, x)), 1)], 1)

    def _shown(self, network: nn.Module, x: Tensor) -> Tensor:
        """The output of a stage. The input is cropped to the margin of this stage."""
        return network(crop_sides(x, self.margin - margin_of(network)))


def margin_of(network: nn.Module) -> int:
    """Number of voxels by which the output is smaller than the input on each side; 0 without valid
    convolutions.
    """
    return int(getattr(network, "margin", 0))


def crop_sides(x: Tensor, n: int) -> Tensor:
    """A batch (B, C, *patch) without its outermost n voxels on each side of each patch axis."""
    inside: tuple[slice, ...] = tuple(slice(n, side - n) for side in x.shape[2:])
    return x[:, :, *inside]


def _exact(logits: Tensor) -> Tensor:
    """Convert to float32 or finer: bfloat16 has only 8 bits of precision, too few for a logarithm."""
    return logits if logits.dtype == torch.float64 else logits.float()


MAX_GROUPS = 8
"""The largest number of groups of a group norm."""
BASIC_LEVELS = 6
"""MONAI's BasicUNet needs the widths of five levels and the width of the last layer."""
SWIN_WIDTHS = 12
"""The width of a Swin UNETR must be a multiple of this number."""
MEDNEXT_EXPANSION, MEDNEXT_KERNEL = 2, 3
"""The expansion and the kernel of every block, as in MedNeXt-S (Roy et al. 2023, table 1)."""


def unet(network: Network, n_channels: int, n_classes: int, n_dims: int) -> nn.Module:
    """MONAI's residual U-Net (Kerfoot et al. 2018); the first layer already halves the resolution.

    The output layer is the whole last upsampling step, because with residual units the class channels exist
    before the last convolution.
    """
    _need_channels(network, at_least=2)
    return UNet(
        spatial_dims=n_dims,
        in_channels=n_channels,
        out_channels=n_classes,
        channels=network.channels,
        strides=(2,) * (len(network.channels) - 1),
        num_res_units=network.num_res_units,
        # With residual units MONAI also normalizes the class channels of the last upsampling.
        norm=_norm(network, (*network.channels, n_classes)),
        dropout=network.dropout,
    )


def basic_unet(network: Network, n_channels: int, n_classes: int, n_dims: int) -> nn.Module:
    """The plain U-Net (Ronneberger et al. 2015; MONAI's form after Falk et al. 2019): two convolutions at
    full resolution on both sides.

    Every side is a multiple of the divisor, so MONAI's padding before a concatenation is not needed. It is
    left out because in mixed precision it would convert both halves to float32, which takes a tenth of a
    training step on a CPU.
    """
    if len(network.channels) != BASIC_LEVELS:
        raise _wrong_channels(network, f"{BASIC_LEVELS} numbers, such as 16, 16, 32, 64, 128, 16")
    built = BasicUNet(
        spatial_dims=n_dims,
        in_channels=n_channels,
        out_channels=n_classes,
        features=network.channels,
        norm=_norm(network, network.channels),
        dropout=network.dropout,
    )
    for joined in (module for module in built.modules() if isinstance(module, UpCat)):
        joined.is_pad = False
    return built


def attention_unet(network: Network, n_channels: int, n_classes: int, n_dims: int) -> nn.Module:
    """The attention U-Net with gates on the skip connections (Oktay et al. 2018). A gate weights each voxel
    by convolutions, so the network also accepts whole slices.
    """
    _need_channels(network, at_least=2)
    built = AttentionUnet(
        spatial_dims=n_dims,
        in_channels=n_channels,
        out_channels=n_classes,
        channels=network.channels,
        strides=(2,) * (len(network.channels) - 1),
        dropout=network.dropout,
    )
    for layer in built.modules():
        if isinstance(
            layer, AttentionLayer
        ):  # MONAI's network has batch norms except in its joins; instance norms would restrict it to windows
            layer.merge.get_submodule("adn").N = nn.BatchNorm2d(layer.merge.out_channels)
    return built


def dynunet(network: Network, n_channels: int, n_classes: int, n_dims: int) -> nn.Module:
    """The network of nnU-Net (Isensee et al. 2021). The first stage has full resolution. The blocks are
    residual if `num_res_units` is not 0.
    """
    _need_channels(network, at_least=3)
    n = len(network.channels)
    return SupervisedDynUNet(
        n_further=network.deep_supervision,
        spatial_dims=n_dims,
        in_channels=n_channels,
        out_channels=n_classes,
        kernel_size=(3,) * n,
        strides=(1, *(2,) * (n - 1)),
        upsample_kernel_size=(2,) * (n - 1),
        filters=network.channels,
        norm_name=_norm(network, network.channels),
        dropout=network.dropout,
        res_block=network.num_res_units > 0,
    )


def segresnet(network: Network, n_channels: int, n_classes: int, n_dims: int) -> nn.Module:
    """SegResNet (Myronenko 2018) without the autoencoder. Four levels with `num_res_units` 2 are the
    published 1, 2, 2, 4 blocks.
    """
    width, n_units = _doubling(network), _need_units(network)
    return SegResNet(
        spatial_dims=n_dims,
        init_filters=width,
        in_channels=n_channels,
        out_channels=n_classes,
        dropout_prob=network.dropout or None,
        norm=_norm(network, network.channels),
        blocks_down=(1, *(n_units,) * (len(network.channels) - 2), 2 * n_units),
        blocks_up=(1,) * (len(network.channels) - 1),
    )


def segresnet_ds(network: Network, n_channels: int, n_classes: int, n_dims: int) -> nn.Module:
    """MONAI's newer SegResNet: transposed convolutions, no dropout, and more outputs for deep supervision.
    The blocks are the same as in `segresnet`.
    """
    width, n_units = _doubling(network), _need_units(network)
    return SegResNetDS(
        spatial_dims=n_dims,
        init_filters=width,
        in_channels=n_channels,
        out_channels=n_classes,
        norm=_norm(network, network.channels),
        blocks_down=(1, *(n_units,) * (len(network.channels) - 2), 2 * n_units),
        dsdepth=1 + network.deep_supervision,
    )


def mednext(network: Network, n_channels: int, n_classes: int, n_dims: int) -> nn.Module:
    """MedNeXt (Roy et al. 2023). Five levels from 32 channels with `num_res_units` 2 are MedNeXt-S with
    kernel 3.

    The group norm has one group for each channel, which is an instance norm.
    """
    width, n_units = _doubling(network), _need_units(network)
    n_stages = len(network.channels) - 1
    return SupervisedMedNeXt(
        n_further=network.deep_supervision,
        spatial_dims=n_dims,
        init_filters=width,
        in_channels=n_channels,
        out_channels=n_classes,
        encoder_expansion_ratio=(MEDNEXT_EXPANSION,) * n_stages,
        decoder_expansion_ratio=(MEDNEXT_EXPANSION,) * n_stages,
        bottleneck_expansion_ratio=MEDNEXT_EXPANSION,
        kernel_size=MEDNEXT_KERNEL,
        use_residual_connection=True,
        blocks_down=(n_units,) * n_stages,
        blocks_bottleneck=n_units,
        blocks_up=(n_units,) * n_stages,
    )


def swin_unetr(network: Network, n_channels: int, n_classes: int, n_dims: int) -> nn.Module:
    """Swin UNETR (Hatamizadeh et al. 2022). `norm` is the norm of the convolutions; the transformer keeps its
    layer norms.
    """
    if len(network.channels) != 1 or network.channels[0] % SWIN_WIDTHS:
        raise _wrong_channels(
            network, f"1 number, a multiple of {SWIN_WIDTHS}, such as 24; each level doubles it"
        )
    return SwinUNETR(
        in_channels=n_channels,
        out_channels=n_classes,
        feature_size=network.channels[0],
        norm_name=_norm(network, network.channels),
        drop_rate=network.dropout,
        spatial_dims=n_dims,
    )


def two_path(network: Network, n_channels: int, n_classes: int, n_dims: int) -> nn.Module:
    """Two paths over one slice, a local path and a global path (Havaei et al. 2017)."""
    return TwoPath(
        n_channels,
        n_classes,
        widths=_two_widths(network),
        norm=_norm(network, network.channels),
        dropout=network.dropout,
    )


def input_cascade(network: Network, n_channels: int, n_classes: int, n_dims: int) -> nn.Module:
    """Two networks in a cascade: the class probabilities of the first are additional input channels of the
    second (Havaei et al. 2017).
    """
    return InputCascade(
        n_channels,
        n_classes,
        widths=_two_widths(network),
        norm=_norm(network, network.channels),
        dropout=network.dropout,
    )


def _two_widths(network: Network) -> tuple[int, int]:
    if len(network.channels) != 2:
        published = ", ".join(map(str, PUBLISHED_WIDTHS))
        raise _wrong_channels(
            network,
            f"2 numbers, the widths of its local and its global path; the published widths are {published}",
        )
    return network.channels[0], network.channels[1]


def _need_channels(network: Network, *, at_least: int) -> None:
    if len(network.channels) < at_least:
        raise _wrong_channels(network, f"at least {at_least} numbers")


def _doubling(network: Network) -> int:
    """The width of the first level. Each level must be twice as wide as the level before."""
    _need_channels(network, at_least=2)
    width = network.channels[0]
    if network.channels != tuple(width * 2**i for i in range(len(network.channels))):
        raise _wrong_channels(network, "each number to be twice the number before, such as 16, 32, 64, 128")
    return width


def _need_units(network: Network) -> int:
    if network.num_res_units < 1:
        n = network.num_res_units
        raise UsageError(
            f"network.num_res_units {n}: '{network.name}' consists of residual units; give 1 or more (the "
            "paper has 2)"
        )
    return network.num_res_units


def _wrong_channels(network: Network, wanted: str) -> UsageError:
    return UsageError(f"network.channels {list(network.channels)}: '{network.name}' needs {wanted}")


def _norm(network: Network, widths: tuple[int, ...]) -> Any:
    """MONAI's name and settings of a norm. The number of groups divides the widths of all normalized layers
    and is at most 8.
    """
    if network.norm == "none":
        return None
    if network.norm == "group":
        return ("group", {"num_groups": gcd(MAX_GROUPS, *widths)})
    return (network.norm, {"affine": True})
