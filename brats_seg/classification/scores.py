"""Probabilities + truth -> multi-class ROC AUC, accuracy, recall, precision, confusion."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, Integer

from brats_seg.core.errors import InputError

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
    confusion = confusion_matrix(
        labels, outputs.argmax(axis=1) if decided is None else decided, n_classes=outputs.shape[1]
    )
    right, of_class, called = (
        np.diag(confusion).astype(np.float64),
        confusion.sum(axis=1),
        confusion.sum(axis=0),
    )
    auc = roc_auc(outputs, labels)
    recall, f_score = _share(right, of_class), _share(2 * right, of_class + called)
    return Scores(
        n=len(labels),
        auc=_mean(auc),
        accuracy=float(right.sum() / len(labels)),
        balanced_accuracy=_mean(recall),
        f_score=_mean(f_score),
        auc_per_class=auc,
        recall_per_class=recall,
        precision_per_class=_share(right, called),
        f_score_per_class=f_score,
        confusion=confusion,
    )


def confusion_matrix(
    labels: Labels, decided: Integer[np.ndarray, " n"], *, n_classes: int
) -> Int64[np.ndarray, "k k"]:
    """Images by class (rows) and what they were called (columns)."""
    pairs = labels.astype(np.int64) * n_classes + decided
    return np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes).astype(np.int64)


def roc_auc(outputs: Outputs, labels: Labels) -> PerClass:
    """Area under the ROC curve of each class against the rest: the share of pairs that are in order, ties
    counting half.

    By ranks (Hanley and McNeil 1982): one sort a class, no curve. Equal outputs share their mean rank.
    """
    n, k = outputs.shape
    areas = np.full(k, np.nan)
    for c in range(k):
        positive = labels == c
        n_positive = int(positive.sum())
        if 0 < n_positive < n:
            areas[c] = (_rank_sum(outputs[:, c], positive) - n_positive * (n_positive + 1) / 2) / (
                n_positive * (n - n_positive)
            )
    return areas


def roc_curve(
    outputs: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]
) -> tuple[Float64[np.ndarray, " points"], Float64[np.ndarray, " points"]]:
    """The ROC curve of one class, its corners only.

    Args:
        outputs: larger where the class is likelier.
        positive: which images are of the class.

    Returns:
        False-positive rate and true-positive rate, both rising from 0 to 1.

    Raises:
        InputError: no image, or every image, is of the class.
    """
    n_positive = int(positive.sum())
    if not 0 < n_positive < len(positive):
        raise InputError(
            f"a ROC curve needs images of the class and others; {n_positive} of {len(positive)} are of it"
        )
    order = np.argsort(-outputs, kind="stable")
    last = np.append(np.diff(outputs[order]) != 0, True)  # one point where equal outputs end
    hits = np.concatenate([[0], np.cumsum(positive[order])[last]])
    alarms = np.concatenate([[0], np.flatnonzero(last) + 1]) - hits
    bends = np.diff(hits[1:]) * np.diff(alarms[:-1]) != np.diff(hits[:-1]) * np.diff(alarms[1:])
    corner = np.concatenate([[True], bends, [True]])
    return alarms[corner] / (len(positive) - n_positive), hits[corner] / n_positive


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
        alarms, hits = roc_curve(outputs[:, k], labels == k)
        kept = np.unique(
            np.linspace(0, len(alarms) - 1, min(len(alarms), ROC_POINTS)).round().astype(np.int64)
        )
        curves.append([np.round(alarms[kept], 5).tolist(), np.round(hits[kept], 5).tolist()])
    return curves


def _rank_sum(values: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]) -> float:
    """Sum of the ranks, from 1, of the positive ones."""
    order = np.argsort(values)
    ordered = values[order]
    first = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    if first.all():
        return float((np.flatnonzero(positive[order]) + 1).sum())
    starts = np.flatnonzero(first)
    sizes = np.diff(np.append(starts, len(values)))
    mean_ranks = starts + (sizes + 1) / 2
    return float(mean_ranks @ np.add.reduceat(positive[order].astype(np.float64), starts))


def _check(outputs: Outputs, labels: Labels) -> None:
    if len(labels) == 0 or len(labels) != len(outputs):
        raise InputError(
            f"{len(outputs)} outputs and {len(labels)} labels; as many of each, and one at least"
        )
    if np.isnan(outputs).any():
        raise InputError(
            f"{int(np.isnan(outputs).any(axis=1).sum())} of {len(outputs)} images have an output that is no "
            "number"
        )
    if not 0 <= labels.min() <= labels.max() < outputs.shape[1]:
        raise InputError(
            f"labels lie in {labels.min()}..{labels.max()}; {outputs.shape[1]} outputs take "
            f"0..{outputs.shape[1] - 1}"
        )


def _share(part: Float64[np.ndarray, " k"], whole: Int64[np.ndarray, " k"]) -> PerClass:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


def _mean(values: PerClass) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
