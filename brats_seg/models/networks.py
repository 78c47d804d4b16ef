"""Name -> network, one dict."""

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
    refuse(
        (
            network.norm not in kind.norms,
            f"network.norm '{network.norm}': '{network.name}' takes {', '.join(kind.norms)}",
        ),
        (
            min(network.channels, default=1) < 1,
            f"network.channels {list(network.channels)}: a layer has at least 1",
        ),
        (
            network.dropout > 0 and not kind.drops_out,
            f"network.dropout {network.dropout:g}: '{network.name}' has no dropout; take 0",
        ),
    )
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
    n_outputs, most = network.deep_supervision, len(network.channels) - 2
    if n_outputs and not kind.supervised:
        names = ", ".join(name for name, other in NETWORKS.items() if other.supervised)
        raise UsageError(
            f"network.deep_supervision {n_outputs}: '{network.name}' has none; take 0, or one of {names}"
        )
    if n_outputs > max(most, 0):
        raise UsageError(
            f"network.deep_supervision {n_outputs}: '{network.name}' with {len(network.channels)} channels "
            f"has {max(most, 0)} outputs below full resolution; take fewer"
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
    assert network.stages is not None  # the config asks for them
    return network.stages


_VALID_NORMS = ("batch", "none")  # of a patch of 33 x 33 the others make another output than of a whole slice
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
