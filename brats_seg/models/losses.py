"""Loss functions: (logits, target) -> one loss per example."""

from collections.abc import Callable, Sequence
from functools import partial
from math import log, pi, sin
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Integer
from torch import Tensor

from brats_seg.core import sections as knobs
from brats_seg.core.errors import UsageError, refuse
from brats_seg.core.settings import parse_settings
from brats_seg.core.tensors import Logits, PerExample, Targets
from brats_seg.models.lesion_loss import DICE_SMOOTH, lesion_loss
from brats_seg.models.readout import REGION_CLASSES, region_logits
from brats_seg.scans.labels import OUTSIDE

Loss = Callable[[Logits, Targets], PerExample]
ClassNumbers = Integer[Tensor, "b *patch"]
"""uint8, or int64 for images of more than 255 classes."""
FOCAL_GAMMA = 2.0
"""Focusing exponent; Lin et al. 2017, table 1b, found 2 to work best."""
_PROBABILITY_FLOOR = 1e-7
"""A power below 1 has an infinite slope at 0."""
TAKE_WEIGHTS = ("cross_entropy", "dice_cross_entropy", "ldam")
WITH_DICE = ("dice_cross_entropy", "region")
"""Losses with a Dice term."""
OF_REGIONS = ("dice_cross_entropy", "unified_focal", "region")
"""Losses that compare a predicted region with a true region. An image with one class has no region."""


def make_loss(
    loss: str | knobs.Loss,
    *,
    outside: Literal["healthy", "ignore", "none"] = "healthy",
    class_weights: Sequence[float] | None = None,
    classes: Sequence[str] | None = None,
    prior: Sequence[float] | None = None,
) -> Loss:
    """Build a loss by its name, or from a section `loss` of a config.

    Args:
        loss: a name in `LOSSES`, or a section. Its `outside`, `class_weights` and `weights_from` are not used
            here. With `dice` 'batch' (the batch Dice of nnU-Net) every example gets the Dice of all voxels of
            the batch together, so that the mean over the examples is this value. The batch is the examples of
            one call, which is one part of `training.accumulate` on one rank.
        outside: whether a target of 255 counts as class 0 (healthy), is ignored, or is class 255 (for images,
            which have no background label).
        class_weights: a factor for each class on the loss of its voxels, but not on the Dice term; None means
            1 for all classes.
        classes: names of the classes, for 'region' and for the Dice of 'dice_cross_entropy'. If the first
            class is not healthy (a bank grouped to tumor), the Dice is the mean over all classes. None means
            that the first class is healthy.
        prior: natural share of each class, for 'logit_adjusted', 'ldam' and 'label_aware'.

    Returns:
        A function from logits (B, K, *patch) and uint8 targets (B, *patch) to losses (B,): the mean over the
        counted voxels of each example. The losses are float32, or float64 for float64 logits. The
        weights are not normalized within an example, so that weights and class counts multiply to the
        effective prior.

    Raises:
        UsageError: the name is unknown, class weights are given for a loss without class weights, the classes
            are not the classes of the regions, a class of the prior has no share, `by_lesion` is used without
            a healthy class, or a loss of regions is used for images.
    """
    section = parse_settings(knobs.Loss, {"kind": loss}) if isinstance(loss, str) else loss
    kind, by_lesion = section.kind, section.by_lesion
    refuse(
        (
            kind not in TAKE_WEIGHTS and class_weights is not None,
            f"loss.class_weights: '{kind}' does not use class weights; use {' or '.join(TAKE_WEIGHTS)}",
        ),
        (
            outside == "none" and kind in OF_REGIONS,
            f"loss.kind '{kind}' compares regions of voxels, and an image has one class; choose another loss "
            "or remedy for images",
        ),
    )
    if by_lesion != "none" and classes is not None and classes[0] != "healthy":
        raise UsageError(
            f"loss.by_lesion '{by_lesion}' needs a network with the class healthy; these classes are "
            f"{', '.join(classes)}"
        )
    if kind == "region":
        _check_regions(classes or ())
    factors = class_weights
    if kind in _FROM_PRIOR:
        factors = _FROM_PRIOR[kind](_whole_prior(kind, prior, classes), section)
    on_device = _PerDevice(factors)
    voxelwise = LOSSES[kind]
    if kind == "ldam":
        margins = _PerDevice(_margins(_whole_prior(kind, prior, classes), section))
        voxelwise = partial(voxelwise, margins=margins)
    if kind == "top_k":
        voxelwise = partial(voxelwise, share=section.top_share)
    if kind in WITH_DICE:
        voxelwise = partial(voxelwise, dice=section.dice)
    if kind == "unified_focal":
        voxelwise = partial(voxelwise, section=section)
    if kind in ("dice_cross_entropy", "unified_focal") and classes is not None and classes[0] != "healthy":
        voxelwise = partial(voxelwise, first_class=0)

    def per_example(logits: Logits, targets: ClassNumbers) -> PerExample:
        logits = logits if logits.dtype == torch.float64 else logits.float()
        counted = targets != OUTSIDE if outside == "ignore" else None
        classes = targets.long() if outside == "none" else targets.long().masked_fill_(targets == OUTSIDE, 0)
        base = voxelwise(logits, classes, counted, on_device.like(logits))
        return (
            base
            if by_lesion == "none"
            else base + section.by_lesion_weight * lesion_loss(logits, classes, counted, by=by_lesion)
        )

    return per_example


class _PerDevice:
    """A number for each class, copied once to each device. A copy in every step would make the CPU wait for
    the GPU.
    """

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


def _check_regions(classes: Sequence[str]) -> None:
    if tuple(classes) != REGION_CLASSES:
        raise UsageError(
            f"loss.kind 'region' needs the classes {', '.join(REGION_CLASSES)}, not "
            f"{', '.join(classes or ['no names'])}: the regions whole, core and active cannot tell necrotic "
            "from non-enhancing core, nor a cavity from either; use another loss"
        )


def _whole_prior(kind: str, prior: Sequence[float] | None, classes: Sequence[str] | None) -> Sequence[float]:
    """The prior, checked so that every class has a share above 0."""
    if prior is None:
        raise UsageError(f"loss.kind '{kind}' needs the natural share of each class")
    absent = [str(k) if classes is None else classes[k] for k, share in enumerate(prior) if not share > 0]
    if absent:
        raise UsageError(
            f"loss.kind '{kind}': the training cases contain no {', '.join(absent)}, but this loss depends "
            "on the share of each class; add cases with this class, or use another loss"
        )
    return prior


def _adjustments(prior: Sequence[float], section: knobs.Loss) -> list[float]:
    """tau log prior of each class."""
    return [section.tau * log(share) for share in prior]


def _margins(prior: Sequence[float], section: knobs.Loss) -> list[float]:
    """A margin for each class, proportional to the inverse fourth root of its frequency."""
    return [section.margin * (min(prior) / share) ** 0.25 for share in prior]


def _smoothing(prior: Sequence[float], section: knobs.Loss) -> list[float]:
    """The share of a label that is given to the other classes. From the smallest to the largest class it
    rises as a quarter of a sine.
    """
    span = max(prior) - min(prior)
    places = [(share - min(prior)) / span if span else 0.0 for share in prior]
    low, high = section.smooth_rare, section.smooth_common
    return [low + (high - low) * sin(pi / 2 * place) for place in places]


_FROM_PRIOR = {"logit_adjusted": _adjustments, "label_aware": _smoothing}
"""Losses with a number for each class that is computed from its share."""


def _cross_entropy(logits: Tensor, classes: Tensor, counted: Tensor | None, weights: Tensor | None) -> Tensor:
    return _mean_per_example(F.cross_entropy(logits, classes, weight=weights, reduction="none"), counted)


def _focal(logits: Tensor, classes: Tensor, counted: Tensor | None, weights: Tensor | None) -> Tensor:
    """Lin et al. 2017, equation 4: the cross-entropy of a voxel times (1 - p of its class) ** gamma."""
    entropy = F.cross_entropy(logits, classes, reduction="none")
    return _mean_per_example((1 - torch.exp(-entropy)) ** FOCAL_GAMMA * entropy, counted)


def _dice_cross_entropy(
    logits: Tensor,
    classes: Tensor,
    counted: Tensor | None,
    weights: Tensor | None,
    *,
    first_class: int = 1,
    dice: str = "example",
) -> Tensor:
    """Cross-entropy plus one minus the soft Dice, the mean over the classes except healthy, class 0 (Isensee
    et al. 2018, equation 2).
    """
    probabilities = torch.softmax(logits, 1)[:, first_class:]
    return _one_minus_dice(
        probabilities, _is_class(classes, logits.shape[1])[:, first_class:], counted, over=dice
    ) + _cross_entropy(logits, classes, counted, weights)


def _unified_focal(
    logits: Tensor,
    classes: Tensor,
    counted: Tensor | None,
    weights: Tensor | None,
    *,
    section: knobs.Loss,
    first_class: int = 1,
) -> Tensor:
    """Asymmetric unified focal loss (Yeung et al. 2022), here for any number of tumor classes, which are the
    rare classes.

    Cross-entropy part: delta -log p of a tumor voxel, (1 - delta) (1 - p)^gamma -log p of a healthy one.
    Tversky part, the mean over the classes with miss = 1 - TP / (TP + delta FN + (1 - delta) FP): miss for
    healthy, miss^(1 - gamma) for a tumor class. Below 1e-5 the power is replaced by a line to 0, because its
    slope at 0 is infinite.
    """
    delta, gamma = section.unified_delta, section.unified_gamma
    entropy = F.cross_entropy(logits, classes, reduction="none")
    suppressed = (1 - torch.exp(-entropy)).clamp(min=_PROBABILITY_FLOOR) ** gamma
    focal = torch.where(classes >= first_class, delta * entropy, (1 - delta) * suppressed * entropy)

    probabilities = torch.softmax(logits, 1)
    truth = _is_class(classes, logits.shape[1])
    if counted is not None:
        probabilities, truth = probabilities * counted[:, None], truth * counted[:, None]
    both, said, true = (v.flatten(2).sum(2) for v in (probabilities * truth, probabilities, truth))
    miss = 1 - (both + DICE_SMOOTH) / (
        both + delta * (true - both) + (1 - delta) * (said - both) + DICE_SMOOTH
    )
    enhanced = torch.where(
        miss > DICE_SMOOTH, miss.clamp(min=DICE_SMOOTH) ** (1 - gamma), miss * DICE_SMOOTH**-gamma
    )
    tversky = torch.cat([miss[:, :first_class], enhanced[:, first_class:]], 1).mean(1)
    return section.unified_weight * tversky + (1 - section.unified_weight) * _mean_per_example(focal, counted)


def _logit_adjusted(
    logits: Tensor, classes: Tensor, counted: Tensor | None, adjustments: Tensor | None
) -> Tensor:
    """Menon et al. 2021, equation 10: the cross-entropy of the logits plus tau log prior. The logits without
    this term then belong to balanced classes.
    """
    assert adjustments is not None  # `make_loss` sees to it
    return _cross_entropy(logits + adjustments.view(-1, *[1] * (logits.dim() - 2)), classes, counted, None)


def _ldam(
    logits: Tensor,
    classes: Tensor,
    counted: Tensor | None,
    weights: Tensor | None,
    *,
    margins: "_PerDevice",
) -> Tensor:
    """Label-distribution-aware margins (Cao et al. 2019, section 3.2): the logit of the true class is lowered
    by the margin of the class before the cross-entropy.

    In the paper, the weights and features of the last layer have length 1, and their cosine is multiplied
    by 30. Here the network is unchanged, and the margins are in units of its logits.
    """
    of_class = margins.like(logits)
    assert of_class is not None
    lowered = logits - _is_class(classes, logits.shape[1]) * of_class.view(-1, *[1] * (logits.dim() - 2))
    return _cross_entropy(lowered, classes, counted, weights)


def _top_k(
    logits: Tensor, classes: Tensor, counted: Tensor | None, weights: Tensor | None, *, share: float
) -> Tensor:
    """The cross-entropy of only the hardest voxels or images of the batch: online hard example mining
    (Shrivastava et al. 2016, section 4); for voxels this is nnU-Net's top-k loss. The mean over the examples
    is the mean over the hardest `share`.
    """
    entropy = F.cross_entropy(logits, classes, reduction="none")
    counts = torch.ones_like(classes, dtype=torch.bool) if counted is None else counted
    order = entropy.detach().masked_fill(~counts, -1).flatten().argsort(descending=True)
    n_kept = (share * counts.sum()).ceil()
    kept = (order.argsort() < n_kept).view_as(entropy)
    # One mean over the kept voxels of the batch: a patch with more kept voxels has more weight.
    return (entropy * kept).view(len(entropy), -1).sum(1) * (len(entropy) / n_kept.clamp(min=1))


def _label_aware(logits: Tensor, classes: Tensor, counted: Tensor | None, smoothing: Tensor | None) -> Tensor:
    """Label-aware smoothing (Zhong et al. 2021, MiSLAS, section 3.2): the class of a label gets 1 - e, the
    other classes get e in equal parts; e is large for common classes.
    """
    assert smoothing is not None  # `make_loss` sees to it
    logs = F.log_softmax(logits, 1)
    own = logs.gather(1, classes[:, None])[:, 0]
    others = (logs.sum(1) - own) / (logits.shape[1] - 1)
    e = smoothing[classes]
    return _mean_per_example(-(1 - e) * own - e * others, counted)


def _region(
    logits: Tensor, classes: Tensor, counted: Tensor | None, weights: Tensor | None, *, dice: str = "example"
) -> Tensor:
    """A sigmoid for each of whole, core and active: binary cross-entropy plus 1 - soft Dice, means over the
    three regions (Isensee et al. 2020).

    The logit of a region is a difference of class logits (`region_logits`). If no region is more probable
    than the region around it, cutting every sigmoid at 0.5 gives the class of the largest logit.
    """
    regions = region_logits(logits)
    truth = torch.stack([classes != 0, (classes == 1) | (classes == 3), classes == 3], 1)
    entropy = F.binary_cross_entropy_with_logits(regions, truth.to(regions.dtype), reduction="none").mean(1)
    return _mean_per_example(entropy, counted) + _one_minus_dice(
        torch.sigmoid(regions), truth, counted, over=dice
    )


def _is_class(classes: Tensor, n_classes: int) -> Tensor:
    """A mask of each class, bool (B, K, *patch)."""
    numbers = torch.arange(n_classes, device=classes.device)
    return classes[:, None] == numbers.view(-1, *[1] * (classes.dim() - 1))


def _one_minus_dice(probabilities: Tensor, truth: Tensor, counted: Tensor | None, *, over: str) -> Tensor:
    """One minus the soft Dice (B,), as the mean over the channels (B, C, *patch). Over the 'batch' all
    examples have the same value.
    """
    if counted is not None:
        probabilities, truth = probabilities * counted[:, None], truth * counted[:, None]
    both, said, true = (v.flatten(2).sum(2) for v in (probabilities * truth, probabilities, truth))
    either = said + true
    if over == "batch":
        both, either = (v.sum(0, keepdim=True).expand(len(v), -1) for v in (both, either))
    return (1 - (2 * both + DICE_SMOOTH) / (either + DICE_SMOOTH)).mean(1)


def _mean_per_example(values: Tensor, counted: Tensor | None) -> Tensor:
    if values.dim() == 1:
        return values  # one class for the whole image
    if counted is None:
        return values.flatten(1).mean(1)
    counted = counted.flatten(1)
    return (values.flatten(1) * counted).sum(1) / counted.sum(1).clamp(min=1)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": _cross_entropy,
    "focal": _focal,
    "dice_cross_entropy": _dice_cross_entropy,
    "unified_focal": _unified_focal,
    "region": _region,
    "logit_adjusted": _logit_adjusted,
    "ldam": _ldam,
    "top_k": _top_k,
    "label_aware": _label_aware,
}
