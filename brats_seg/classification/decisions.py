"""From class probabilities to a decision: division by a prior, tuned thresholds, or costs."""

from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Float, Float64, Int64

from brats_seg.core.errors import UsageError
from brats_seg.core.shapes import Shares

Probabilities = Float64[np.ndarray, "n k"]
"""Class probabilities of each image."""
Tuned = Literal["accuracy", "balanced_accuracy", "f_score"]

_FACTORS = np.exp(np.linspace(-8, 8, 81))
_ROUNDS = 3


def divide_by_prior(probabilities: Probabilities, prior: Shares) -> Probabilities:
    """Thresholding (Buda et al. 2018, section 2.2): the output of class i divided by its share |i| / sum |k|.
    Not renormalized.

    Each column is multiplied by one number, so the ROC curve of each class does not change. A class without
    images keeps its output.
    """
    return probabilities / np.where(prior > 0, prior, 1.0)


def weigh_costs(probabilities: Probabilities, costs: Float[np.ndarray, "truth said"]) -> Probabilities:
    """The negative expected cost of each decision (Elkan 2001, equation 1). `costs[i, j]` is the cost of
    deciding class j if the true class is i.

    Raises:
        UsageError: the size of the matrix does not fit the number of classes.
    """
    n_classes = probabilities.shape[1]
    if costs.shape != (n_classes, n_classes):
        raise UsageError(
            f"decisions.costs: {costs.shape[0]} x {costs.shape[1]} numbers; {n_classes} classes need "
            f"{n_classes} x {n_classes}"
        )
    return -(probabilities @ costs)


def tune_factors(
    probabilities: Probabilities, labels: Int64[np.ndarray, " n"], *, score: Tuned
) -> Float64[np.ndarray, " k"]:
    """A factor for each class, chosen so that the class of the largest output gives the best score on these
    images.

    The search is coordinate ascent over 81 factors from e^-8 to e^8, in three rounds, starting from factors
    of 1. The factor of a class changes only if the score rises.
    """
    factors = np.ones(probabilities.shape[1])
    best = SCORES[score](labels, probabilities.argmax(1), len(factors))
    for _ in range(_ROUNDS):
        before = best
        for k in range(len(factors)):
            best = _move(factors, k, best=best, probabilities=probabilities, labels=labels, score=score)
        if best == before:
            break
    return factors


def _move(
    factors: np.ndarray, k: int, *, best: float, probabilities: np.ndarray, labels: np.ndarray, score: Tuned
) -> float:
    """Set the best factor of class `k`, in place. Return the score."""
    weighted = probabilities * factors
    weighted[:, k] = -np.inf
    rival, rival_value = weighted.argmax(1), weighted.max(1)
    for factor in factors[k] * _FACTORS:
        decided = np.where(probabilities[:, k] * factor > rival_value, k, rival)
        reached = SCORES[score](labels, decided, len(factors))
        if reached > best:
            best, factors[k] = reached, factor
    return best


def _accuracy(labels: np.ndarray, decided: np.ndarray, n_classes: int) -> float:
    return float((labels == decided).mean())


def _balanced_accuracy(labels: np.ndarray, decided: np.ndarray, n_classes: int) -> float:
    right = np.bincount(labels[labels == decided], minlength=n_classes)
    of_class = np.bincount(labels, minlength=n_classes)
    return float((right[of_class > 0] / of_class[of_class > 0]).mean())


def _f_score(labels: np.ndarray, decided: np.ndarray, n_classes: int) -> float:
    right = np.bincount(labels[labels == decided], minlength=n_classes)
    both = np.bincount(labels, minlength=n_classes) + np.bincount(decided, minlength=n_classes)
    return float((2 * right[both > 0] / both[both > 0]).mean())


SCORES: dict[Tuned, Callable[[np.ndarray, np.ndarray, int], float]] = {
    "accuracy": _accuracy, "balanced_accuracy": _balanced_accuracy, "f_score": _f_score,
}  # fmt: skip
