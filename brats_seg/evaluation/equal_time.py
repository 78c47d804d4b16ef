"""Rows of looks.csv -> scores of all strategies after equal training time."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from brats_seg.evaluation.comparison import summarize_runs
from brats_seg.evaluation.run_rows import Row, Variant, variant_of

CLOCK = 0.05
"""A look counts as within the time where it took up to this share longer: the clock of two equal runs differs
by a few percent, and the fastest run would else be the only one that is scored at its end.
"""


def summarize_equal_time(looks: Sequence[Row], *, against: str | None = None) -> dict[str, Any] | None:
    """Means and paired differences of the last look of each run within the time of its fold and seed.

    The time of a fold and seed is that of the shortest run among the strategies. A run whose first look is
    later than that has no score.

    Args:
        looks: rows of looks.csv of one experiment, in the order of its variants.
        against: label of the variant that differences are taken from; None for the first of each pair.

    Returns:
        `variants` and `differences` as in `summarize_runs`, each variant with its mean `patches`,
        `training_s` and `share` of the whole run; and `n_too_late`, the runs without a score. None without
        looks.
    """
    if not looks:
        return None
    chosen = looks_within_time(looks)
    summary = summarize_runs([{**row, "seconds": row["training_s"]} for row in chosen], against=against)
    whole: dict[tuple[Any, ...], int] = {}
    for row in looks:
        whole[_run(row)] = max(row["patches"], whole.get(_run(row), 0))
    for tree in summary["variants"]:
        variant = Variant(tree["data"], tree["strategy"], tree["correct_priors"])
        runs = {_run(row): row for row in chosen if variant_of(row) == variant}
        tree["patches"] = fmean(row["patches"] for row in runs.values())
        tree["training_s"] = fmean(row["training_s"] for row in runs.values())
        tree["share"] = fmean(row["patches"] / whole[run] for run, row in runs.items())
    return {
        "clock": CLOCK,
        "n_too_late": len(whole) - len({_run(row) for row in chosen}),
        "variants": summary["variants"],
        "differences": summary["differences"],
    }


def looks_within_time(looks: Sequence[Row]) -> list[Row]:
    """The rows of the last look of each run that is within the time of its fold and seed."""
    ends: dict[tuple[Any, ...], float] = {}
    for row in looks:
        ends[_run(row)] = max(row["training_s"], ends.get(_run(row), 0.0))
    times: dict[tuple[Any, ...], float] = {}
    for (*fold_and_seed, _), end in ends.items():
        key = tuple(fold_and_seed)
        times[key] = min(end, times.get(key, end))
    last: dict[tuple[Any, ...], float] = {}
    for row in looks:
        run = _run(row)
        if row["training_s"] <= times[run[:-1]] * (1 + CLOCK):
            last[run] = max(row["training_s"], last.get(run, 0.0))
    return [row for row in looks if last.get(_run(row)) == row["training_s"]]


def _run(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The run of a row: what the runs of all strategies share, then the strategy."""
    return row["data"], row["fold"], row["seed"], row["strategy"]
