"""(logits, target) -> one loss per example."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from brats_seg.core.tensors import Logits, PerExample, Targets
from brats_seg.errors import UsageError

Loss = Callable[[Logits, Targets], PerExample]
OUTSIDE = 255
"""Target of a voxel outside the brain."""
FOCAL_GAMMA = 2.0
"""Focusing exponent; Lin et al. 2017, table 1b, found 2 to work best."""
DICE_SMOOTH = 1e-5
"""Added to both sides of the Dice fraction, as MONAI and nnU-Net do, so that a class absent from patch and prediction has a value."""


def make_loss(kind: str, *, outside: Literal["healthy", "ignore"] = "healthy", class_weights: Sequence[float] | None = None) -> Loss:
    """Build a loss by its name.

    Args:
        kind: a name in `LOSSES`.
        outside: whether a target of 255 counts as class 0 (healthy) or not at all.
        class_weights: a factor for each class on the loss of its voxels; None is 1 for all. Not for 'focal' nor for the Dice term.

    Returns:
        A function from logits (B, K, *patch) and uint8 targets (B, *patch) to float32 losses (B,): the mean over the counted voxels of each
        example. Weights are not normalized away within an example, so that weights and class counts multiply to the effective prior.

    Raises:
        UsageError: an unknown name, or weights for a loss that takes none.
    """
    if kind not in LOSSES:
        raise UsageError(f"loss.kind '{kind}' is unknown; the names are {', '.join(LOSSES)}")
    if kind == "focal" and class_weights is not None:
        raise UsageError("loss.class_weights: 'focal' takes none; use cross_entropy or dice_cross_entropy")
    weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
    voxelwise = LOSSES[kind]

    def loss(logits: Logits, targets: Targets) -> PerExample:
        logits = logits.float()
        counted = targets != OUTSIDE if outside == "ignore" else None
        classes = targets.long().masked_fill_(targets == OUTSIDE, 0)
        on_device = None if weights is None else weights.to(logits.device)
        return voxelwise(logits, classes, counted, on_device)

    return loss


def _cross_entropy(logits: Tensor, classes: Tensor, counted: Tensor | None, weights: Tensor | None) -> Tensor:
    return _mean_per_example(F.cross_entropy(logits, classes, weight=weights, reduction="none"), counted)


def _focal(logits: Tensor, classes: Tensor, counted: Tensor | None, weights: Tensor | None) -> Tensor:
    """Lin et al. 2017, equation 4: the cross-entropy of a voxel times (1 - p of its class) ** gamma."""
    entropy = F.cross_entropy(logits, classes, reduction="none")
    return _mean_per_example((1 - torch.exp(-entropy)) ** FOCAL_GAMMA * entropy, counted)


def _dice_cross_entropy(logits: Tensor, classes: Tensor, counted: Tensor | None, weights: Tensor | None) -> Tensor:
    """Cross-entropy plus one minus the soft Dice, the mean over the classes except healthy (Isensee et al. 2018, equation 2)."""
    n_classes = logits.shape[1]
    probabilities = torch.softmax(logits, 1)[:, 1:]
    truth = torch.movedim(F.one_hot(classes, n_classes), -1, 1)[:, 1:].to(probabilities.dtype)
    if counted is not None:
        probabilities, truth = probabilities * counted[:, None], truth * counted[:, None]
    axes = tuple(range(2, logits.dim()))
    both = (probabilities * truth).sum(axes)
    dice = (2 * both + DICE_SMOOTH) / (probabilities.sum(axes) + truth.sum(axes) + DICE_SMOOTH)
    return (1 - dice).mean(1) + _cross_entropy(logits, classes, counted, weights)


def _mean_per_example(values: Tensor, counted: Tensor | None) -> Tensor:
    if counted is None:
        return values.flatten(1).mean(1)
    counted = counted.flatten(1)
    return (values.flatten(1) * counted).sum(1) / counted.sum(1).clamp(min=1)


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]] = {
    "cross_entropy": _cross_entropy,
    "focal": _focal,
    "dice_cross_entropy": _dice_cross_entropy,
}
