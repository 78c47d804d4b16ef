"""Rows of an experiment -> runs.csv, summary.json, table.md: means over cases, paired differences, the mix that each strategy drew."""

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from brats_seg.core.files import write_text
from brats_seg.core.statistics import describe, paired_difference
from brats_seg.errors import InputError
from brats_seg.scans.labels import REGIONS

Row = dict[str, Any]

COLUMNS: dict[str, type] = {
    "data": str,
    "strategy": str,
    "correct_priors": str,
    "fold": int,
    "seed": int,
    "cases": str,
    "case": str,
    "patient": str,
    "region": str,
    "n_reference_vox": int,
    "n_prediction_vox": int,
    "dice": float,
    "sensitivity": float,
    "precision": float,
    "volume_ratio": float,
    "hd95_mm": float,
    "requested_share": float,
    "center_share": float,
    "voxel_share": float,
    "hard_share": float,
    "patches": int,
    "seconds": float,
    "config": str,
    "bank": str,
    "versions": str,
    "cell": str,
}
"""Columns of runs.csv. A row is a region or tissue class of a case, segmented by one run; shares stand in the rows of tissue classes."""
SCORES = ("dice", "sensitivity", "precision", "volume_ratio")
BEHIND = ("volume_ratio", "sensitivity", "precision")
"""What a Dice comes from."""
MEAN = "mean"
"""Stands for the mean of the three regions."""
DIGEST = 16
"""So many characters of a digest stand in a row."""


@dataclass(frozen=True)
class Variant:
    """A strategy as it is compared: how it was trained, on what, and how strongly priors were corrected afterwards."""

    data: str
    strategy: str
    correct_priors: str

    @property
    def label(self) -> str:
        """What a table calls it."""
        return self.strategy if self.correct_priors == "0" else f"{self.strategy} + priors {self.correct_priors}"


def variant_of(row: Mapping[str, Any]) -> Variant:
    """Which variant a row belongs to."""
    return Variant(row["data"], row["strategy"], row["correct_priors"])


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write runs.csv; what is None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_finished(path: Path) -> dict[str, list[Row]]:
    """Rows of a runs.csv by the digest of their cell. Raises `InputError` where it is not such a table."""
    finished: dict[str, list[Row]] = defaultdict(list)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != tuple(COLUMNS):
                raise InputError(f"{path}: has other columns than a runs.csv of this version: {', '.join(COLUMNS)}")
            for row in reader:
                finished[row["cell"]].append({name: _read(row[name], kind) for name, kind in COLUMNS.items()})
    except (OSError, ValueError, TypeError) as error:  # TypeError: a line cut short
        raise InputError(f"{path}: not a runs.csv: {error}") from None
    return finished


def _read(text: str, kind: type) -> Any:
    return None if text == "" and kind is not str else kind(text)


def summarize_runs(rows: Sequence[Row], *, against: str | None = None, same_brains: Sequence[str] = ()) -> dict[str, Any]:
    """The tree of summary.json.

    The unit is the case: a case's score is the mean over the seeds that segmented it. Cases without a region in the reference are left out
    of its means (n says so); how many of them the prediction finds it in is counted apart. A difference is over the runs (fold and seed)
    that both variants have: a run that failed leaves out its partner too.

    Args:
        rows: of one experiment, in the order of its variants.
        against: label of the variant that differences are taken from, whatever its place; None for the first of each pair.
        same_brains: names of data whose cases of one name are one brain with another tumor; their differences are compared.
    """
    by_variant: dict[Variant, list[Row]] = defaultdict(list)
    for row in rows:
        by_variant[variant_of(row)].append(row)
    patients: dict[str, dict[str, str]] = defaultdict(dict)  # by the name of the data, which may have cases of the same names
    for row in rows:
        patients[row["data"]][row["case"]] = row["patient"]
    tables = {variant: _by_case(found) for variant, found in by_variant.items()}
    pairs = [(one, other) for one, other in combinations(by_variant, 2) if one.data == other.data]
    summary = {
        "scored": _scored(rows),
        "unit": "case, mean over seeds; cases whose reference has the region",
        "interval": "95 % of bootstrap means, patients resampled with all their cases",
        "test": "Wilcoxon signed-rank over cases, two-sided",
        "n_cases": sum(len(patient_of) for patient_of in patients.values()),
        "n_patients": sum(len(set(patient_of.values())) for patient_of in patients.values()),
        "variants": [_variant_tree(v, found, tables[v], patients[v.data]) for v, found in by_variant.items()],
        "differences": [_difference_tree(*pair, by_variant, patients[pair[0].data], against=against) for pair in pairs],
    }
    return summary | {"changes": _change_trees(summary, by_variant, patients, against=against, same_brains=same_brains)}


def _scored(rows: Sequence[Row]) -> str:
    """Which cases the scores are of."""
    kinds = {"held_out": "of the held-out folds", "inner": "of the inner splits, no held-out fold opened"}
    return " and ".join(kinds[kind] for kind in sorted({row["cases"] for row in rows}))


def trained_once(variants: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first variant of each strategy: variants of one are of the same networks, so they have one ledger."""
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
        table[score][MEAN] = {case: fmean([v, *(o[case] for o in others)]) for case, v in whole.items() if all(case in o for o in others)}
    return table


def _variant_tree(variant: Variant, rows: Sequence[Row], table: Mapping[str, Any], patient_of: Mapping[str, str]) -> dict[str, Any]:
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
                score: describe(list(table[score].get(region, {}).values()), [patient_of[c] for c in table[score].get(region, {})])
                for score in SCORES
            }
            | _counts([row for row in rows if row["region"] == region])
            for region in regions
        },
        "ledger": {name: _mix([row for row in rows if row["region"] == name]) for name in regions if name not in (*REGIONS, MEAN)},
    }


def _counts(rows: Sequence[Row]) -> dict[str, int]:
    """How many cases have the region, lack it, and are found to have it all the same (by any seed)."""
    absent = {row["case"] for row in rows if not row["n_reference_vox"]}
    return {
        "n_present": len({row["case"] for row in rows} - absent),
        "n_absent": len(absent),
        "n_false_positive_cases": len({row["case"] for row in rows if row["case"] in absent and row["n_prediction_vox"]}),
    }


def _mix(rows: Sequence[Row]) -> dict[str, float | None]:
    """Mean over runs of the shares of a class: asked for, of the draws, of the patch voxels, and of its draws those that were hard."""
    runs = {(row["fold"], row["seed"]): row for row in rows}.values()
    return {
        name: fmean(known) if (known := [row[name] for row in runs if row[name] is not None]) else None
        for name in ("requested_share", "center_share", "voxel_share", "hard_share")
    }


def _difference_tree(
    one: Variant, other: Variant, rows: Mapping[Variant, Sequence[Row]], patient_of: Mapping[str, str], *, against: str | None
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
                score: paired_difference(first[score].get(region, {}), second[score].get(region, {}), patient_of=patient_of)
                for score in SCORES
            }
            for region in (*REGIONS, MEAN, "healthy")
        },
    }


def _on_the_same_runs(rows: Mapping[Variant, Sequence[Row]], *variants: Variant) -> tuple[set[tuple[int, int]], list[dict[str, Any]]]:
    """The runs (fold and seed) that all variants have, and the scores of each by case over these."""
    both = set.intersection(*(_runs(rows[variant]) for variant in variants))
    return both, [_by_case([row for row in rows[variant] if (row["fold"], row["seed"]) in both]) for variant in variants]


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
                region: {"dice": paired_difference(there[region], here[region], patient_of=patients[data])} for region in (*REGIONS, MEAN)
            }
            trees.append({"than": same_brains[0], "data": data, "from": one, "to": other, "regions": regions})
    return trees


def _differences_by_case(rows: Mapping[Variant, Sequence[Row]], one: Variant, other: Variant) -> dict[str, dict[str, float]]:
    """Dice of the other minus that of the one, by region and case."""
    _, (first, second) = _on_the_same_runs(rows, one, other)
    tables = {region: (first["dice"].get(region, {}), second["dice"].get(region, {})) for region in (*REGIONS, MEAN)}
    return {region: {case: b[case] - a[case] for case in a.keys() & b.keys()} for region, (a, b) in tables.items()}


def _runs(rows: Sequence[Row]) -> set[tuple[int, int]]:
    """Folds and seeds."""
    return {(row["fold"], row["seed"]) for row in rows}


def differences_to(summary: Mapping[str, Any], *, against: str | None = None) -> list[dict[str, Any]]:
    """The differences to the variant of that label, or to the first one of each data set."""
    first: dict[str, str] = {}
    for variant in summary["variants"]:
        first.setdefault(variant["data"], variant["label"])
    return [d for d in summary["differences"] if d["from"] == (against or first[d["data"]])]


def table_markdown(summary: Mapping[str, Any], *, title: str, against: str | None = None) -> str:
    """table.md: Dice, the scores behind it, paired differences and the ledger."""
    names = [*REGIONS, MEAN]
    with_data = len({v["data"] for v in summary["variants"]}) > 1
    lines = [f"# {title}", "", f"{summary['n_cases']} cases of {summary['n_patients']} patients, {summary['scored']}. Mean +- sd over "
             "cases (n), each case the mean over its seeds, over the cases whose reference has the region.", "", "## Dice", ""]  # fmt: skip
    dice = [[_name(v, with_data), *(_mean_sd(v["regions"][r]["dice"]) for r in [*names, "healthy"]), _false(v), str(v["n_runs"])]
            for v in summary["variants"]]  # fmt: skip
    lines += [
        *_table(["strategy", *names, "healthy", "active, false-positive cases", "runs"], dice),
        "",
        "## Predicted over true volume, sensitivity, precision",
        "",
        "Over the same cases, volumes with their 95 % interval; an empty prediction has no precision, and n says where one is left out.",
        "",
    ]
    behind = [
        [
            _name(v, with_data),
            *(" / ".join(_mean(v["regions"][r][s], of=v["regions"][r]["n_present"], interval=s == BEHIND[0]) for s in BEHIND)
              for r in REGIONS),
        ]
        for v in summary["variants"]
    ]  # fmt: skip
    lines += _table(["strategy", *REGIONS], behind)
    chosen = differences_to(summary, against=against)
    for score, words in (("dice", "Dice"), ("volume_ratio", "predicted over true volume")):
        lines += ["", f"## Paired differences of {words}", "",
                  "Mean over cases, 95 % interval (bootstrap over patients), p (Wilcoxon signed-rank), n.", ""]  # fmt: skip
        of = names if score == "dice" else REGIONS
        paired = [[(f"{d['data']}: " if with_data else "") + f"{d['to']} - {d['from']}", *(_difference(d["regions"][r][score]) for r in of)]
                  for d in chosen]  # fmt: skip
        lines += _table(["difference", *of], paired)
    if summary["changes"]:
        than = summary["changes"][0]["than"]
        words = f"The difference of Dice on a cohort minus that on {than}, over the same brains; interval, p and n as above."
        lines += ["", "## How the differences change from cohort to cohort", "", words, ""]
        changed = [
            [f"{c['data']}: {c['to']} - {c['from']}", *(_difference(c["regions"][r]["dice"]) for r in names)] for c in summary["changes"]
        ]
        lines += _table(["change of the difference", *names], changed)
    lines += ["", "## Ledger", "",
              "Share of the draws / of the patch voxels inside the brain, by class.", ""]  # fmt: skip
    classes = list(summary["variants"][0]["ledger"]) if summary["variants"] else []
    mix = [
        [f"{v['data']}: {v['strategy']}" if with_data else v["strategy"], *(_shares(v["ledger"].get(c)) for c in classes)]
        for v in trained_once(summary["variants"])
    ]
    return "\n".join([*lines, *_table(["strategy", *(c.replace("_", " ") for c in classes)], mix), ""])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _name(variant: Mapping[str, Any], with_data: bool) -> str:
    return f"{variant['data']}: {variant['label']}" if with_data else str(variant["label"])


def _mean_sd(found: Mapping[str, Any]) -> str:
    if found["mean"] is None:
        return "-"
    spread = "" if found["sd"] is None else f" +- {found['sd']:.3f}"
    return f"{found['mean']:.3f}{spread} ({found['n']})"


def _mean(found: Mapping[str, Any], *, of: int, interval: bool) -> str:
    if found["mean"] is None:
        return "-"
    bounds = " [{:.2f}, {:.2f}]".format(*found["interval95"]) if interval and found["interval95"] else ""
    return f"{found['mean']:.2f}{bounds}" + (f" ({found['n']})" if found["n"] < of else "")


def _false(variant: Mapping[str, Any]) -> str:
    active = variant["regions"]["active"]
    return f"{active['n_false_positive_cases']} of {active['n_absent']}"


def _difference(found: Mapping[str, Any]) -> str:
    if found["mean"] is None:
        return "-"
    interval = "" if found["interval95"] is None else " [{:+.3f}, {:+.3f}]".format(*found["interval95"])
    return f"{found['mean']:+.3f}{interval}, p {found['p']:.2g} ({found['n']})"


def _shares(mix: Mapping[str, float | None] | None) -> str:
    if mix is None or mix["center_share"] is None or mix["voxel_share"] is None:
        return "-"
    return f"{100 * mix['center_share']:.1f} % / {100 * mix['voxel_share']:.1f} %"
