"""Networks with additional coarser outputs in training, and the loss over all outputs (deep supervision;
Isensee et al. 2021).
"""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float, Integer
from monai.networks.blocks.dynunet_block import UnetOutBlock
from monai.networks.blocks.mednext_block import MedNeXtOutBlock
from monai.networks.nets import DynUNet, MedNeXt
from torch import Tensor, nn

from brats_seg.core.tensors import Logits, PerExample
from brats_seg.models.losses import Loss

Outputs = Logits | Sequence[Float[Tensor, "b k ..."]]
"""Logits at full resolution, or several logits: the first at full resolution, each next one at half the
resolution of the logits before.
"""
AnyTargets = Integer[Tensor, "b ..."]


class SupervisedDynUNet(DynUNet):
    """MONAI's DynUNet with additional outputs at their own resolution in training mode.

    MONAI's own deep supervision interpolates all outputs to full resolution and stacks them, which needs more
    memory. Without additional outputs the weights have the names of MONAI's network.
    """

    def __init__(self, *, n_further: int, **settings: Any) -> None:
        """Build the network.

        Args:
            n_further: number of outputs below full resolution, at most the number of filters minus 2.
            settings: settings of MONAI's DynUNet.
        """
        super().__init__(**settings)
        # MONAI's output block applies dropout to the logits.
        self.output_block, *heads = (
            UnetOutBlock(self.spatial_dims, width, self.out_channels)
            for width in self.filters[: n_further + 1]
        )
        self.further_heads = nn.ModuleList(heads)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Inputs (B, M, *patch) -> logits (B, K, *patch); in training mode a tuple of them and the coarser
        ones, if there are any.
        """
        skips = []
        for down in (self.input_block, *self.downsamples):
            x = down(x)
            skips.append(x)
        x = self.bottleneck(x)
        features = []
        for up, skip in zip(self.upsamples, reversed(skips), strict=True):
            x = up(x, skip)
            features.append(x)
        return _outputs(self, self.output_block, features)


class SupervisedMedNeXt(MedNeXt):
    """MONAI's MedNeXt (Roy et al. 2023) with `n_further` additional outputs in training mode.

    MONAI's own deep supervision has an output at every level, and also computes all of them in prediction.
    """

    def __init__(self, *, n_further: int, **settings: Any) -> None:
        """Build the network.

        Args:
            n_further: number of outputs below full resolution, at most the number of stages of the decoder
                minus 1.
            settings: settings of MONAI's MedNeXt.
        """
        super().__init__(**settings)
        dims, width, n_classes = settings["spatial_dims"], settings["init_filters"], settings["out_channels"]
        self.further_heads = nn.ModuleList(
            MedNeXtOutBlock(width * 2**level, n_classes, f"{dims}d") for level in range(1, n_further + 1)
        )

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Inputs (B, M, *patch) -> logits (B, K, *patch); in training mode a tuple of them and the coarser
        ones, if there are any.
        """
        x = self.stem(x)
        skips = []
        for stage, down in zip(self.enc_stages, self.down_blocks, strict=True):
            x = stage(x)
            skips.append(x)
            x = down(x)
        x = self.bottleneck(x)
        features = []
        for up, stage, skip in zip(self.up_blocks, self.dec_stages, reversed(skips), strict=True):
            x = stage(up(x) + skip)
            features.append(x)
        return _outputs(self, self.out_0, features)


def level_weights(n_outputs: int) -> tuple[float, ...]:
    """The weight of each output in the loss: each weight is half of the weight before, and the sum is 1
    (nnU-Net; Isensee et al. 2021).
    """
    total = sum(0.5**level for level in range(n_outputs))
    return tuple(0.5**level / total for level in range(n_outputs))


def coarse_targets(targets: AnyTargets, *, level: int) -> AnyTargets:
    """Every 2^level-th voxel of targets (B, *patch) along each axis, from the first on. This is
    nearest-neighbor downsampling; the value 255 is kept.

    The first voxel of each block of 2^level voxels represents the block, because the centers of a convolution
    with stride 2 and kernel 3 lie there.
    """
    return targets[(slice(None), *(slice(None, None, 2**level),) * (targets.dim() - 1))]


def supervised_loss(loss: Loss, outputs: Outputs, targets: AnyTargets) -> PerExample:
    """The weighted sum over all outputs of the loss of each example (B,); see `level_weights` and
    `coarse_targets`.

    Args:
        loss: (logits, targets) -> one loss for each example.
        outputs: outputs of the network.
        targets: (B, *patch), at the resolution of the first output.
    """
    if isinstance(outputs, Tensor):
        return loss(outputs, targets)
    weights = level_weights(len(outputs))
    total = weights[0] * loss(outputs[0], targets)
    for level in range(1, len(outputs)):
        total = total + weights[level] * loss(outputs[level], coarse_targets(targets, level=level))
    return total


def _outputs(network: Any, output: nn.Module, features: list[Tensor]) -> Tensor | tuple[Tensor, ...]:
    """The logits of the features of the decoder. The coarsest features come first."""
    logits: Tensor = output(features[-1])
    if not network.training or not network.further_heads:
        return logits
    finer_first = features[-2::-1]
    return (logits, *(head(finer_first[i]) for i, head in enumerate(network.further_heads)))
