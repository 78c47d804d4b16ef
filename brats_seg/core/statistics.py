"""Intervals and paired tests over patients, by SciPy."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from scipy import stats


def bootstrap_interval(
    values: Sequence[float], patients: Sequence[str], *, level: float = 0.95, n_resamples: int = 5000, seed: int = 0
) -> tuple[float, float] | None:
    """Percentile interval of the mean under resampling of patients, all scans of a patient together.

    Args:
        values: one number for each scan, no NaN.
        patients: whose scan it is, same length.
        level: share of the resampled means inside.
        n_resamples: how many means are drawn.
        seed: of the draw.

    Returns:
        Lower and upper bound, or None with fewer than two patients.
    """
    names, owner = np.unique(np.asarray(patients, dtype=np.str_), return_inverse=True)
    if len(names) < 2:
        return None
    sums, counts = np.bincount(owner, weights=np.asarray(values, np.float64)), np.bincount(owner)
    drawn = np.random.default_rng(seed).integers(len(names), size=(n_resamples, len(names)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def describe(values: Sequence[float], patients: Sequence[str]) -> dict[str, Any]:
    """Mean, sd (n - 1), n and 95 % interval over patients, as plain types for JSON; None where n is too small for one.

    Args:
        values: one number for each scan, no NaN.
        patients: whose scan it is, same length.
    """
    n = len(values)
    interval = bootstrap_interval(values, patients)
    return {
        "mean": float(np.mean(values)) if n else None,
        "sd": float(np.std(values, ddof=1)) if n > 1 else None,
        "n": n,
        "interval95": list(interval) if interval else None,
    }


def paired_test(first: Mapping[str, float], second: Mapping[str, float]) -> tuple[int, float, float]:
    """Wilcoxon's signed-rank test, two-sided, over the keys (patients) in both.

    Returns:
        n pairs, mean of first - second, p. p is 1 where no pair differs; mean is NaN where there is no pair.
    """
    keys = sorted(first.keys() & second.keys())
    differences = np.array([first[k] - second[k] for k in keys], np.float64)
    if differences.size == 0:
        return 0, float("nan"), 1.0
    if not differences.any():
        return len(keys), 0.0, 1.0
    return len(keys), float(differences.mean()), float(stats.wilcoxon(differences).pvalue)


def paired_difference(first: Mapping[str, float], second: Mapping[str, float], *, patient_of: Mapping[str, str]) -> dict[str, Any]:
    """Second minus first over the scans in both: `describe` of the differences, and `p` of Wilcoxon's signed-rank test over patients.

    Args:
        first, second: a number for each scan, no NaN.
        patient_of: whose scan it is; the interval resamples patients, the test takes the mean over the scans of each.
    """
    keys = sorted(first.keys() & second.keys())
    differences, patients = [second[k] - first[k] for k in keys], [patient_of[k] for k in keys]
    means = {who: fmean(d for d, whose in zip(differences, patients, strict=True) if whose == who) for who in patients}
    _, _, p = paired_test(means, dict.fromkeys(means, 0.0))
    return describe(differences, patients) | {"p": p}
