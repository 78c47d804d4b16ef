"""Rows of an experiment -> summary.json: means over cases, paired differences, the mix that each strategy
drew.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from statistics import fmean, median
from typing import Any

import pandas as pd

from brats_seg.core.comparison import NO_PAIRS, PAIRED_TEST, compare_sides
from brats_seg.core.statistics import describe
from brats_seg.evaluation.run_rows import COLUMNS, SHARES, Row, Variant, variant_of
from brats_seg.scans.labels import REGIONS

SCORES = ("dice", "sensitivity", "precision", "volume_ratio", "hd95_mm")
MEAN = "mean"
"""Means the mean of the regions."""
COMPARED = (*REGIONS, MEAN, "healthy")
_CASE = ["score", "region", "unit", "patient"]

ByCase = Callable[[Variant, frozenset[tuple[int, int]]], pd.DataFrame]


def summarize_runs(
    rows: Sequence[Row],
    *,
    against: str | None = None,
    same_brains: Sequence[str] = (),
    n_asked: int | None = None,
    failed: Sequence[tuple[str, str]] = (),
    picked_on: Mapping[tuple[str, str], str] | None = None,
) -> dict[str, Any]:
    """The tree of summary.json.

    The unit is the case: a case's score is the mean over the seeds that segmented it. Cases without a region
    in the reference are left out of its means (n says so); the segmentations of such cases that contain the
    region are counted separately, with its size. A difference is over the runs (fold and seed) that both
    variants have: if a run failed, its partner is left out too.

    Args:
        rows: of one experiment, in the order of its variants.
        against: label of the variant that is subtracted from every other, at any place in the order; None
            compares all pairs and subtracts the first variant of each.
        same_brains: names of data sets in which cases of the same name are the same brain with another tumor;
            the differences of these data sets are compared.
        n_asked: number of runs of the finished experiment; None counts the runs that have rows.
        failed: key and reason of each run without rows.
        picked_on: for each strategy and strength of prior correction, the cases whose scores chose the
            weights or the strength: "test" (the cases that are scored here), "validation", or "" for none.
    """
    table = _table(rows)
    variants: dict[Any, pd.DataFrame] = dict(list(table.groupby("variant", sort=False)))
    by_case = _by_case_once(variants)
    n_runs = len(table.groupby(["data", "strategy", "run"])) if rows else 0
    patients = table[["data", "case", "patient"]].drop_duplicates(["data", "case"], keep="last")
    pairs = [
        pair
        for pair in combinations(variants, 2)
        if pair[0].data == pair[1].data and against in (None, pair[0].label, pair[1].label)
    ]
    differences = [
        _difference_tree(*(pair[::-1] if pair[1].label == against else pair), variants, by_case)
        for pair in pairs
    ]
    summary = {
        "scored": _scored(rows),
        "n_runs": n_runs,
        "n_runs_asked": n_runs if n_asked is None else n_asked,
        "failed": [list(pair) for pair in failed],
        "versions": sorted(set(table["versions"])),
        "unit": "case, mean over seeds; cases whose reference has the region",
        "interval": "95 % of bootstrap means, patients resampled with all their cases",
        "test": PAIRED_TEST.format(units="cases"),
        "n_cases": len(patients),
        "n_patients": len(patients[["data", "patient"]].drop_duplicates()),
        "variants": [
            _variant_tree(v, own, by_case(v, frozenset(own["run"])))
            | {"picked_on": (picked_on or {}).get((v.strategy, v.correct_priors), "")}
            for v, own in variants.items()
        ],
        "differences": differences,
    }
    chosen = differences_to(summary, against=against)
    return summary | {"changes": _change_trees(chosen, variants, by_case, same_brains=same_brains)}


def _table(rows: Sequence[Row]) -> pd.DataFrame:
    """The rows with their variant and run (fold and seed); numbers that a row lacks are NaN."""
    table = pd.DataFrame(list(rows), columns=list(COLUMNS))
    numbers = [name for name, kind in COLUMNS.items() if kind is float]
    table[numbers] = table[numbers].astype(float)
    # pandas-stubs know no tuples in a column
    runs: Any = list(zip(table["fold"].tolist(), table["seed"].tolist(), strict=True))
    variants: Any = [variant_of(row) for row in rows]
    return table.assign(variant=variants, run=runs)


def _scored(rows: Sequence[Row]) -> str:
    kinds = {"held_out": "of the held-out folds", "inner": "of the inner splits, no held-out fold opened"}
    return " and ".join(kinds[kind] for kind in sorted({row["cases"] for row in rows}))


def trained_once(variants: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first variant of each strategy: variants of one strategy use the same networks, so they share one
    ledger.
    """
    first: dict[tuple[str, str], Mapping[str, Any]] = {}
    for variant in variants:
        first.setdefault((variant["data"], variant["strategy"]), variant)
    return list(first.values())


def _by_case_once(variants: Mapping[Variant, pd.DataFrame]) -> ByCase:
    """`_by_case` of a variant over some runs, computed once for each: most pairs have all runs."""
    tables: dict[tuple[Variant, frozenset[tuple[int, int]]], pd.DataFrame] = {}

    def by_case(variant: Variant, runs: frozenset[tuple[int, int]]) -> pd.DataFrame:
        if (variant, runs) not in tables:
            own = variants[variant]
            tables[variant, runs] = _by_case(own[own["run"].isin(runs)])
        return tables[variant, runs]

    return by_case


def _by_case(rows: pd.DataFrame) -> pd.DataFrame:
    """The columns `_CASE` and `value`, the mean over seeds; further rows give the mean of the regions."""
    present = rows[rows["n_reference_vox"] > 0].rename(columns={"case": "unit"})
    long = present.melt(["region", "unit", "patient"], SCORES, "score").dropna(subset="value")
    means: Any = long.groupby(_CASE, sort=False, as_index=False)["value"].agg(fmean)
    # Over cases that have all regions of the task, so that every strategy's mean is over the same parts.
    key = ["score", "unit", "patient"]
    of_regions = means[means["region"].isin(REGIONS)].groupby(key, sort=False)["value"]
    whole = of_regions.agg(["size", fmean]).reset_index().rename(columns={"fmean": "value"})
    whole = whole[whole["size"] == rows.loc[rows["region"].isin(REGIONS), "region"].nunique()].assign(
        region=MEAN
    )
    in_order = means.loc[means["region"] == REGIONS[0], key].merge(whole, on=key)
    return pd.concat([means, in_order[means.columns]], ignore_index=True)


def _variant_tree(variant: Variant, rows: pd.DataFrame, by_case: pd.DataFrame) -> dict[str, Any]:
    runs = rows.drop_duplicates("run", keep="last")
    regions = dict.fromkeys([*COMPARED, *rows["region"]])
    values = {key: group for key, group in by_case.groupby(["region", "score"], sort=False)}
    none = by_case.iloc[:0]

    def described(region: str, score: str) -> dict[str, Any]:
        group = values.get((region, score), none)
        return describe(group["value"].tolist(), group["patient"].tolist())

    return {
        "data": variant.data,
        "label": variant.label,
        "strategy": variant.strategy,
        "correct_priors": variant.correct_priors,
        "n_runs": len(runs),
        "folds": sorted(set(runs["fold"].tolist())),
        "seeds": sorted(set(runs["seed"].tolist())),
        "patches": int(rows["patches"].max()),
        "seconds_a_run": fmean(runs["seconds"]),
        "regions": {
            region: {score: described(region, score) for score in SCORES}
            | _counts(rows[rows["region"] == region])
            for region in regions
        },
        "ledger": {
            name: _mix(rows[rows["region"] == name]) for name in regions if name not in (*REGIONS, MEAN)
        },
    }


def _counts(rows: pd.DataFrame) -> dict[str, Any]:
    """How many cases have the region, and how many lack it; how many segmentations of the latter contain the
    region, and its median size.
    """
    absent = rows[rows["n_reference_vox"] == 0]
    sizes = absent.loc[absent["n_prediction_vox"] > 0, "n_prediction_vox"].tolist()
    n_absent = absent["case"].nunique()
    return {
        "n_present": rows["case"].nunique() - n_absent,
        "n_absent": n_absent,
        "false_positives": {
            "n": len(sizes),
            "of": len(absent),
            "median_vox": median(sizes) if sizes else None,
        },
    }


def _mix(rows: pd.DataFrame) -> dict[str, float | None]:
    runs = rows.drop_duplicates("run", keep="last")
    shares = {name: runs[name].dropna().tolist() for name in SHARES}
    return {name: fmean(values) if values else None for name, values in shares.items()}


def _difference_tree(
    one: Variant, other: Variant, variants: Mapping[Variant, pd.DataFrame], by_case: ByCase
) -> dict[str, Any]:
    """Other minus one, over the runs that both have."""
    both = _shared_runs(variants, one, other)
    sides = [by_case(variant, both).assign(side=variant.label) for variant in (one, other)]
    pairs = compare_sides(pd.concat(sides), first=one.label, second=other.label, by=("region", "score"))
    return {
        "data": one.data,
        "from": one.label,
        "to": other.label,
        "n_runs": len(both),
        "regions": {
            region: {score: pairs.get((region, score), NO_PAIRS) for score in SCORES} for region in COMPARED
        },
    }


def _shared_runs(variants: Mapping[Variant, pd.DataFrame], *of: Variant) -> frozenset[tuple[int, int]]:
    return frozenset.intersection(*(frozenset(variants[variant]["run"]) for variant in of))


def _change_trees(
    differences: Sequence[Mapping[str, Any]],
    variants: Mapping[Variant, pd.DataFrame],
    by_case: ByCase,
    *,
    same_brains: Sequence[str],
) -> list[dict[str, Any]]:
    """How each difference of Dice changes from the first data set to the others, case by case."""
    named = {(variant.data, variant.label): variant for variant in variants}
    changes = {
        (d["from"], d["to"], d["data"]): _dice_differences(
            named[d["data"], d["from"]], named[d["data"], d["to"]], variants, by_case
        )
        for d in differences
        if d["data"] in same_brains
    }
    trees = []
    for (one, other, data), change in changes.items():
        base = changes.get((one, other, same_brains[0]))
        if data == same_brains[0] or base is None:
            continue
        sides = pd.concat([base.assign(side="base"), change.assign(side="change")])
        pairs = compare_sides(sides, first="base", second="change", by=("region",))
        regions = {region: {"dice": pairs.get((region,), NO_PAIRS)} for region in (*REGIONS, MEAN)}
        trees.append({"than": same_brains[0], "data": data, "from": one, "to": other, "regions": regions})
    return trees


def _dice_differences(
    one: Variant, other: Variant, variants: Mapping[Variant, pd.DataFrame], by_case: ByCase
) -> pd.DataFrame:
    """Dice of the other minus that of the one: the columns `region`, `unit`, `patient` and `value`."""
    runs = _shared_runs(variants, one, other)
    first, second = (by_case(v, runs).query("score == 'dice'") for v in (one, other))
    both = second.merge(first, on=["region", "unit"], suffixes=("", "_first"))
    return both.assign(value=both["value"] - both["value_first"])[["region", "unit", "patient", "value"]]


def differences_to(summary: Mapping[str, Any], *, against: str | None = None) -> list[dict[str, Any]]:
    """The differences to the variant of that label, or to the first one of each data set."""
    first: dict[str, str] = {}
    for variant in summary["variants"]:
        first.setdefault(variant["data"], variant["label"])
    return [d for d in summary["differences"] if d["from"] == (against or first[d["data"]])]


CLOCK = 0.05
"""A look may take longer than the time limit by up to this share. The times of two equal runs differ by a few
percent; without this tolerance only the fastest run would be scored at its end.
"""


def summarize_equal_time(looks: Sequence[Row], *, against: str | None = None) -> dict[str, Any] | None:
    """Means and paired differences of the last look of each run within the time of its fold and seed.

    The time of a fold and seed is that of the shortest run among the strategies. A run whose first look is
    later than that has no score.

    Args:
        looks: rows of looks.csv of one experiment, in the order of its variants.
        against: label of the variant that is subtracted; None for the first of each pair.

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
    table = pd.DataFrame(list(looks))
    fold_and_seed = ["data", "fold", "seed"]
    run, seconds = [*fold_and_seed, "strategy"], table["training_s"]
    table["end"] = table.groupby(run)["training_s"].transform("max")
    shortest = table.groupby(fold_and_seed)["end"].transform("min")
    table["within"] = seconds.where(seconds <= shortest * (1 + CLOCK))
    is_last = seconds == table.groupby(run)["within"].transform("max")
    return [row for row, kept in zip(looks, is_last, strict=True) if kept]


def _run(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The run of a row: first the fields that the runs of all strategies share, then the strategy."""
    return row["data"], row["fold"], row["seed"], row["strategy"]
