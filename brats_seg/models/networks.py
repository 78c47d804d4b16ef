"""The networks by name."""

from collections.abc import Callable
from dataclasses import dataclass
from math import lcm, prod

from torch import nn

from brats_seg.core.errors import UsageError, refuse
from brats_seg.core.sections import Network
from brats_seg.models.builders import (
    BASIC_LEVELS,
    Cascade,
    attention_unet,
    basic_unet,
    dynunet,
    input_cascade,
    mednext,
    segresnet,
    segresnet_ds,
    swin_unetr,
    two_path,
    unet,
)
from brats_seg.models.two_path import InputCascade, TwoPath

Builder = Callable[[Network, int, int, int], nn.Module]
"""(network, n_channels, n_classes, n_dims) -> module from (B, n_channels, *patch) to logits (B, n_classes,
*patch).
"""


@dataclass(frozen=True)
class NetworkKind:
    """How a network is built, and which settings it accepts.

    Attributes:
        build: function that builds the network.
        dims: allowed numbers of patch axes.
        norms: allowed values of `network.norm`.
        output: dotted path of the output layer, which the second phase of two-phase training trains; "" if
            there is none. `{last}` means the number of the last upsampling stage.
        divisor: every side of an input must be a multiple of this number.
        margin: number of voxels by which the output is smaller than the input on each side.
        drops_out: whether the network has layers for `network.dropout`.
        supervised: whether the network has outputs below full resolution for `network.deep_supervision`.
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
    """Build a network by its name, initialized from torch's global generator.

    Returns:
        A module from float inputs (B, n_channels, *patch) to logits (B, n_classes, *patch), with `n_dims`
        patch axes. With valid convolutions the logits are smaller by `margin_of(module)` voxels on each side.
        With deep supervision the module gives several logits in training mode: the first at full resolution,
        each next one at half the resolution. In evaluation mode it gives only the first.

    Raises:
        UsageError: the name is unknown, the patch has another number of axes, or the network does not accept
            the channels, residual units, norm, dropout or deep supervision.
    """
    kind = _kind(network)
    if n_dims not in kind.dims:
        wanted = " or ".join(map(str, kind.dims))
        raise UsageError(
            f"network.name '{network.name}' needs patches of {wanted} axes; patch.size has {n_dims}"
        )
    refuse(
        (
            network.norm not in kind.norms,
            f"network.norm '{network.norm}': '{network.name}' accepts {', '.join(kind.norms)}",
        ),
        (
            min(network.channels, default=1) < 1,
            f"network.channels {list(network.channels)}: each number must be 1 or more",
        ),
        (
            network.dropout > 0 and not kind.drops_out,
            f"network.dropout {network.dropout:g}: '{network.name}' has no dropout; use 0",
        ),
    )
    _check_supervision(network, kind)
    return kind.build(network, n_channels, n_classes, n_dims)


def output_layer(network: Network, module: nn.Module) -> nn.Module:
    """The output layer of a network, which computes logits from features. In two-phase training the second
    phase trains only this layer.
    """
    kind = _kind(network)
    if not kind.output:
        raise UsageError(
            f"network.name '{network.name}' has no output layer; give the stages their second phase"
        )
    return module.get_submodule(kind.output.format(last=len(network.channels) - 2))


def network_divisor(network: Network) -> int:
    """Every side of an input must be a multiple of this number, because the network halves the side several
    times.
    """
    return _kind(network).divisor(network)


def check_patch_size(
    network: Network, *, patch_size: tuple[int, ...], n_together: int = 2, jitter: float = 0.0
) -> None:
    """Raise `UsageError` if a network cannot be trained on patches of this size, or cannot be trained at all
    (a composed cascade).

    Args:
        network: knobs of the network.
        patch_size: (Y, X) or (Z, Y, X), in voxels.
        n_together: number of patches in the smallest forward pass.
        jitter: `sampler.jitter`. The output of a network with a margin must contain the drawn voxel.
    """
    kind, shown = _kind(network), " x ".join(map(str, patch_size))
    if network.name == "cascade":
        raise UsageError("network.name 'cascade' is not trained: `brats-seg cascade` joins two trained runs")
    smallest = 2 * kind.margin + 1
    if kind.margin and any(side < smallest or side % 2 == 0 for side in patch_size):
        raise UsageError(f"patch.size {shown}: '{network.name}' needs odd sides of at least {smallest}")
    least = min(patch_size)
    most = (least - smallest) / (least - 1) if kind.margin else 1.0
    if jitter > most + 1e-6:
        raise UsageError(
            f"sampler.jitter {jitter:g}: '{network.name}' labels the middle {least - 2 * kind.margin} of "
            f"{least} voxels a side, and the "
            f"drawn voxel must be one of them; use {int(100 * most) / 100:g} at most"
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
            f"patch.size {shown}: only one voxel is left at the lowest level for the {network.norm} norm; "
            f"use a side of {2 * divisor}"
        )


def _check_supervision(network: Network, kind: NetworkKind) -> None:
    """Refuse too many outputs. The lowest level has no output, because the decoder starts above it."""
    n_outputs, most = network.deep_supervision, len(network.channels) - 2
    if n_outputs and not kind.supervised:
        names = ", ".join(name for name, other in NETWORKS.items() if other.supervised)
        raise UsageError(
            f"network.deep_supervision {n_outputs}: '{network.name}' has no such outputs; use 0, or one of "
            f"{names}"
        )
    if n_outputs > max(most, 0):
        raise UsageError(
            f"network.deep_supervision {n_outputs}: '{network.name}' with {len(network.channels)} channels "
            f"has {max(most, 0)} outputs below full resolution; use fewer"
        )


def _kind(network: Network) -> NetworkKind:
    if network.name not in NETWORKS:
        raise UsageError(f"network.name '{network.name}' is unknown; the names are {', '.join(NETWORKS)}")
    return NETWORKS[network.name]


def _cascade(network: Network, n_channels: int, n_classes: int, n_dims: int) -> nn.Module:
    detector, classifier = _stages(network)
    return Cascade(
        make_network(detector, n_channels=n_channels, n_classes=2, n_dims=n_dims),
        make_network(classifier, n_channels=n_channels, n_classes=n_classes - 1, n_dims=n_dims),
    )


def _stages(network: Network) -> tuple[Network, Network]:
    assert network.stages is not None  # the config requires stages
    return network.stages


# With other norms the output of a patch of 33 x 33 differs from the output of a whole slice.
_VALID_NORMS = ("batch", "none")
NETWORKS: dict[str, NetworkKind] = {
    "unet2d": NetworkKind(unet, dims=(2,), output="model.2"),
    "basic_unet2d": NetworkKind(
        basic_unet, dims=(2,), output="final_conv", divisor=lambda _: 2 ** (BASIC_LEVELS - 2)
    ),
    "attention_unet2d": NetworkKind(attention_unet, dims=(2,), output="model.2", norms=("batch",)),
    "unet3d": NetworkKind(unet, dims=(3,), output="model.2"),
    "dynunet": NetworkKind(dynunet, dims=(2, 3), output="output_block", supervised=True),
    "segresnet": NetworkKind(segresnet, dims=(2, 3), output="conv_final.2"),
    "segresnet_ds": NetworkKind(
        segresnet_ds, dims=(2, 3), output="up_layers.{last}.head", drops_out=False, supervised=True
    ),
    "mednext": NetworkKind(
        mednext, dims=(2, 3), output="out_0", norms=("instance",), drops_out=False, supervised=True
    ),
    "swin_unetr": NetworkKind(swin_unetr, dims=(2, 3), output="out", divisor=lambda _: 2**5),
    "two_path": NetworkKind(
        two_path,
        dims=(2,),
        output="classifier",
        norms=_VALID_NORMS,
        divisor=lambda _: 1,
        margin=TwoPath.margin,
    ),
    "input_cascade": NetworkKind(
        input_cascade,
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
