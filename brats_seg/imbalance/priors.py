"""Class weights, and prior correction of probabilities."""

import numpy as np
from jaxtyping import Float, Int64

from brats_seg.core.errors import UsageError, refuse
from brats_seg.core.shapes import Counts, Shares

LOSSES_WITH_A_PRIOR = ("cross_entropy", "logit_adjusted")
"""Losses whose minimum is the posterior under a known prior. The other losses give scores without a known
prior.

For `cross_entropy` the prior is the training prior. For `logit_adjusted` it is the training prior divided by
the natural prior to the power tau.
"""


def class_weights(kind: str, counts: Int64[np.ndarray, "*cases k"], *, beta: float = 0.9999) -> Shares:
    """The factor of each class in the loss; float64. A class without examples gets 0, but with `none` it gets
    1.

    `none`: 1 for each class. `balanced`: n / (K n_c), where K is the number of classes that occur
    (scikit-learn's "balanced"; King & Zeng 2001). `effective_number`: (1 - beta) / (1 - beta^n_c), scaled to
    sum to K (Cui et al., CVPR 2019, eq. 4). `median_frequency`: median(f) / f_c, with f_c the examples of c
    over those of all classes *in the cases where c occurs* (Eigen & Fergus, ICCV 2015, section 6.3.2).
    `cost`: n_min / n_c, so that the rarest class has the full learning rate and each other class a part of
    it, as with costs in the learning rate (Kukar & Kononenko, ECAI 1998); the cost of a class is the inverse
    of its frequency.

    With beta 0.9999 `effective_number` only distinguishes classes with fewer than about 50,000 examples. In a
    bank, 18M / 30k / 180k / 20k / 62k voxels get 0.96 / 1.01 / 0.96 / 1.11 / 0.96, which is almost no
    weighting.

    Args:
        kind: one of the five kinds.
        counts: number of examples per class, or per case and class (this matters only for
            `median_frequency`).
        beta: parameter of `effective_number`; 0 means no weighting, and values near 1 approach the inverse
            frequency.

    Raises:
        UsageError: the kind is unknown, beta is outside [0, 1), or there are no examples.
    """
    by_case = np.atleast_2d(counts)
    total = by_case.sum(axis=0)
    present = total > 0
    if not present.any():
        raise UsageError("loss.class_weights: there are no examples from which to compute weights")
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
    """The prior that a network learns: number of examples of each class in the loss x weight of the class, as
    shares.

    With sampling alone these are the counts of the ledger. With weights alone these are the natural counts
    times the weights. With both, these are the counts of the ledger times the weights. One division by this
    prior corrects for sampling and weights together. A network that classifies each example separately
    (images, or one voxel at a time) shows exactly this prior. A network that segments patches also uses the
    tissue around a voxel, so its predictions depend less on the prior of the patch voxels. A full correction
    then makes the segmented tumor too small.
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
    """Logits whose softmax is the posterior under another prior: softmax of `logits` x (target /
    training)^strength, renormalized.

    This works for voxels (class axis first) and for images (class axis last); Saerens et al., Neural
    Computation 14 (2002), eq. 4. The thresholding of Buda et al. is the same with a uniform target (Buda et
    al., Neural Networks 106 (2018), section 3.1.2).

    Args:
        logits: logits with the classes along `axis`.
        training_prior: the prior of the training (`effective_prior`).
        target_prior: the wanted prior. A class with target 0 gets -inf.
        strength: 0 does not change the logits, 1 is the full correction. Use values below 1 for a network
            that only partly shows its training prior (see `effective_prior`).
        axis: the class axis.

    Returns:
        The same shape and dtype.

    Raises:
        UsageError: a prior does not fit the class axis, a prior has negative values, or a class with a target
            prior was never in the training.
    """
    along = [1] * logits.ndim
    along[axis] = -1
    return logits + _log_ratio(logits.shape[axis], training_prior, target_prior, strength).reshape(
        along
    ).astype(logits.dtype)


def require_prior(loss_kind: str) -> None:
    """Raise `UsageError` for a loss without a known prior, because prior correction is not possible."""
    if loss_kind not in LOSSES_WITH_A_PRIOR:
        allowed = ", ".join(LOSSES_WITH_A_PRIOR)
        raise UsageError(
            f"prior correction: a network trained with loss.kind '{loss_kind}' has no known prior; it "
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
        raise UsageError(f"prior correction: strength {strength:g}; give a number from 0 (none) to 1 (full)")
    untrained = np.flatnonzero((training_prior == 0) & (target_prior > 0))
    if untrained.size and strength > 0:
        raise UsageError(
            f"prior correction: classes {untrained.tolist()} have a target prior but were never in the "
            "training"
        )
    training, target = training_prior / training_prior.sum(), target_prior / target_prior.sum()
    ratio = np.divide(target, training, out=np.zeros(n_classes), where=training > 0)
    if strength == 0:
        return np.zeros(n_classes)
    with np.errstate(divide="ignore"):  # a target of 0 is allowed: its logarithm -inf removes the class
        return strength * np.log(ratio)
