"""The section of a training's config that says what is minimized."""

from typing import Annotated, Literal

from pydantic import Field

from brats_seg.core.settings import Rules, Section, Share, unless


class Loss(Section):
    """What is minimized, and what a voxel outside the brain counts as.

    `weights_from` defers the class weights: they hold from this share of the epochs on (deferred
    re-weighting). `tau` is the strength of the logit adjustment. `dice` 'batch' sums the Dice term over all
    patches of a batch instead of each patch by itself. `unified_weight` (of the Tversky part),
    `unified_delta` (of missed tumor) and `unified_gamma` (the focus) are those of 'unified_focal'.
    `by_lesion` adds `by_lesion_weight` times a loss of each lesion by itself to 'dice_cross_entropy'.
    `margin` of 'ldam' is that of the rarest class, in logits. `top_share` of 'top_k' is the share of the
    voxels (or images) of a batch that count, those with the largest loss. `smooth_common` and `smooth_rare`
    of 'label_aware' are the shares of a label that go to the other classes, for the largest and the smallest
    class.
    """

    kind: Literal[
        "cross_entropy",
        "dice_cross_entropy",
        "focal",
        "unified_focal",
        "region",
        "logit_adjusted",
        "ldam",
        "top_k",
        "label_aware",
    ] = "cross_entropy"
    """Which loss."""
    outside: Literal["healthy", "ignore"] = "healthy"
    """What a voxel outside the brain counts as."""
    class_weights: Literal["none", "balanced", "effective_number", "median_frequency", "cost"] = "none"
    """How much a voxel of each class counts, from the class counts."""
    weights_from: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the epochs before the class weights hold."""
    tau: Annotated[float, Field(gt=0)] = 1.0
    """Strength of the logit adjustment."""
    dice: Literal["example", "batch"] = "example"
    """Whether the Dice term is taken for each patch or over the whole batch."""
    unified_weight: Share = 0.5
    """Share of the Tversky part in the unified focal loss."""
    unified_delta: Share = 0.6
    """Weight of missed tumor in the unified focal loss."""
    unified_gamma: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Focus on badly segmented voxels in the unified focal loss."""
    by_lesion: Literal["none", "blob", "components"] = "none"
    """Which loss of each lesion is added."""
    by_lesion_weight: Annotated[float, Field(gt=0)] = 1.0
    """Factor of the loss of each lesion."""
    margin: Annotated[float, Field(gt=0), unless(4.0)] = 4.0
    """Of ldam: margin of the rarest class, in logits."""
    top_share: Annotated[float, Field(gt=0, le=1), unless(0.1)] = 0.1
    """Of top_k: share of the voxels or images of a batch that count, the hardest ones."""
    smooth_common: Annotated[Share, unless(0.3)] = 0.3
    """Of label_aware: share of the label of the largest class that goes to the other classes."""
    smooth_rare: Annotated[Share, unless(0.0)] = 0.0
    """Of label_aware: the same of the smallest class."""

    def _rules(self) -> Rules:
        later = {
            "margin": "ldam",
            "top_share": "top_k",
            "smooth_common": "label_aware",
            "smooth_rare": "label_aware",
        }
        return (
            *(
                (
                    self.kind != kind and getattr(self, knob) != type(self).model_fields[knob].default,
                    f"kind '{self.kind}' has no {knob}; it goes with kind '{kind}'",
                )
                for knob, kind in later.items()
            ),
            (
                self.tau != 1 and self.kind != "logit_adjusted",
                f"tau {self.tau:g} is the strength of the logit adjustment; it goes with kind "
                "'logit_adjusted'",
            ),
            (
                (self.unified_weight, self.unified_delta, self.unified_gamma) != (0.5, 0.6, 0.5)
                and self.kind != "unified_focal",
                f"kind '{self.kind}' has no unified_weight, unified_delta and unified_gamma; they go with "
                "'unified_focal'",
            ),
            (
                self.by_lesion != "none" and self.kind != "dice_cross_entropy",
                f"by_lesion '{self.by_lesion}' is added to kind 'dice_cross_entropy', not to '{self.kind}'",
            ),
            (
                self.by_lesion_weight != 1 and self.by_lesion == "none",
                "by_lesion_weight is of a loss of each lesion; it goes with by_lesion 'blob' or 'components'",
            ),
            (
                self.dice != "example" and self.kind not in ("dice_cross_entropy", "region"),
                f"kind '{self.kind}' has no Dice term; dice 'batch' goes with kind 'dice_cross_entropy' or "
                "'region'",
            ),
            (
                self.weights_from > 0 and self.class_weights == "none",
                f"weights_from {self.weights_from:g} defers class weights, and class_weights is 'none'; give "
                "both or neither",
            ),
        )
