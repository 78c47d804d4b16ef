"""Probabilities and true classes -> multi-class ROC AUC, accuracy, recall, precision and confusion matrix, by
scikit-learn.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int64, Integer, UInt16
from sklearn.metrics import (
    confusion_matrix,
    precision_recall_fscore_support,
    roc_auc_score,
    roc_curve,
)

from brats_seg.core.errors import InputError, refuse
from brats_seg.core.statistics import stratified_times

Outputs = Float[np.ndarray, "n k"]
"""The output of a network for each image and class: probabilities, or any number that is larger for the more
probable class.
"""
Labels = Integer[np.ndarray, " n"]
"""Class of each image, 0 to K - 1."""
PerClass = Float64[np.ndarray, " k"]
"""A number for each class; NaN where it is not defined."""
ROC_POINTS = 200


@dataclass(frozen=True)
class Scores:
    """The scores of a classification. A mean over classes leaves out classes whose score is not defined.

    Attributes:
        n: number of images.
        auc: area under the ROC curve, as the mean over the classes of one class against the rest (Provost and
            Domingos 2003).
        accuracy: share of correct images; `error` is 1 - accuracy.
        balanced_accuracy: mean recall.
        f_score: mean F-score.
        auc_per_class: AUC of each class; NaN if no image or every image has the class.
        recall_per_class: share of the images of a class that are predicted as this class (sensitivity); NaN
            if no image has the class.
        precision_per_class: share of correct images among the images predicted as a class; NaN if no image is
            predicted as the class.
        f_score_per_class: 2 x correct / (images of the class + images predicted as the class); NaN if both
            numbers are 0.
        confusion: (k, k) number of images by true class (rows) and predicted class (columns).
    """

    n: int
    auc: float
    accuracy: float
    balanced_accuracy: float
    f_score: float
    auc_per_class: PerClass
    recall_per_class: PerClass
    precision_per_class: PerClass
    f_score_per_class: PerClass
    confusion: Int64[np.ndarray, "k k"]

    @property
    def error(self) -> float:
        """Share of wrong images."""
        return 1 - self.accuracy

    def row(self) -> dict[str, Any]:
        """The scores as plain values for JSON: None for NaN, lists over the classes."""
        means = {
            name: getattr(self, name) for name in ("auc", "accuracy", "balanced_accuracy", "error", "f_score")
        }
        per_class = {
            name: getattr(self, f"{name}_per_class") for name in ("auc", "recall", "precision", "f_score")
        }
        return {
            "n_test": self.n,
            **{name: _plain(value) for name, value in means.items()},
            **{
                f"{name}_per_class": [_plain(value) for value in values] for name, values in per_class.items()
            },
            "confusion": self.confusion.tolist(),
        }


def score_outputs(outputs: Outputs, labels: Labels, *, decided: Labels | None = None) -> Scores:
    """Score the outputs of a network.

    Args:
        outputs: (n, k); the AUC uses these.
        labels: true classes.
        decided: predicted class of each image; None uses the largest output, and the first one if several are
            equal.

    Raises:
        InputError: there is no image, an output is not a number, or a label is not a class.
    """
    _check(outputs, labels)
    called = outputs.argmax(axis=1) if decided is None else decided
    classes = np.arange(outputs.shape[1])
    precision, recall, f_score, _ = precision_recall_fscore_support(
        labels, called, labels=classes, zero_division=np.nan
    )
    auc = roc_auc(outputs, labels)
    return Scores(
        n=len(labels),
        auc=_mean(auc),
        accuracy=float(np.mean(labels == called)),
        balanced_accuracy=_mean(recall),
        f_score=_mean(f_score),
        auc_per_class=auc,
        recall_per_class=recall,
        precision_per_class=precision,
        f_score_per_class=f_score,
        confusion=confusion_matrix(labels, called, labels=classes).astype(np.int64),
    )


def roc_auc(outputs: Outputs, labels: Labels) -> PerClass:
    """Area under the ROC curve of each class against the rest: the share of pairs in the correct order; ties
    count half. NaN if no image or every image has the class.
    """
    is_own = labels[:, None] == np.arange(outputs.shape[1])
    both = is_own.any(axis=0) & ~is_own.all(axis=0)
    areas = np.full(outputs.shape[1], np.nan)
    if both.any():  # all classes in one call: a call for each class checks its arguments for 2 ms
        areas[both] = roc_auc_score(is_own[:, both], outputs[:, both], average=None)
    return areas


def auc_interval(outputs: Outputs, labels: Labels, *, n_resamples: int) -> tuple[float, float] | None:
    """95 % interval of the multi-class AUC, by bootstrap over the images within each class; None if no class
    has an AUC.
    """
    times = stratified_times(labels, n_resamples=n_resamples)
    resampled = resampled_aucs(outputs, labels, times)
    if np.isnan(resampled).any():
        return None
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(low), float(high)


def resampled_aucs(
    outputs: Outputs, labels: Labels, times: UInt16[np.ndarray, "n r"]
) -> Float64[np.ndarray, " r"]:
    """The multi-class AUC of each resample, as `Scores.auc`; NaN if no class has an AUC.

    For each class the images are sorted once by their output. For each image of the class, the drawn images
    of the other classes with smaller outputs are counted; ties count half.

    Args:
        outputs, labels: as of `score_outputs`.
        times: number of draws of each image in each resample; each class keeps its size.
    """
    of_class = []
    for c in range(outputs.shape[1]):
        order = np.argsort(outputs[:, c])
        values, own = outputs[order, c], np.flatnonzero(labels[order] == c)
        n_own, n_rest = len(own), len(order) - len(own)
        if not n_own or not n_rest:
            continue
        drawn = times[order]
        own_drawn = drawn[own].astype(np.int64)
        drawn[own] = 0
        ends = [np.searchsorted(values, values[own], side) for side in ("left", "right")]
        cuts = np.unique(np.concatenate([[0], *ends]))
        counts = np.add.reduceat(drawn, cuts[cuts < len(order)], axis=0, dtype=np.int64)
        below = np.concatenate([np.zeros_like(counts[:1]), counts.cumsum(0)])
        first, last = (below[np.searchsorted(cuts, end)] for end in ends)
        of_class.append((own_drawn * (first + last)).sum(0) / (2 * n_own * n_rest))
    return np.mean(of_class, axis=0) if of_class else np.full(times.shape[1], np.nan)


def roc_curves(outputs: Outputs, labels: Labels) -> list[list[list[float]]]:
    """False- and true-positive rates of each class against the rest as plain values, at most 200 points of
    each.

    Both are empty if no image or every image has the class.
    """
    curves: list[list[list[float]]] = []
    for k in range(outputs.shape[1]):
        if not 0 < int((labels == k).sum()) < len(labels):
            curves.append([[], []])
            continue
        alarms, hits, _ = roc_curve(labels == k, outputs[:, k])
        kept = np.unique(
            np.linspace(0, len(alarms) - 1, min(len(alarms), ROC_POINTS)).round().astype(np.int64)
        )
        curves.append([np.round(alarms[kept], 5).tolist(), np.round(hits[kept], 5).tolist()])
    return curves


def _check(outputs: Outputs, labels: Labels) -> None:
    if len(labels) == 0 or len(labels) != len(outputs):
        raise InputError(
            f"{len(outputs)} outputs and {len(labels)} labels; give equally many of both, at least one"
        )
    n_bad = int((~np.isfinite(outputs)).any(axis=1).sum())
    refuse(
        (n_bad, f"{n_bad} of {len(outputs)} images have an output that is not a number"),
        (
            not 0 <= labels.min() <= labels.max() < outputs.shape[1],
            f"labels lie in {labels.min()}..{labels.max()}; {outputs.shape[1]} outputs need "
            f"0..{outputs.shape[1] - 1}",
        ),
        error=InputError,
    )


def _mean(values: PerClass) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
