"""The section `loss` of a training config."""

from typing import Annotated, Literal

from pydantic import Field

from brats_seg.core.settings import Rules, Section, Share, unless


class Loss(Section):
    """The loss of the training, and the class of voxels outside the brain.

    `weights_from` delays the class weights: they are used from this share of the epochs on (deferred
    re-weighting). `tau` is the strength of the logit adjustment. `dice` 'batch' computes the Dice term over
    all patches of a batch together instead of for each patch. `unified_weight` (weight of the Tversky part),
    `unified_delta` (weight of missed tumor) and `unified_gamma` (focus) are for 'unified_focal'. `by_lesion`
    adds `by_lesion_weight` times a loss of each single lesion to 'dice_cross_entropy'. `margin` of 'ldam' is
    the margin of the rarest class, in logits. `top_share` of 'top_k' is the share of the voxels (or images)
    of a batch that count: those with the largest loss. `smooth_common` and `smooth_rare` of 'label_aware' are
    the shares of a label that are given to the other classes, for the largest and the smallest class.
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
    """The class of a voxel outside the brain."""
    class_weights: Literal["none", "balanced", "effective_number", "median_frequency", "cost"] = "none"
    """The weight of a voxel of each class, computed from the class counts."""
    weights_from: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the epochs before the class weights are used."""
    tau: Annotated[float, Field(gt=0)] = 1.0
    """Strength of the logit adjustment."""
    dice: Literal["example", "batch"] = "example"
    """Whether the Dice term is computed for each patch or over the whole batch."""
    unified_weight: Share = 0.5
    """Weight of the Tversky part in the unified focal loss."""
    unified_delta: Share = 0.6
    """Weight of missed tumor in the unified focal loss."""
    unified_gamma: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Focus on badly segmented voxels in the unified focal loss."""
    by_lesion: Literal["none", "blob", "components"] = "none"
    """Loss of each single lesion that is added."""
    by_lesion_weight: Annotated[float, Field(gt=0)] = 1.0
    """Factor of the loss of each single lesion."""
    margin: Annotated[float, Field(gt=0), unless(4.0)] = 4.0
    """For ldam: margin of the rarest class, in logits."""
    top_share: Annotated[float, Field(gt=0, le=1), unless(0.1)] = 0.1
    """For top_k: share of the voxels or images of a batch that count; these are the hardest."""
    smooth_common: Annotated[Share, unless(0.3)] = 0.3
    """For label_aware: share of the label of the largest class that is given to the other classes."""
    smooth_rare: Annotated[Share, unless(0.0)] = 0.0
    """For label_aware: the same share for the smallest class."""

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
                    f"kind '{self.kind}' has no {knob}; only kind '{kind}' has it",
                )
                for knob, kind in later.items()
            ),
            (
                self.tau != 1 and self.kind != "logit_adjusted",
                f"tau {self.tau:g} is the strength of the logit adjustment; it is only for kind "
                "'logit_adjusted'",
            ),
            (
                (self.unified_weight, self.unified_delta, self.unified_gamma) != (0.5, 0.6, 0.5)
                and self.kind != "unified_focal",
                f"kind '{self.kind}' has no unified_weight, unified_delta and unified_gamma; they are only "
                "for 'unified_focal'",
            ),
            (
                self.by_lesion != "none" and self.kind != "dice_cross_entropy",
                f"by_lesion '{self.by_lesion}' is added to kind 'dice_cross_entropy', not to '{self.kind}'",
            ),
            (
                self.by_lesion_weight != 1 and self.by_lesion == "none",
                "by_lesion_weight is only for by_lesion 'blob' or 'components'",
            ),
            (
                self.dice != "example" and self.kind not in ("dice_cross_entropy", "region"),
                f"kind '{self.kind}' has no Dice term; dice 'batch' is only for kind 'dice_cross_entropy' or "
                "'region'",
            ),
            (
                self.weights_from > 0 and self.class_weights == "none",
                f"weights_from {self.weights_from:g} delays class weights, but class_weights is 'none'; give "
                "both or neither",
            ),
        )
