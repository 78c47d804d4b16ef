"""Name -> network, one dict."""

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd, lcm, prod
from typing import Any

from monai.networks.nets import BasicUNet, SegResNet, SegResNetDS, SwinUNETR, UNet
from monai.networks.nets.attentionunet import AttentionLayer, AttentionUnet
from monai.networks.nets.basic_unet import UpCat
from torch import nn

from brats_seg.core.config import Network
from brats_seg.core.errors import UsageError
from brats_seg.models.cascade import Cascade
from brats_seg.models.cascade import margin_of as margin_of
from brats_seg.models.deep_supervision import SupervisedDynUNet, SupervisedMedNeXt
from brats_seg.models.two_path import PUBLISHED_WIDTHS, InputCascade, TwoPath

Builder = Callable[[Network, int, int, int], nn.Module]
"""(network, n_channels, n_classes, n_dims) -> module from (B, n_channels, *patch) to logits (B, n_classes,
*patch).
"""

MAX_GROUPS = 8
"""Of a group norm."""
BASIC_LEVELS = 6
"""MONAI's BasicUNet takes five levels of features and the width of the last layer."""
SWIN_WIDTHS = 12
"""What the width of a Swin UNETR is a multiple of."""
MEDNEXT_EXPANSION, MEDNEXT_KERNEL = 2, 3
"""Of every block: those of MedNeXt-S (Roy et al. 2023, table 1)."""


@dataclass(frozen=True)
class NetworkKind:
    """How a network is built, and what it takes.

    Attributes:
        build: makes it.
        dims: numbers of patch axes.
        norms: values of `network.norm`.
        output: dotted path of its output layer, which two-phase training goes on with; "" for none. `{last}`
            stands for the number of its last stage of upsampling.
        divisor: what every side of an input must be a multiple of.
        margin: voxels that its output is smaller than its input on each side.
        drops_out: whether it has layers for `network.dropout`.
        supervised: whether it has outputs below full resolution for `network.deep_supervision`.
    """

    build: Builder
    dims: tuple[int, ...]
    output: str
    norms: tuple[str, ...] = ("batch", "instance", "group")
    divisor: Callable[[Network], int] = lambda network: 2 ** (len(network.channels) - 1)
    margin: int = 0
    drops_out: bool = True
    supervised: bool = False


def make_network(network: Network, *, n_channels: int, n_classes: int, n_dims: int) -> nn.Module:
    """Build a network by its name, freshly initialized from torch's global generator.

    Returns:
        A module from float inputs (B, n_channels, *patch) to logits (B, n_classes, *patch), `n_dims` patch
        axes; with valid convolutions the logits are `margin_of` it smaller on each side. With deep
        supervision the module gives several logits in training mode: those at full resolution first, each
            next one at half the resolution. In evaluation mode it gives the first alone.

    Raises:
        UsageError: an unknown name, a patch of another dimension, or channels, residual units, a norm,
            dropout or deep supervision that the network cannot take.
    """
    kind = _kind(network)
    if n_dims not in kind.dims:
        wanted = " or ".join(map(str, kind.dims))
        raise UsageError(
            f"network.name '{network.name}' takes patches of {wanted} axes; patch.size has {n_dims}"
        )
    if network.norm not in kind.norms:
        raise UsageError(f"network.norm '{network.norm}': '{network.name}' takes {', '.join(kind.norms)}")
    if min(network.channels, default=1) < 1:
        raise UsageError(f"network.channels {list(network.channels)}: a layer has at least 1")
    if network.dropout > 0 and not kind.drops_out:
        raise UsageError(f"network.dropout {network.dropout:g}: '{network.name}' has no dropout; take 0")
    _check_supervision(network, kind)
    return kind.build(network, n_channels, n_classes, n_dims)


def output_layer(network: Network, module: nn.Module) -> nn.Module:
    """The layer of a built network that makes logits of its features: the part that learns in the second
    phase of two-phase training.
    """
    kind = _kind(network)
    if not kind.output:
        raise UsageError(
            f"network.name '{network.name}' has no output layer of its own; give the stages their second "
            "phase"
        )
    return module.get_submodule(kind.output.format(last=len(network.channels) - 2))


def network_divisor(network: Network) -> int:
    """What every side of an input must be a multiple of: the network halves it this often."""
    return _kind(network).divisor(network)


def check_patch_size(
    network: Network, *, patch_size: tuple[int, ...], n_together: int = 2, jitter: float = 0.0
) -> None:
    """Raise `UsageError` where a network cannot be trained on patches of this size, or (a composed cascade)
    not at all.

    Args:
        network: its knobs.
        patch_size: (Y, X) or (Z, Y, X), voxels.
        n_together: patches in the smallest pass.
        jitter: `sampler.jitter`; a network with a margin must label the voxel that was drawn.
    """
    kind, shown = _kind(network), " x ".join(map(str, patch_size))
    if network.name == "cascade":
        raise UsageError(
            "network.name 'cascade' is not trained: `brats-seg cascade` composes it of two trained runs"
        )
    smallest = 2 * kind.margin + 1
    if kind.margin and any(side < smallest or side % 2 == 0 for side in patch_size):
        raise UsageError(f"patch.size {shown}: '{network.name}' needs odd sides of at least {smallest}")
    least = min(patch_size)
    most = (least - smallest) / (least - 1) if kind.margin else 1.0
    if jitter > most + 1e-6:
        raise UsageError(
            f"sampler.jitter {jitter:g}: '{network.name}' labels the middle {least - 2 * kind.margin} of "
            f"{least} voxels a side, and the "
            f"drawn voxel must be one of them; take {int(100 * most) / 100:g} at most"
        )
    divisor = network_divisor(network)
    if any(side % divisor for side in patch_size):
        raise UsageError(
            f"patch.size {shown}: '{network.name}' with {len(network.channels)} channels needs multiples of "
            f"{divisor}"
        )
    needs_more = network.norm == "instance" or (network.norm == "batch" and n_together == 1)
    if needs_more and prod(side // divisor for side in patch_size) == 1:
        raise UsageError(
            f"patch.size {shown}: one voxel is left at the bottom for the {network.norm} norm; take a side "
            f"of {2 * divisor}"
        )


def _check_supervision(network: Network, kind: NetworkKind) -> None:
    """The lowest level has no output: the decoder begins above it."""
    asked, most = network.deep_supervision, len(network.channels) - 2
    if asked and not kind.supervised:
        names = ", ".join(name for name, other in NETWORKS.items() if other.supervised)
        raise UsageError(
            f"network.deep_supervision {asked}: '{network.name}' has none; take 0, or one of {names}"
        )
    if asked > max(most, 0):
        raise UsageError(
            f"network.deep_supervision {asked}: '{network.name}' with {len(network.channels)} channels has "
            f"{max(most, 0)} outputs below "
            "full resolution; take fewer"
        )


def _kind(network: Network) -> NetworkKind:
    if network.name not in NETWORKS:
        raise UsageError(f"network.name '{network.name}' is unknown; the names are {', '.join(NETWORKS)}")
    return NETWORKS[network.name]


def _unet(network: Network, n_channels: int, n_classes: int, n_dims: int) -> nn.Module:
    """MONAI's residual U-Net (Kerfoot et al. 2018); the first layer already halves the resolution.

    The whole uppermost step is its output layer: with residual units the classes are there before the last
    convolution.
    """
    _need_channels(network, at_least=2)
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


def _basic_unet(network: Network, n_channels: int, n_classes: int, n_dims: int) -> nn.Module:
    """The plain U-Net (Ronneberger et al. 2015; MONAI's form after Falk et al. 2019): two convolutions at
    full resolution on both sides.

    Every side is a multiple of the divisor, so MONAI's padding before a concatenation never pads; in mixed
    precision it would still raise both halves to float32: a tenth of a training step on a CPU.
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


def _attention_unet(network: Network, n_channels: int, n_classes: int, n_dims: int) -> nn.Module:
    """Oktay et al. 2018: gates on the skip connections. A gate weighs each voxel by convolutions, so the
    network may see whole slices.
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
        ):  # MONAI's has batch norms but for its joins; instance norms would tie it to windows
            layer.merge.get_submodule("adn").N = nn.BatchNorm2d(layer.merge.out_channels)
    return built


def _dynunet(network: Network, n_channels: int, n_classes: int, n_dims: int) -> nn.Module:
    """nnU-Net's network (Isensee et al. 2021), the first stage at full resolution; residual blocks where
    `num_res_units` is not 0.
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


def _segresnet(network: Network, n_channels: int, n_classes: int, n_dims: int) -> nn.Module:
    """Myronenko 2018, without the autoencoder; four levels of 2 residual units are the published 1, 2, 2, 4
    blocks.
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


def _segresnet_ds(network: Network, n_channels: int, n_classes: int, n_dims: int) -> nn.Module:
    """MONAI's newer form of SegResNet: transposed convolutions, no dropout, further outputs. The same blocks
    as `segresnet`.
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


def _mednext(network: Network, n_channels: int, n_classes: int, n_dims: int) -> nn.Module:
    """Roy et al. 2023; five levels from 32 channels with `num_res_units` 2 are MedNeXt-S with kernel 3.

    Its group norm has a group for each channel: an instance norm.
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


def _swin_unetr(network: Network, n_channels: int, n_classes: int, n_dims: int) -> nn.Module:
    """Hatamizadeh et al. 2022; `norm` is that of the convolutions (the transformer keeps its layer norms)."""
    if len(network.channels) != 1 or network.channels[0] % SWIN_WIDTHS:
        raise _wrong_channels(
            network, f"1 number, a multiple of {SWIN_WIDTHS} such as 24: its levels double it"
        )
    return SwinUNETR(
        in_channels=n_channels,
        out_channels=n_classes,
        feature_size=network.channels[0],
        norm_name=_norm(network, network.channels),
        drop_rate=network.dropout,
        spatial_dims=n_dims,
    )


def _two_path(network: Network, n_channels: int, n_classes: int, n_dims: int) -> nn.Module:
    return TwoPath(
        n_channels,
        n_classes,
        widths=_two_widths(network),
        norm=_norm(network, network.channels),
        dropout=network.dropout,
    )


def _input_cascade(network: Network, n_channels: int, n_classes: int, n_dims: int) -> nn.Module:
    return InputCascade(
        n_channels,
        n_classes,
        widths=_two_widths(network),
        norm=_norm(network, network.channels),
        dropout=network.dropout,
    )


def _cascade(network: Network, n_channels: int, n_classes: int, n_dims: int) -> nn.Module:
    detector, classifier = _stages(network)
    return Cascade(
        make_network(detector, n_channels=n_channels, n_classes=2, n_dims=n_dims),
        make_network(classifier, n_channels=n_channels, n_classes=n_classes - 1, n_dims=n_dims),
    )


def _stages(network: Network) -> tuple[Network, Network]:
    assert network.stages is not None  # the config asks for them
    return network.stages


def _two_widths(network: Network) -> tuple[int, int]:
    if len(network.channels) != 2:
        published = ", ".join(map(str, PUBLISHED_WIDTHS))
        raise _wrong_channels(
            network,
            f"2 numbers, the maps of its local and its global path: {published} are the published ones",
        )
    return network.channels[0], network.channels[1]


def _need_channels(network: Network, *, at_least: int) -> None:
    if len(network.channels) < at_least:
        raise _wrong_channels(network, f"at least {at_least} numbers")


def _doubling(network: Network) -> int:
    """The width of the first level, where each level is twice as wide as the one before."""
    _need_channels(network, at_least=2)
    width = network.channels[0]
    if network.channels != tuple(width * 2**i for i in range(len(network.channels))):
        raise _wrong_channels(network, "each number twice the one before, such as 16, 32, 64, 128")
    return width


def _need_units(network: Network) -> int:
    if network.num_res_units < 1:
        n = network.num_res_units
        raise UsageError(
            f"network.num_res_units {n}: '{network.name}' is made of them; give 1 or more, published are 2"
        )
    return network.num_res_units


def _wrong_channels(network: Network, wanted: str) -> UsageError:
    return UsageError(f"network.channels {list(network.channels)}: '{network.name}' needs {wanted}")


def _norm(network: Network, widths: tuple[int, ...]) -> Any:
    """MONAI's name and settings; groups are as many as divide the widths of all normalized layers, 8 at
    most.
    """
    if network.norm == "none":
        return None
    if network.norm == "group":
        return ("group", {"num_groups": gcd(MAX_GROUPS, *widths)})
    return (network.norm, {"affine": True})


_VALID_NORMS = ("batch", "none")  # of a patch of 33 x 33 the others make another output than of a whole slice

NETWORKS: dict[str, NetworkKind] = {
    "unet2d": NetworkKind(_unet, dims=(2,), output="model.2"),
    "basic_unet2d": NetworkKind(
        _basic_unet, dims=(2,), output="final_conv", divisor=lambda _: 2 ** (BASIC_LEVELS - 2)
    ),
    "attention_unet2d": NetworkKind(_attention_unet, dims=(2,), output="model.2", norms=("batch",)),
    "unet3d": NetworkKind(_unet, dims=(3,), output="model.2"),
    "dynunet": NetworkKind(_dynunet, dims=(2, 3), output="output_block", supervised=True),
    "segresnet": NetworkKind(_segresnet, dims=(2, 3), output="conv_final.2"),
    "segresnet_ds": NetworkKind(
        _segresnet_ds, dims=(2, 3), output="up_layers.{last}.head", drops_out=False, supervised=True
    ),
    "mednext": NetworkKind(
        _mednext, dims=(2, 3), output="out_0", norms=("instance",), drops_out=False, supervised=True
    ),
    "swin_unetr": NetworkKind(_swin_unetr, dims=(2, 3), output="out", divisor=lambda _: 2**5),
    "two_path": NetworkKind(
        _two_path,
        dims=(2,),
        output="classifier",
        norms=_VALID_NORMS,
        divisor=lambda _: 1,
        margin=TwoPath.margin,
    ),
    "input_cascade": NetworkKind(
        _input_cascade,
        dims=(2,),
        output="second.classifier",
        norms=_VALID_NORMS,
        divisor=lambda _: 1,
        margin=InputCascade.margin,
    ),
    "cascade": NetworkKind(
        _cascade, dims=(2, 3), output="", divisor=lambda network: lcm(*map(network_divisor, _stages(network)))
    ),
}
