"""One HTML and Markdown report: scores, worst and best cases, volumes, confusion, calibration, what the
network was trained on.
"""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment

from brats_seg.core.dask_engine import Cluster
from brats_seg.core.errors import InputError, UsageError, count_words, printable
from brats_seg.core.files import write_text
from brats_seg.core.progress import track
from brats_seg.evaluation.conventions import CONVENTIONS
from brats_seg.evaluation.folders import EvaluationReport, ScoreOptions, evaluate_folders
from brats_seg.evaluation.overlap import JointHistogram
from brats_seg.evaluation.table import Convention, Score, few_patients
from brats_seg.reporting.cases import SeenCase, best_slice, case_pictures, see_case
from brats_seg.reporting.history import provenance, training_section
from brats_seg.reporting.pages import page_templates
from brats_seg.reporting.plots import data_uri, png
from brats_seg.reporting.report_figures import calibration, draw_figures, mean_volumes, volumes_of
from brats_seg.scans.case import Problem
from brats_seg.scans.labels import REGIONS
from brats_seg.scans.layouts import find_cases
from brats_seg.scans.predictions import label_map_of, read_rows

NAMES = {"whole": "Whole tumor", "core": "Tumor core", "active": "Active tumor"}
MEANINGS = {
    "whole": "all tumor tissue",
    "core": "the tumor without edema",
    "active": "enhancing tumor alone",
}
CAVITY_WORDS = ", with the resection cavity"
HD95_WORDS = {
    "directed": "the larger of the two directed 95th percentiles of surface distance",
    "pooled": "the 95th percentile of both directions' surface distances together",
    "surface_weighted": "the 95th percentile of surface distance, each surface element counted by its area",
}
N_EACH_END = 3
"""Number of worst cases, and of best cases, that are shown."""
_Schemas = tuple[str | None, str | None]
"""The label schema of cases whose layout does not say the schema, and that of predictions without a table."""


@dataclass(frozen=True)
class WrittenReport:
    """A page, whether everything in it could be scored (1 where an error is listed, as `evaluate` exits), and
    the problems that it lists.
    """

    page: Path
    exit_code: int
    problems: tuple[Problem, ...] = ()


def write_report(
    out: str | Path,
    reference: str | Path,
    *,
    output: str | Path,
    run: str | Path | None = None,
    options: ScoreOptions = ScoreOptions(),
    cluster: Cluster | None = None,
) -> WrittenReport:
    """Score a folder of predictions and write one self-contained page, and a Markdown copy in the same
    folder. The same input gives the same bytes.

    Args:
        out: predictions, `<case>.nii.gz`, with `predictions.csv` where there is one.
        reference: cases with labels in any layout; with their scans, overlays are drawn.
        output: the page to write, `.html`; the twin has the same name and ends in `.md`.
        run: the run folder whose training curves and ledger are shown; None leaves them out.
        options: which cases, and by which rules; the first convention fills the table of cases.
        cluster: whose workers score the cases, instead of threads of this process.

    Returns:
        `output`, and the exit code: 1 if a case could not be scored.

    Raises:
        InputError: a folder that does not exist, or no case that could be scored.
        UsageError: a cavity as `evaluate_folders` refuses it, or an output that does
            not end in `.html`.
    """
    out, reference, output, run = (
        Path(out),
        Path(reference),
        Path(output),
        Path(run) if run is not None else None,
    )
    if output.suffix != ".html":
        raise UsageError(f"--output {output}: the report is a page; give a name that ends in .html")
    evaluation = evaluate_folders(out, reference, options=options, cluster=cluster)
    if not evaluation.scores:
        first = f"; the first problem: {evaluation.problems[0]}" if evaluation.problems else ""
        raise InputError(f"{out}: no case could be scored against {reference}{first}")
    content = _content(
        evaluation, out, reference, run=run, schemas=(options.schema, options.prediction_schema)
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    pages = _environment()
    for path, template in ((output.with_suffix(".md"), "report.md"), (output, "report.html")):
        write_text(path, pages.get_template(template).render(content))
    return WrittenReport(output, evaluation.exit_code, evaluation.problems)


def _content(
    evaluation: EvaluationReport, out: Path, reference: Path, *, run: Path | None, schemas: _Schemas
) -> dict[str, Any]:
    first = evaluation.scores[0].convention
    scores = [s for s in evaluation.scores if s.convention == first]
    classes = tuple(dict.fromkeys(s.region for s in scores if s.region not in REGIONS))
    ids = tuple(dict.fromkeys(s.case for s in scores))
    shown = _shown(_ranked(scores, ids))
    cards, confusion, n_without_scans, unread = _look_at(
        out, reference, ids=ids, shown=shown, scores=scores, classes=classes, schemas=schemas
    )
    n_patients = evaluation.summary["n_patients"]
    return {
        "title": "Segmentation report",
        "lead": f"{count_words(len(ids), 'case')} of {count_words(n_patients, 'patient')}",
        "provenance": provenance(run),
        "folders": {"predictions": out.resolve().name, "reference": reference.resolve().name},
        "regions": [r for r in REGIONS if any(s.region == r for s in scores)],
        "names": NAMES,
        "meanings": {
            r: words + CAVITY_WORDS * (r in evaluation.summary["cavity_in"]) for r, words in MEANINGS.items()
        },
        "classes": classes,
        "tumor_classes": classes[1:],
        "summaries": [_summary_table(name, tree) for name, tree in evaluation.summary["conventions"].items()],
        "few_patients": few_patients(evaluation.summary),
        "marks": "– marks what the convention leaves out, † a region that the reference has none of.",
        "case_rows": [{"case": i, "scores": _regions_of(scores, i)} for i in ids],
        "looking_title": "Worst and best cases" if len(ids) > 2 * N_EACH_END else "The cases, worst first",
        "cards": cards,
        "volume_rows": [{"case": i, "volumes": volumes_of(scores, i, classes)} for i in ids],
        "volume_means": mean_volumes(scores, ids, classes),
        "figures": draw_figures(scores, confusion, classes),
        "confusion_rows": list(zip(classes, confusion.tolist(), strict=True)),
        "confusion_note": _air_words(n_without_scans),
        "calibration": calibration(evaluation.summary.get("calibration")),
        "training": training_section(run) if run is not None else None,
        "problems": [{"severity": p.severity, "words": str(p)} for p in evaluation.problems]
        + unread
        + _warnings(out, ids),
        "version": version("brats-seg"),
    }


def _air_words(n_without_scans: int) -> str:
    if n_without_scans == 0:
        return " Air around the head is left out."
    return (
        f" Healthy includes the air around the head in {count_words(n_without_scans, 'case')} without scans "
        "beside the reference."
    )


def _summary_table(name: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    """One convention: its rules in words, and a row a region."""
    rule = CONVENTIONS[name]
    groups, extras = [("Dice", "dice", 3), ("HD95, mm", "hd95_mm", 1)], ["sensitivity", "precision"]
    if rule.lesion_wise:
        groups, extras = (
            [("Lesion-wise Dice", "lesion_dice", 3), ("Lesion-wise HD95, mm", "lesion_hd95_mm", 1)],
            ["dice"],
        )
    rows = []
    for region in (r for r in REGIONS if r in tree["regions"]):
        figures_of_region = tree["regions"][region]
        rows.append({
            "region": region,
            "dice": _average(figures_of_region.get("dice")),
            "groups": [(_average(figures_of_region.get(metric)), digits) for _, metric, digits in groups],
            "present": _average(figures_of_region["dice_where_present"]),
            "extras": [_average(figures_of_region.get(metric)) for metric in extras],
            "n_absent": figures_of_region["n_cases"] - figures_of_region["n_present"],
            "n_present": figures_of_region["n_present"],
            "n_false_positive": figures_of_region["n_false_positive_cases"],
            "n_missed": figures_of_region["n_missed_cases"],
        })  # fmt: skip
    return {
        "name": name,
        "words": convention_words(rule),
        "groups": [g[0] for g in groups],
        "extras": extras,
        "rows": rows,
    }


def convention_words(rule: Convention) -> str:
    """The rules of a convention for empty regions, and its HD95, in plain sentences."""

    def counted(dice: float, hd95_mm: float) -> str:
        if math.isnan(dice):
            return "is left out"
        distance = "its HD95 is left out" if math.isnan(hd95_mm) else f"HD95 {hd95_mm:.5g} mm"
        return f"counts as Dice {dice:g}, {distance}"

    sentences = [
        f"{rule.source}.",
        "A region that is empty in reference and prediction "
        f"{counted(rule.both_empty, rule.both_empty_hd95_mm)}; "
        f"one that is empty in only one of them {counted(rule.one_empty, rule.one_empty_hd95_mm)}.",
        f"HD95 is {HD95_WORDS[rule.hd95]}.",
    ]
    if rule.lesions is not None:
        sentences.append(
            "Lesion-wise numbers are means over lesions that were found."
            if rule.lesions.missed_lesions == "left_out"
            else "Lesion-wise numbers are means over lesions, each missed or false one counted as an empty "
            "region."
        )
    return " ".join(sentences)


def _average(figure: Mapping[str, Any] | None) -> dict[str, Any]:
    low, high = (figure or {}).get("interval95") or (None, None)
    mean_and_sd = {key: (figure or {}).get(key) for key in ("mean", "sd")}
    return {**mean_and_sd, "n": (figure or {}).get("n", 0), "low": low, "high": high}


def _regions_of(scores: Sequence[Score], case: str) -> list[Score]:
    return [s for region in REGIONS for s in scores if s.case == case and s.region == region]


def _ranked(scores: Sequence[Score], ids: Sequence[str]) -> list[tuple[str, float]]:
    """Cases and their mean Dice over the regions that count, worst first."""
    means = []
    for case in ids:
        counted = [s.dice for s in _regions_of(scores, case) if not math.isnan(s.dice)]
        means.append((case, sum(counted) / len(counted) if counted else math.nan))
    return sorted((m for m in means if not math.isnan(m[1])), key=lambda m: (m[1], m[0]))


def _shown(ranked: Sequence[tuple[str, float]]) -> dict[str, str]:
    """Which cases are shown, in which order, and what is said of their place."""
    n = len(ranked)
    picked = range(n) if n <= 2 * N_EACH_END else (*range(N_EACH_END), *range(n - N_EACH_END, n))
    return {
        case: f"{_place_words(i, n)}, mean Dice {dice:.3f}" for i in picked for case, dice in (ranked[i],)
    }


def _place_words(i: int, n: int) -> str:
    from_best = n - i
    if n == 1:
        return "The only case"
    if i < n / 2:
        return "Worst case" if i == 0 else f"{_ordinal(i + 1)} worst of {n}"
    return "Best case" if from_best == 1 else f"{_ordinal(from_best)} best of {n}"


def _look_at(
    out: Path,
    reference: Path,
    *,
    ids: Sequence[str],
    shown: Mapping[str, str],
    scores: Sequence[Score],
    classes: tuple[str, ...],
    schemas: _Schemas,
) -> tuple[list[dict[str, Any]], JointHistogram, int, list[dict[str, str]]]:
    """Read every scored case once.

    Returns:
        Cards of the cases to show, in their order; the confusion of all cases; how many have no scans; what
        could not be used.
    """
    cases = {c.id: c for c in find_cases(reference, required=(), schema=schemas[0]).cases}
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    cards, n_without_scans, problems = {}, 0, []
    for case in track(ids, total=len(ids), label="report"):
        prediction = label_map_of(out, case)
        assert prediction is not None  # it was scored
        seen = see_case(cases[case], prediction, classes, prediction_schema=schemas[1])
        confusion += seen.confusion()
        n_without_scans += not seen.scans
        problems += [{"severity": "warning", "words": line} for line in seen.problems]
        if case in shown:
            regions, volumes = _regions_of(scores, case), volumes_of(scores, case, classes)
            cards[case] = _card(seen, place=shown[case], scores=regions, volumes=volumes)
    return [cards[case] for case in shown], confusion, n_without_scans, problems


def _card(
    seen: SeenCase, *, place: str, scores: Sequence[Score], volumes: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    z = best_slice(seen)
    rows = case_pictures(seen, z=z)
    return {
        "case": seen.case.id,
        "place": place,
        "slice_number": z + 1,
        "n_slices": seen.reference.shape[0],
        "scores": scores,
        "volumes": volumes,
        "pictures": [
            {"name": r.name, "images": [(name, data_uri(png(p))) for name, p in r.columns]} for r in rows
        ],
    }


def _warnings(out: Path, ids: Sequence[str]) -> list[dict[str, str]]:
    """The warnings of `predict` in the column `warnings` of predictions.csv."""
    try:
        rows = [r for r in read_rows(out) if r.get("case") in ids and r.get("warnings")]
    except InputError:  # the table of another program
        return []
    return [{"severity": "warning", "words": f"{r['case']}: {r['warnings']}"} for r in rows]


@cache
def _environment() -> Environment:
    return page_templates(
        {
            "share": lambda x: "0" if x is None or math.isnan(x) else f"{x:.3f}",
            "letter": lambda i: "abcdefgh"[i - 1],
            "plain": _plain,
        }
    )


def _plain(text: object) -> str:
    """A name or a message as Markdown shows it: no HTML, no cell border, no line break in it."""
    return html.escape(printable(str(text), limit=1000), quote=False).replace("|", "\\|").replace("`", "'")


def _ordinal(n: int) -> str:
    return f"{n}{'th' if 10 <= n % 100 <= 20 else {1: 'st', 2: 'nd', 3: 'rd'}.get(n % 10, 'th')}"
