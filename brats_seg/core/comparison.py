"""Paired comparison of two sides of a table: for predictions, strategies and methods."""

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from brats_seg.core.statistics import paired_difference

FEWEST = 6
"""With fewer patients Wilcoxon's p cannot fall below 0.05, and a 95 % bootstrap interval holds the mean in 50
to 84 % of samples only.
"""
NO_PAIRS = paired_difference({}, {}, patient_of={})
"""The result for two sides that share no unit."""
PAIRED_TEST = "Wilcoxon signed-rank over patients, each the mean over its {units}, two-sided"


def compare_sides(
    table: pd.DataFrame, *, first: str, second: str, by: Sequence[str] = ()
) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Second minus first, by `paired_difference`, for each group of rows.

    Args:
        table: one row for each value, with the columns `side` (name of the side), `unit` (the scan or
            training set that is paired), `patient` (patient of the unit), `value`, and the columns of `by`. A
            NaN value has no pair.
        first, second: values of `side`.
        by: the columns that define a group; empty for one group.

    Returns:
        `paired_difference` of each group that has a value, by the values of `by`.
    """
    with_value = table[table["value"].notna()]
    sides: dict[tuple[Any, ...], dict[str, dict[str, float]]] = {}
    patient_of: dict[tuple[Any, ...], dict[str, str]] = {}
    columns = ("side", "unit", "patient", "value", *by)
    for side, unit, patient, value, *key in zip(*(with_value[name] for name in columns), strict=True):
        sides.setdefault(tuple(key), {}).setdefault(side, {})[unit] = value
        patient_of.setdefault(tuple(key), {})[unit] = patient
    return {
        key: paired_difference(of_side.get(first, {}), of_side.get(second, {}), patient_of=patient_of[key])
        for key, of_side in sides.items()
    }


def few_note(*, intervals: Iterable[int] = (), tests: Iterable[int] = (), units: str = "patients") -> str:
    """A sentence that warns of intervals and p values over fewer than `FEWEST` units; empty if there are
    none.

    Args:
        intervals: number of units of each interval.
        tests: number of units of each p value.
        units: name of the units.
    """
    parts = ["p cannot fall below 0.05"] * any(n < FEWEST for n in tests)
    parts += ["the 95 % intervals are too narrow"] * any(n < FEWEST for n in intervals)
    return f"With fewer than {FEWEST} {units} {' and '.join(parts)}." if parts else ""
