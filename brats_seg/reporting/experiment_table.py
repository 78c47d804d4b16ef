"""summary.json -> table.md: Dice, the scores behind it, HD95, paired differences and the ledger."""

from collections.abc import Mapping, Sequence
from typing import Any

from brats_seg.core.comparison import few_note
from brats_seg.core.tables import interval_text, markdown_table
from brats_seg.evaluation.comparison import MEAN, differences_to, trained_once
from brats_seg.scans.labels import REGIONS

BEHIND = ("volume_ratio", "sensitivity", "precision")
"""The scores that explain a Dice."""
PICKED_ON = (
    "Picked on: which scores chose the epoch of a run, or its tuned strength of prior correction. `test`: "
    "those of the cases that are scored here, so that the scores are too high. `validation`: those of the "
    "inner cases, which are not scored here. Empty: no score chose anything."
)


def table_markdown(summary: Mapping[str, Any], *, title: str, against: str | None = None) -> str:
    """table.md: Dice, the scores behind it, HD95, paired differences and the ledger."""
    names = [*REGIONS, MEAN]
    with_data = len({v["data"] for v in summary["variants"]}) > 1
    lines = [f"# {title}", "", *_unfinished(summary),
             f"{summary['n_cases']} cases of {summary['n_patients']} patients, {summary['scored']}. Mean +- "
             "sd over cases (n), each case "
             "the mean over its seeds, over the cases whose reference has the region. False positives are "
             "segmentations of cases without "
             "active tumor that have some, with its median size.", "", "## Dice", ""]  # fmt: skip
    picked = ["picked on"] if any(v.get("picked_on") for v in summary["variants"]) else []
    dice = [
        [
            _name(v, with_data),
            *(_mean_sd(v["regions"][r]["dice"]) for r in [*names, "healthy"]),
            _false(v),
            str(v["n_runs"]),
            *(v["picked_on"] for _ in picked),
        ]
        for v in summary["variants"]
    ]
    lines += [
        *markdown_table(["strategy", *names, "healthy", "active, false positives", "runs", *picked], dice),
        "",
        *([PICKED_ON, ""] if picked else []),
        "## Predicted over true volume, sensitivity, precision",
        "",
        "Over the same cases, volumes with their 95 % interval; an empty prediction has no precision, and n "
        "says where one is left out.",
        "",
    ]
    behind = [
        [
            _name(v, with_data),
            *(
                " / ".join(
                    _mean(v["regions"][r][s], of=v["regions"][r]["n_present"], interval=s == BEHIND[0])
                    for s in BEHIND
                )
                for r in REGIONS
            ),
        ]
        for v in summary["variants"]
    ]
    lines += [
        *markdown_table(["strategy", *REGIONS], behind),
        "",
        "## HD95, mm",
        "",
        "Over the same cases: the larger directed 95th percentile of the surface distances, without "
        "clean-up, so that islands far from the "
        "tumor, which Dice hardly sees, show. An empty prediction has none.",
        "",
        *markdown_table(
            ["strategy", *REGIONS],
            [
                [_name(v, with_data), *(_mean_sd(v["regions"][r]["hd95_mm"], digits=1) for r in REGIONS)]
                for v in summary["variants"]
            ],
        ),
    ]
    chosen = differences_to(summary, against=against)
    for score, words, digits in (
        ("dice", "Dice", 3),
        ("volume_ratio", "predicted over true volume", 3),
        ("hd95_mm", "HD95, mm", 1),
    ):
        rule = (
            "Mean over cases, 95 % interval (bootstrap over patients), p (Wilcoxon signed-rank over "
            f"patients), n cases. {experiment_note(chosen)}"
        )
        lines += ["", f"## Paired differences of {words}", "", rule.rstrip(), ""]
        of = names if score == "dice" else REGIONS
        paired = [
            [
                (f"{d['data']}: " if with_data else "") + f"{d['to']} - {d['from']}",
                *(_difference(d["regions"][r][score], digits=digits) for r in of),
            ]
            for d in chosen
        ]
        lines += markdown_table(["difference", *of], paired)
    if summary["changes"]:
        than = summary["changes"][0]["than"]
        words = (
            f"The difference of Dice on a cohort minus that on {than}, over the same brains; interval, p and "
            "n as above."
        )
        lines += ["", "## How the differences change from cohort to cohort", "", words, ""]
        changed = [
            [f"{c['data']}: {c['to']} - {c['from']}", *(_difference(c["regions"][r]["dice"]) for r in names)]
            for c in summary["changes"]
        ]
        lines += markdown_table(["change of the difference", *names], changed)
    lines += _equal_time(summary.get("equal_time"), against=against, with_data=with_data)
    lines += ["", "## Ledger", "",
              "Share of the draws / of the patch voxels inside the brain / of a class's draws in an epoch "
              "that are different voxels "
              "(where it is low, a few are replayed), by class.", ""]  # fmt: skip
    classes = list(summary["variants"][0]["ledger"]) if summary["variants"] else []
    mix = [
        [
            f"{v['data']}: {v['strategy']}" if with_data else v["strategy"],
            *(_shares(v["ledger"].get(c)) for c in classes),
        ]
        for v in trained_once(summary["variants"])
    ]
    return "\n".join(
        [*lines, *markdown_table(["strategy", *(c.replace("_", " ") for c in classes)], mix), ""]
    )


def equal_time_words(equal_time: Mapping[str, Any]) -> str:
    """The meaning of the scores after equal training time."""
    words = (
        "Each run counts with its last look within the time of the shortest run of the same fold and seed "
        f"(a look that took up to {100 * equal_time['clock']:.0f} % longer is within the time). The time is "
        "that of training and mining, without validation and checkpoints. The learning rate falls over the "
        "whole run: a look before the end has the weights of a schedule that is not finished, and a run as "
        "short as that look would have ended with other weights."
    )
    if equal_time["n_too_late"]:
        words += f" {equal_time['n_too_late']} runs had no look within the time and are left out."
    return words


def _equal_time(equal_time: Mapping[str, Any] | None, *, against: str | None, with_data: bool) -> list[str]:
    """Dice and its paired differences after equal training time, if there are looks."""
    if equal_time is None:
        return []
    names = [*REGIONS, MEAN]
    dice = [
        [
            _name(v, with_data),
            *(_mean_sd(v["regions"][r]["dice"]) for r in names),
            f"{v['patches']:,.0f} ({100 * v['share']:.0f} %)",
            f"{v['training_s']:,.0f}",
            str(v["n_runs"]),
        ]
        for v in equal_time["variants"]
    ]
    paired = [
        [
            (f"{d['data']}: " if with_data else "") + f"{d['to']} - {d['from']}",
            *(_difference(d["regions"][r]["dice"]) for r in names),
        ]
        for d in differences_to(equal_time, against=against)
    ]
    return [
        "",
        "## Dice after equal training time",
        "",
        equal_time_words(equal_time) + " Patches (share of the whole run) and seconds are means over runs.",
        "",
        *markdown_table(["strategy", *names, "patches", "seconds", "runs"], dice),
        "",
        *markdown_table(["difference", *names], paired),
    ]


def _unfinished(summary: Mapping[str, Any]) -> list[str]:
    """A note at the start of an incomplete table."""
    lines = []
    if summary["n_runs"] < summary["n_runs_asked"]:
        lines += [
            f"**{summary['n_runs']} of {summary['n_runs_asked']} runs are finished; everything here is over "
            "these.**",
            "",
        ]
    if summary["failed"]:
        lines += [*(f"- failed: {key}: {reason}" for key, reason in summary["failed"]), ""]
    if len(summary["versions"]) > 1:
        lines += [f"The runs are of different versions: {'; '.join(summary['versions'])}.", ""]
    return lines


def experiment_note(differences: Sequence[Mapping[str, Any]]) -> str:
    """`few_note` of the differences of Dice."""
    pairs = [d["regions"][region]["dice"] for d in differences for region in REGIONS]
    return few_note(
        intervals=[f["n_patients"] for f in pairs if f["interval95"]],
        tests=[f["n_patients"] for f in pairs if f["n"]],
    )


def _name(variant: Mapping[str, Any], with_data: bool) -> str:
    return f"{variant['data']}: {variant['label']}" if with_data else str(variant["label"])


def _mean_sd(average: Mapping[str, Any], *, digits: int = 3) -> str:
    if average["mean"] is None:
        return "-"
    spread = "" if average["sd"] is None else f" +- {average['sd']:.{digits}f}"
    return f"{average['mean']:.{digits}f}{spread} ({average['n']})"


def _mean(average: Mapping[str, Any], *, of: int, interval: bool) -> str:
    if average["mean"] is None:
        return "-"
    bounds = interval_text(average, digits=2) if interval else ""
    return f"{average['mean']:.2f}{bounds}" + (f" ({average['n']})" if average["n"] < of else "")


def _false(variant: Mapping[str, Any]) -> str:
    counts = variant["regions"]["active"]["false_positives"]
    if not counts["of"]:
        return "-"
    return f"{counts['n']} of {counts['of']}" + (f" ({counts['median_vox']:g} vox)" if counts["n"] else "")


def _difference(pairs: Mapping[str, Any], *, digits: int = 3) -> str:
    if pairs["mean"] is None:
        return "-"
    interval = interval_text(pairs, digits=digits, sign="+")
    return f"{pairs['mean']:+.{digits}f}{interval}, p {pairs['p']:.2g} ({pairs['n']})"


def _shares(mix: Mapping[str, float | None] | None) -> str:
    if mix is None or mix["center_share"] is None:
        return "-"
    shares = [mix[name] for name in ("center_share", "voxel_share", "distinct_share")]
    return " / ".join("-" if share is None else f"{100 * share:.1f} %" for share in shares)
