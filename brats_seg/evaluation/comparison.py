"""Rows of an experiment -> summary.json: means over cases, paired differences, the mix that each strategy
drew.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean, median
from typing import Any

from brats_seg.core.statistics import describe, paired_difference
from brats_seg.evaluation.run_rows import SHARES, Row, Variant, variant_of
from brats_seg.scans.labels import REGIONS

SCORES = ("dice", "sensitivity", "precision", "volume_ratio", "hd95_mm")
MEAN = "mean"
"""Stands for the mean of the three regions."""
FEWEST = 6
"""Of fewer patients Wilcoxon's p cannot fall below 0.05, and a 95 % bootstrap interval holds the mean in 50
to 84 % of samples only.
"""


def summarize_runs(
    rows: Sequence[Row],
    *,
    against: str | None = None,
    same_brains: Sequence[str] = (),
    n_asked: int | None = None,
    failed: Sequence[tuple[str, str]] = (),
) -> dict[str, Any]:
    """The tree of summary.json.

    The unit is the case: a case's score is the mean over the seeds that segmented it. Cases without a region
    in the reference are left out of its means (n says so); in how many segmentations of them it is found all
    the same, and how large, is counted apart. A difference is over the runs (fold and seed) that both
    variants have: a run that failed leaves out its partner too.

    Args:
        rows: of one experiment, in the order of its variants.
        against: label of the variant that differences are taken from, whatever its place; None for the first
            of each pair.
        same_brains: names of data whose cases of one name are one brain with another tumor; their differences
            are compared.
        n_asked: runs that the experiment is to have; None for those that there are rows of.
        failed: key and reason of runs that there are no rows of.
    """
    by_variant: dict[Variant, list[Row]] = defaultdict(list)
    for row in rows:
        by_variant[variant_of(row)].append(row)
    patients: dict[str, dict[str, str]] = defaultdict(
        dict
    )  # by the name of the data, which may have cases of the same names
    for row in rows:
        patients[row["data"]][row["case"]] = row["patient"]
    tables = {variant: _by_case(found) for variant, found in by_variant.items()}
    pairs = [(one, other) for one, other in combinations(by_variant, 2) if one.data == other.data]
    n_runs = len({(row["data"], row["strategy"], row["fold"], row["seed"]) for row in rows})
    summary = {
        "scored": _scored(rows),
        "n_runs": n_runs,
        "n_runs_asked": n_runs if n_asked is None else n_asked,
        "failed": [list(pair) for pair in failed],
        "versions": sorted({row["versions"] for row in rows}),
        "unit": "case, mean over seeds; cases whose reference has the region",
        "interval": "95 % of bootstrap means, patients resampled with all their cases",
        "test": "Wilcoxon signed-rank over patients, each the mean over its cases, two-sided",
        "n_cases": sum(len(patient_of) for patient_of in patients.values()),
        "n_patients": sum(len(set(patient_of.values())) for patient_of in patients.values()),
        "variants": [_variant_tree(v, found, tables[v], patients[v.data]) for v, found in by_variant.items()],
        "differences": [
            _difference_tree(*pair, by_variant, patients[pair[0].data], against=against) for pair in pairs
        ],
    }
    return summary | {
        "changes": _change_trees(summary, by_variant, patients, against=against, same_brains=same_brains)
    }


def _scored(rows: Sequence[Row]) -> str:
    """Which cases the scores are of."""
    kinds = {"held_out": "of the held-out folds", "inner": "of the inner splits, no held-out fold opened"}
    return " and ".join(kinds[kind] for kind in sorted({row["cases"] for row in rows}))


def trained_once(variants: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first variant of each strategy: variants of one are of the same networks, so they have one
    ledger.
    """
    first: dict[tuple[str, str], Mapping[str, Any]] = {}
    for variant in variants:
        first.setdefault((variant["data"], variant["strategy"]), variant)
    return list(first.values())


def _by_case(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, float]]]:
    """Score -> region -> case -> mean over seeds, with the mean of the three regions beside them."""
    values: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for row in rows:
        for score in SCORES:
            if row["n_reference_vox"] and row[score] is not None:
                values[score, row["region"], row["case"]].append(row[score])
    table: dict[str, dict[str, dict[str, float]]] = {score: defaultdict(dict) for score in SCORES}
    for (score, region, case), numbers in values.items():
        table[score][region][case] = fmean(numbers)
    for score in SCORES:
        whole, *others = (table[score].get(region, {}) for region in REGIONS)
        # over cases that have all three, so that every strategy's mean is over the same parts
        table[score][MEAN] = {
            case: fmean([v, *(o[case] for o in others)])
            for case, v in whole.items()
            if all(case in o for o in others)
        }
    return table


def _variant_tree(
    variant: Variant, rows: Sequence[Row], table: Mapping[str, Any], patient_of: Mapping[str, str]
) -> dict[str, Any]:
    runs = {(row["fold"], row["seed"]): row for row in rows}
    regions = dict.fromkeys([*REGIONS, MEAN, "healthy", *(row["region"] for row in rows)])
    return {
        "data": variant.data,
        "label": variant.label,
        "strategy": variant.strategy,
        "correct_priors": variant.correct_priors,
        "n_runs": len(runs),
        "folds": sorted({fold for fold, _ in runs}),
        "seeds": sorted({seed for _, seed in runs}),
        "patches": max(row["patches"] for row in rows),
        "seconds_a_run": fmean([row["seconds"] for row in runs.values()]),
        "regions": {
            region: {
                score: describe(
                    list(table[score].get(region, {}).values()),
                    [patient_of[c] for c in table[score].get(region, {})],
                )
                for score in SCORES
            }
            | _counts([row for row in rows if row["region"] == region])
            for region in regions
        },
        "ledger": {
            name: _mix([row for row in rows if row["region"] == name])
            for name in regions
            if name not in (*REGIONS, MEAN)
        },
    }


def _counts(rows: Sequence[Row]) -> dict[str, Any]:
    """How many cases have the region and lack it; in how many segmentations of the latter some is found, and
    its median size.
    """
    absent = [row for row in rows if not row["n_reference_vox"]]
    found = [row["n_prediction_vox"] for row in absent if row["n_prediction_vox"]]
    n_absent = len({row["case"] for row in absent})
    return {
        "n_present": len({row["case"] for row in rows}) - n_absent,
        "n_absent": n_absent,
        "false_positives": {
            "n": len(found),
            "of": len(absent),
            "median_vox": median(found) if found else None,
        },
    }


def _mix(rows: Sequence[Row]) -> dict[str, float | None]:
    """Mean over runs of the shares of a class."""
    runs = {(row["fold"], row["seed"]): row for row in rows}.values()
    return {
        name: fmean(known) if (known := [row[name] for row in runs if row.get(name) is not None]) else None
        for name in SHARES
    }


def _difference_tree(
    one: Variant,
    other: Variant,
    rows: Mapping[Variant, Sequence[Row]],
    patient_of: Mapping[str, str],
    *,
    against: str | None,
) -> dict[str, Any]:
    """Other minus one; the one to compare with comes first whatever the order."""
    if other.label == against:
        one, other = other, one
    both, (first, second) = _on_the_same_runs(rows, one, other)
    return {
        "data": one.data,
        "from": one.label,
        "to": other.label,
        "n_runs": len(both),
        "regions": {
            region: {
                score: paired_difference(
                    first[score].get(region, {}), second[score].get(region, {}), patient_of=patient_of
                )
                for score in SCORES
            }
            for region in (*REGIONS, MEAN, "healthy")
        },
    }


def _on_the_same_runs(
    rows: Mapping[Variant, Sequence[Row]], *variants: Variant
) -> tuple[set[tuple[int, int]], list[dict[str, Any]]]:
    """The runs (fold and seed) that all variants have, and the scores of each by case over these."""
    both = set.intersection(*(_runs(rows[variant]) for variant in variants))
    return both, [
        _by_case([row for row in rows[variant] if (row["fold"], row["seed"]) in both]) for variant in variants
    ]


def _change_trees(
    summary: Mapping[str, Any],
    rows: Mapping[Variant, Sequence[Row]],
    patients: Mapping[str, Mapping[str, str]],
    *,
    against: str | None,
    same_brains: Sequence[str],
) -> list[dict[str, Any]]:
    """How each difference of Dice changes from the first of the data to the others, case by case."""
    variants = {(variant.data, variant.label): variant for variant in rows}
    by_case: dict[tuple[str, str, str], dict[str, dict[str, float]]] = {}
    for d in differences_to(summary, against=against):
        data, one, other = key = (d["data"], d["from"], d["to"])
        if data in same_brains:
            by_case[key] = _differences_by_case(rows, variants[data, one], variants[data, other])
    trees = []
    for (data, one, other), here in by_case.items():
        there = by_case.get((same_brains[0], one, other))
        if data != same_brains[0] and there is not None:
            regions = {
                region: {"dice": paired_difference(there[region], here[region], patient_of=patients[data])}
                for region in (*REGIONS, MEAN)
            }
            trees.append({"than": same_brains[0], "data": data, "from": one, "to": other, "regions": regions})
    return trees


def _differences_by_case(
    rows: Mapping[Variant, Sequence[Row]], one: Variant, other: Variant
) -> dict[str, dict[str, float]]:
    """Dice of the other minus that of the one, by region and case."""
    _, (first, second) = _on_the_same_runs(rows, one, other)
    tables = {
        region: (first["dice"].get(region, {}), second["dice"].get(region, {})) for region in (*REGIONS, MEAN)
    }
    return {
        region: {case: b[case] - a[case] for case in a.keys() & b.keys()} for region, (a, b) in tables.items()
    }


def _runs(rows: Sequence[Row]) -> set[tuple[int, int]]:
    """Folds and seeds."""
    return {(row["fold"], row["seed"]) for row in rows}


def differences_to(summary: Mapping[str, Any], *, against: str | None = None) -> list[dict[str, Any]]:
    """The differences to the variant of that label, or to the first one of each data set."""
    first: dict[str, str] = {}
    for variant in summary["variants"]:
        first.setdefault(variant["data"], variant["label"])
    return [d for d in summary["differences"] if d["from"] == (against or first[d["data"]])]
