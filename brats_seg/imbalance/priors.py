"""Class weights; prior correction of probabilities."""

import numpy as np
from jaxtyping import Float, Int64

from brats_seg.core.errors import UsageError, refuse
from brats_seg.core.shapes import Counts, Shares

LOSSES_WITH_A_PRIOR = ("cross_entropy", "logit_adjusted")
"""Losses whose minimum is the posterior under a known prior; the others give scores, with no prior to divide
by.

For `cross_entropy` it is the training prior, for `logit_adjusted` the training prior over the natural one to
the power tau.
"""


def class_weights(kind: str, counts: Int64[np.ndarray, "*cases k"], *, beta: float = 0.9999) -> Shares:
    """The factor of each class in the loss; float64. A class without examples gets 0, but 1 by `none`.

    `none`: 1 each. `balanced`: n / (K n_c), K the classes that occur (scikit-learn's "balanced"; King & Zeng
    2001). `effective_number`: (1 - beta) / (1 - beta^n_c), scaled to sum to K (Cui et al., CVPR 2019, eq. 4).
    `median_frequency`: median(f) / f_c, with f_c the examples of c over those of all classes *in the cases
    where c occurs* (Eigen & Fergus, ICCV 2015, section 6.3.2). `cost`: n_min / n_c, so that the rarest class
    learns at the whole rate and the others at a part of it, as costs in the learning rate do (Kukar &
    Kononenko, ECAI 1998); the cost of a class is the inverse of its frequency.

    With beta 0.9999 `effective_number` tells apart only classes of under some 50,000 examples: a bank's 18M /
    30k / 180k / 20k / 62k voxels get 0.96 / 1.01 / 0.96 / 1.11 / 0.96, which is next to no weighting.

    Args:
        kind: one of the five.
        counts: examples per class, or per case and class (`median_frequency` tells the difference).
        beta: of `effective_number`; 0 is no weighting, towards 1 it becomes the inverse frequency.

    Raises:
        UsageError: an unknown kind, a beta outside [0, 1), or no examples at all.
    """
    by_case = np.atleast_2d(counts)
    total = by_case.sum(axis=0)
    present = total > 0
    if not present.any():
        raise UsageError("loss.class_weights: no examples to weigh the classes by")
    weights = np.zeros(len(total))
    if kind == "none":
        return np.ones(len(total))
    if kind == "balanced":
        weights[present] = total.sum() / (present.sum() * total[present])
    elif kind == "effective_number":
        if not 0 <= beta < 1:
            raise UsageError(f"beta {beta:g}: must lie in [0, 1)")
        weights[present] = (1 - beta) / -np.expm1(total[present] * np.log(beta)) if beta else 1.0
        weights *= present.sum() / weights.sum()
    elif kind == "cost":
        weights[present] = total[present].min() / total[present]
    elif kind == "median_frequency":
        where_present = (by_case.sum(axis=1)[:, None] * (by_case > 0)).sum(axis=0)
        frequency = total[present] / where_present[present]
        weights[present] = np.median(frequency) / frequency
    else:
        raise UsageError(
            f"loss.class_weights '{kind}': must be one of none, balanced, effective_number, "
            "median_frequency, cost"
        )
    return weights


def effective_prior(counts: Counts, *, class_weights: Shares | None = None) -> Shares:
    """The prior a network learns: examples of each class that entered the loss x the weight of the class, as
    shares.

    With sampling alone these are the ledger's counts, with weights alone the natural counts times the
    weights, with both the product of both. Dividing by this product once corrects for sampling and weights
    together. It is the prior that the network shows where each example is seen by itself: images, or a
    network that labels one voxel at a time. A network that segments patches sees the tissue around a voxel
    and shows less of the prior of the patch voxels: a full correction of it draws tumor too small.
    """
    weighted = counts * (class_weights if class_weights is not None else 1.0)
    if weighted.sum() <= 0:
        raise UsageError(
            f"training prior: counts {counts.tolist()} with weights {class_weights} leave no class"
        )
    return weighted / weighted.sum()


def correct_logits(
    logits: Float[np.ndarray, "..."],
    *,
    training_prior: Shares,
    target_prior: Shares,
    strength: float = 1.0,
    axis: int = 0,
) -> Float[np.ndarray, "..."]:
    """Logits whose softmax is the posterior under another prior: that of `logits` x (target /
    training)^strength, renormalized.

    For voxels (class axis first) and images (class axis last) alike; Saerens et al., Neural Computation 14
    (2002), eq. 4. Buda's thresholding of an imbalanced set is the same with a uniform target (Buda et al.,
    Neural Networks 106 (2018), section 3.1.2).

    Args:
        logits: of the classes along `axis`.
        training_prior: the prior the network was trained under (`effective_prior`).
        target_prior: the prior to give the logits for. A class of target 0 gets -inf.
        strength: 0 leaves the logits alone, 1 corrects in full; below 1 for a network that does not show all
            of its training prior (see `effective_prior`).
        axis: the class axis.

    Returns:
        The same shape and dtype.

    Raises:
        UsageError: priors that do not fit the class axis, are negative, or a class with a target that was
            never trained on.
    """
    along = [1] * logits.ndim
    along[axis] = -1
    return logits + _log_ratio(logits.shape[axis], training_prior, target_prior, strength).reshape(
        along
    ).astype(logits.dtype)


def require_prior(loss_kind: str) -> None:
    """Refuse prior correction after a loss that has no prior to divide by. Raises `UsageError`."""
    if loss_kind not in LOSSES_WITH_A_PRIOR:
        allowed = ", ".join(LOSSES_WITH_A_PRIOR)
        raise UsageError(
            f"prior correction: a network trained with loss.kind '{loss_kind}' has no prior to divide by; it "
            f"takes {allowed}"
        )


def _log_ratio(
    n_classes: int, training_prior: np.ndarray, target_prior: np.ndarray, strength: float
) -> np.ndarray:
    for name, prior in (("training", training_prior), ("target", target_prior)):
        refuse(
            (
                len(prior) != n_classes,
                f"prior correction: the {name} prior has {len(prior)} classes, the logits {n_classes}",
            ),
            (
                not ((prior >= 0).all() and 0 < prior.sum() < np.inf),
                f"prior correction: the {name} prior {prior.tolist()} must be 0 or more, finite, and not all "
                "0",
            ),
        )
    if not 0 <= strength < np.inf:
        raise UsageError(f"prior correction: strength {strength:g}; 0 is none, 1 in full")
    untrained = np.flatnonzero((training_prior == 0) & (target_prior > 0))
    if untrained.size and strength > 0:
        raise UsageError(
            f"prior correction: classes {untrained.tolist()} have a target prior but were never trained on"
        )
    training, target = training_prior / training_prior.sum(), target_prior / target_prior.sum()
    ratio = np.divide(target, training, out=np.zeros(n_classes), where=training > 0)
    if strength == 0:
        return np.zeros(n_classes)
    with np.errstate(divide="ignore"):  # a target of 0 is meant: its logarithm, -inf, takes the class out
        return strength * np.log(ratio)
