"""Probabilities + truth -> multi-class ROC AUC, accuracy, recall, precision, confusion, by scikit-learn."""

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
"""A network's output for each image and class: probabilities, or anything that is larger for the likelier
class.
"""
Labels = Integer[np.ndarray, " n"]
"""Class of each image, 0 to K - 1."""
PerClass = Float64[np.ndarray, " k"]
"""A number for each class; NaN where it is not defined."""
ROC_POINTS = 200


@dataclass(frozen=True)
class Scores:
    """How well images are told apart. A mean over classes leaves out those where the number is not defined.

    Attributes:
        n: images.
        auc: area under the ROC curve: mean over the classes of one against the rest (Provost and Domingos
            2003).
        accuracy: share of images that are right; `error` is the rest.
        balanced_accuracy: mean recall.
        f_score: mean F-score.
        auc_per_class: NaN where no image, or every image, is of the class.
        recall_per_class: share of a class that is found; another name is sensitivity. NaN where no image is
            of the class.
        precision_per_class: share that is right of those called a class. NaN where none is called so.
        f_score_per_class: 2 right / (images of the class + called so). NaN where there are none of either.
        confusion: (k, k) images by class (rows) and what they were called (columns).
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
        """Share of images that are wrong."""
        return 1 - self.accuracy

    def row(self) -> dict[str, Any]:
        """The scores as plain values that JSON takes: None for NaN, lists over the classes."""
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
    """Score a network's outputs.

    Args:
        outputs: (n, k); the AUC is of these.
        labels: the truth.
        decided: class each image is called; None takes the largest output, of equal ones the first.

    Raises:
        InputError: no image, an output that is no number, or a label that is no class.
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
    """Area under the ROC curve of each class against the rest: the share of pairs that are in order, ties
    counting half. NaN where no image, or every image, is of the class.
    """
    is_own = labels[:, None] == np.arange(outputs.shape[1])
    both = is_own.any(axis=0) & ~is_own.all(axis=0)
    areas = np.full(outputs.shape[1], np.nan)
    if both.any():  # all classes in one call: a call for each class checks its arguments for 2 ms
        areas[both] = roc_auc_score(is_own[:, both], outputs[:, both], average=None)
    return areas


def auc_interval(outputs: Outputs, labels: Labels, *, n_resamples: int) -> tuple[float, float] | None:
    """95 % interval of the multi-class AUC by bootstrap over the images, each class by itself; None where no
    class has an AUC.
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
    """The multi-class AUC of each resample, as `Scores.auc`; NaN where no class has an AUC.

    For each class the images are sorted once. Between two images of the class the drawn images of the rest
    are counted, and an image of the class is in order with those below it.

    Args:
        outputs, labels: as of `score_outputs`.
        times: how often each image is drawn in each resample; each class keeps its size.
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

    Both are empty for a class of which there is no image, or every one.
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
            f"{len(outputs)} outputs and {len(labels)} labels; give as many outputs as labels, at least one"
        )
    n_bad = int((~np.isfinite(outputs)).any(axis=1).sum())
    refuse(
        (n_bad, f"{n_bad} of {len(outputs)} images have an output that is no number"),
        (
            not 0 <= labels.min() <= labels.max() < outputs.shape[1],
            f"labels lie in {labels.min()}..{labels.max()}; {outputs.shape[1]} outputs take "
            f"0..{outputs.shape[1] - 1}",
        ),
        error=InputError,
    )


def _mean(values: PerClass) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
