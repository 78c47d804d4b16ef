"""(logits, target) -> one loss per example."""

from collections.abc import Callable, Sequence
from functools import partial
from math import log
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Integer
from torch import Tensor

from brats_seg.core.tensors import Logits, PerExample, Targets
from brats_seg.errors import UsageError
from brats_seg.models.readout import REGION_CLASSES, region_logits
from brats_seg.scans.labels import OUTSIDE

Loss = Callable[[Logits, Targets], PerExample]
ClassNumbers = Integer[Tensor, "b *patch"]
"""uint8, or int64 for images of more than 255 classes."""
FOCAL_GAMMA = 2.0
"""Focusing exponent; Lin et al. 2017, table 1b, found 2 to work best."""
DICE_SMOOTH = 1e-5
"""Added to both sides of the Dice fraction, as MONAI and nnU-Net do, so that a class absent from patch and prediction has a value."""

TAKE_WEIGHTS = ("cross_entropy", "dice_cross_entropy")
WITH_DICE = ("dice_cross_entropy", "region")
"""Losses with a Dice term."""


def make_loss(
    kind: str,
    *,
    outside: Literal["healthy", "ignore", "none"] = "healthy",
    class_weights: Sequence[float] | None = None,
    classes: Sequence[str] | None = None,
    prior: Sequence[float] | None = None,
    tau: float = 1.0,
    dice: Literal["example", "batch"] = "example",
) -> Loss:
    """Build a loss by its name.

    Args:
        kind: a name in `LOSSES`.
        outside: whether a target of 255 counts as class 0 (healthy), not at all, or as class 255 (images, which have no outside).
        class_weights: a factor for each class on the loss of its voxels; None is 1 for all. Not on the Dice term.
        classes: their names, for 'region', and for the Dice of 'dice_cross_entropy', which is of all classes where the first is not
            healthy (a bank grouped to tumor); None: the first is.
        prior: natural share of each class, for 'logit_adjusted'.
        tau: strength of the adjustment of 'logit_adjusted'.
        dice: whether the Dice term is of each example, or of all voxels of the batch together (nnU-Net's batch Dice).
            With 'batch' every example gets the batch's value, so that the mean over the examples is that value. The
            batch is the examples of one call: one part of `training.accumulate`, on one rank.

    Returns:
        A function from logits (B, K, *patch) and uint8 targets (B, *patch) to losses (B,), float32 or, of float64 logits, float64: the
        mean over the counted voxels of each example. Weights are not normalized away within an example, so that weights and class counts
        multiply to the effective prior.

    Raises:
        UsageError: an unknown name, weights for a loss that takes none, classes that are not those of the regions, a prior without a
            class, or `dice` 'batch' for a loss without a Dice term.
    """
    if kind not in LOSSES:
        raise UsageError(f"loss.kind '{kind}' is unknown; the names are {', '.join(LOSSES)}")
    if kind not in TAKE_WEIGHTS and class_weights is not None:
        raise UsageError(f"loss.class_weights: '{kind}' takes none; use {' or '.join(TAKE_WEIGHTS)}")
    if kind not in WITH_DICE and dice != "example":
        raise UsageError(f"loss.dice '{dice}': '{kind}' has no Dice term; use {' or '.join(WITH_DICE)}")
    if kind == "region":
        _check_regions(classes)
    factors = _adjustments(prior, classes, tau) if kind == "logit_adjusted" else class_weights
    on_device = _PerDevice(factors)
    voxelwise = LOSSES[kind]
    if kind in WITH_DICE:
        voxelwise = partial(voxelwise, dice=dice)
    if kind == "dice_cross_entropy" and classes is not None and classes[0] != "healthy":
        voxelwise = partial(voxelwise, first_class=0)

    def loss(logits: Logits, targets: ClassNumbers) -> PerExample:
        logits = logits if logits.dtype == torch.float64 else logits.float()
        counted = targets != OUTSIDE if outside == "ignore" else None
        classes = targets.long() if outside == "none" else targets.long().masked_fill_(targets == OUTSIDE, 0)
        return voxelwise(logits, classes, counted, on_device.like(logits))

    return loss


class _PerDevice:
    """A number for each class, copied once to each device: a copy in every step would make the CPU wait for the GPU."""

    def __init__(self, factors: Sequence[float] | None) -> None:
        self._factors = factors
        self._copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def like(self, logits: Tensor) -> Tensor | None:
        """The numbers (K,) on the device and in the dtype of the logits."""
        if self._factors is None:
            return None
        place = (logits.device, logits.dtype)
        if place not in self._copies:
            self._copies[place] = torch.tensor(self._factors, dtype=logits.dtype, device=logits.device)
        return self._copies[place]


def _check_regions(classes: Sequence[str] | None) -> None:
    if classes is None or tuple(classes) != REGION_CLASSES:
        found = "no names" if classes is None else ", ".join(classes)
        raise UsageError(
            f"loss.kind 'region' takes the classes {', '.join(REGION_CLASSES)}, not {found}: the regions whole, core and active cannot "
            "tell necrotic from non-enhancing core, nor a cavity from either; use another loss"
        )


def _adjustments(prior: Sequence[float] | None, classes: Sequence[str] | None, tau: float) -> list[float]:
    """tau log prior of each class."""
    if prior is None:
        raise UsageError("loss.kind 'logit_adjusted' needs the natural share of each class")
    absent = [str(k) if classes is None else classes[k] for k, share in enumerate(prior) if not share > 0]
    if absent:
        raise UsageError(f"loss.kind 'logit_adjusted': the training cases hold no {', '.join(absent)}, and no share of 0 has a logarithm")
    return [tau * log(share) for share in prior]


def _cross_entropy(logits: Tensor, classes: Tensor, counted: Tensor | None, weights: Tensor | None) -> Tensor:
    return _mean_per_example(F.cross_entropy(logits, classes, weight=weights, reduction="none"), counted)


def _focal(logits: Tensor, classes: Tensor, counted: Tensor | None, weights: Tensor | None) -> Tensor:
    """Lin et al. 2017, equation 4: the cross-entropy of a voxel times (1 - p of its class) ** gamma."""
    entropy = F.cross_entropy(logits, classes, reduction="none")
    return _mean_per_example((1 - torch.exp(-entropy)) ** FOCAL_GAMMA * entropy, counted)


def _dice_cross_entropy(
    logits: Tensor, classes: Tensor, counted: Tensor | None, weights: Tensor | None, *, first_class: int = 1, dice: str = "example"
) -> Tensor:
    """Cross-entropy plus one minus the soft Dice, the mean over the classes except healthy, class 0 (Isensee et al. 2018, equation 2)."""
    n_classes = logits.shape[1]
    probabilities = torch.softmax(logits, 1)[:, first_class:]
    truth = torch.movedim(F.one_hot(classes, n_classes), -1, 1)[:, first_class:].to(probabilities.dtype)
    return _one_minus_dice(probabilities, truth, counted, over=dice) + _cross_entropy(logits, classes, counted, weights)


def _logit_adjusted(logits: Tensor, classes: Tensor, counted: Tensor | None, adjustments: Tensor | None) -> Tensor:
    """Menon et al. 2021, equation 10: the cross-entropy of logits with tau log prior added, so that the bare logits are balanced ones."""
    assert adjustments is not None  # `make_loss` sees to it
    return _cross_entropy(logits + adjustments.view(-1, *[1] * (logits.dim() - 2)), classes, counted, None)


def _region(logits: Tensor, classes: Tensor, counted: Tensor | None, weights: Tensor | None, *, dice: str = "example") -> Tensor:
    """A sigmoid for each of whole, core and active: binary cross-entropy plus 1 - soft Dice, means over the three (Isensee et al. 2020).

    The logit of a region is a difference of class logits (`region_logits`). Where a smaller region is not the likelier one, the class of
    the largest logit is the one that cutting every sigmoid at 0.5 gives.
    """
    regions = region_logits(logits)
    truth = torch.stack([classes != 0, (classes == 1) | (classes == 3), classes == 3], 1).to(regions.dtype)
    entropy = F.binary_cross_entropy_with_logits(regions, truth, reduction="none").mean(1)
    return _mean_per_example(entropy, counted) + _one_minus_dice(torch.sigmoid(regions), truth, counted, over=dice)


def _one_minus_dice(probabilities: Tensor, truth: Tensor, counted: Tensor | None, *, over: str) -> Tensor:
    """One minus the soft Dice (B,), the mean over the channels (B, C, *patch); over the 'batch' it is the same for all examples."""
    if counted is not None:
        probabilities, truth = probabilities * counted[:, None], truth * counted[:, None]
    both, either = (v.flatten(2).sum(2) for v in (probabilities * truth, probabilities + truth))
    if over == "batch":
        both, either = (v.sum(0, keepdim=True).expand(len(v), -1) for v in (both, either))
    return (1 - (2 * both + DICE_SMOOTH) / (either + DICE_SMOOTH)).mean(1)


def _mean_per_example(values: Tensor, counted: Tensor | None) -> Tensor:
    if values.dim() == 1:
        return values  # a class for the whole image
    if counted is None:
        return values.flatten(1).mean(1)
    counted = counted.flatten(1)
    return (values.flatten(1) * counted).sum(1) / counted.sum(1).clamp(min=1)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": _cross_entropy,
    "focal": _focal,
    "dice_cross_entropy": _dice_cross_entropy,
    "region": _region,
    "logit_adjusted": _logit_adjusted,
}
