"""Intervals and paired tests over patients, by SciPy."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from jaxtyping import Float, Integer, UInt16
from scipy import stats


def bootstrap_interval(
    values: Sequence[float],
    patients: Sequence[str],
    *,
    level: float = 0.95,
    n_resamples: int = 5000,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Percentile interval of the mean by resampling of patients. All scans of a patient stay together.

    Args:
        values: one number for each scan, no NaN.
        patients: patient of each scan, same length.
        level: share of the resampled means in the interval.
        n_resamples: number of resamples.
        seed: seed of the draws.

    Returns:
        Lower and upper bound; None with fewer than two patients.
    """
    names, owner = np.unique(np.asarray(patients, dtype=np.str_), return_inverse=True)
    if len(names) < 2:
        return None
    sums, counts = np.bincount(owner, weights=np.asarray(values, np.float64)), np.bincount(owner)
    drawn = np.random.default_rng(seed).integers(len(names), size=(n_resamples, len(names)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def stratified_times(
    strata: Integer[np.ndarray, " n"], *, n_resamples: int, seed: int = 0
) -> UInt16[np.ndarray, "n r"]:
    """How often each member is drawn in each resample; a stratum keeps its size.

    Args:
        strata: stratum of each member.
        n_resamples: number of resamples.
        seed: seed of the draws.
    """
    generator = np.random.default_rng(seed)
    times = np.zeros((len(strata), n_resamples), np.uint16)
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        n = len(members)
        drawn = generator.integers(n, size=(n, n_resamples)) * n_resamples + np.arange(n_resamples)
        times[members] = np.bincount(drawn.ravel(), minlength=n * n_resamples).reshape(n, n_resamples)
    return times


def describe(values: Sequence[float], patients: Sequence[str]) -> dict[str, Any]:
    """Mean, sd (n - 1), n, number of patients and 95 % interval over patients, as plain types for JSON; None
    for values for which n is too small.

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
        "n_patients": len(set(patients)),
        "interval95": list(interval) if interval else None,
    }


def paired_difference(
    first: Mapping[str, float], second: Mapping[str, float], *, patient_of: Mapping[str, str]
) -> dict[str, Any]:
    """Second minus first over the scans that both have: `describe` of the differences, and `p` of the paired
    test of the package.

    The test is Wilcoxon's signed-rank test, two-sided, over patients: each patient counts once, with the mean
    over the shared scans.

    Args:
        first, second: one number for each scan, no NaN. A scan that only one of them has is left out.
        patient_of: patient of each scan that both have.

    Returns:
        The keys of `describe`, and `p`. `p` is 1 if no patient differs or no scan is shared.
    """
    keys = sorted(first.keys() & second.keys())
    differences, patients = [second[k] - first[k] for k in keys], [patient_of[k] for k in keys]
    by_patient: dict[str, list[float]] = {}
    for difference, patient in zip(differences, patients, strict=True):
        by_patient.setdefault(patient, []).append(difference)
    means = [fmean(values) for values in by_patient.values()]
    return describe(differences, patients) | {"p": _signed_rank_p(np.array(means)) if any(means) else 1.0}


def _signed_rank_p(differences: Float[np.ndarray, " n"]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test: that of `scipy.stats.wilcoxon`.

    If some of up to 13 differences are equal or 0, SciPy ranks the differences again for each of the 2^n
    patterns of signs, which takes seconds. Here the differences are ranked once.
    """
    sizes = np.abs(differences)
    if len(sizes) > 13 or len(np.unique(sizes[sizes > 0])) == len(sizes):
        return float(stats.wilcoxon(differences).pvalue)
    ranks = stats.rankdata(np.where(sizes > 0, sizes, np.nan), nan_policy="omit")
    signed = np.where(sizes > 0, ranks * np.sign(differences), 0)
    test = stats.permutation_test(
        (signed,), np.sum, permutation_type="samples", vectorized=True, n_resamples=np.inf
    )
    return float(test.pvalue)
