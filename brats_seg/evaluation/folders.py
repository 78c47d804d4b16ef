"""Two folders -> one table: predictions are paired with their references and scored; doubtful ones cause
warnings.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from brats_seg.core.cores import n_cores
from brats_seg.core.dask_engine import Cluster
from brats_seg.core.engine import map_in_order
from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.files import write_json
from brats_seg.core.shapes import TissueMap
from brats_seg.evaluation.calibration import (
    Reliability,
    calibration_tree,
    read_probabilities,
    score_probabilities,
)
from brats_seg.evaluation.conventions import convention_named
from brats_seg.evaluation.overlap import JointHistogram, joint_histogram, overlap_scores
from brats_seg.evaluation.scores import score_case
from brats_seg.evaluation.table import Convention, Score, compare, summarize, write_scores
from brats_seg.scans.case import Case, Problem, problem_of
from brats_seg.scans.check import untold_schema
from brats_seg.scans.geometry import Geometry, ScanError, same_grid
from brats_seg.scans.labels import (
    REGIONS,
    SCHEMAS,
    LabelSchema,
    common_classes,
    region_classes,
    regions_of,
    schema_option,
    to_tissue,
)
from brats_seg.scans.layouts import find_cases, problems_of
from brats_seg.scans.predictions import PROBABILITIES, TABLE, written_schema
from brats_seg.scans.volume import SUFFIXES, read_volume

SWAP_GAIN = 0.2
"""A warning appears if swapping two tumor classes would raise the mean Dice of a region by more than this:
the label values probably belong to another schema.
"""

NO_PREDICTION = "no prediction"
"""The problem of a reference without a prediction."""


@dataclass(frozen=True)
class EvaluationReport:
    """All scores, all problems, and the content of summary.json."""

    scores: tuple[Score, ...]
    problems: tuple[Problem, ...]
    summary: Mapping[str, Any] = field(repr=False)

    @property
    def exit_code(self) -> int:
        """1 if there was an error or nothing could be scored, else 0."""
        return int(not self.scores or any(p.severity == "error" for p in self.problems))


@dataclass(frozen=True)
class ScoreOptions:
    """Which cases are scored, and by which rules.

    Attributes:
        conventions: keys of `CONVENTIONS`.
        cavity_in: regions that the resection cavity belongs to.
        only: ids of the cases to score; None for all. An id with neither a prediction nor a labeled reference
            is a problem.
        schema: label schema of the cases whose layout does not determine it; without `schema`, such a case is
            a problem.
        prediction_schema: label schema of predictions that are not in a `predictions.csv` of their folder;
            None for the schema of their case.

    Raises:
        UsageError: an unknown convention, region or schema.
    """

    conventions: tuple[str, ...] = ("brats2020",)
    cavity_in: tuple[str, ...] = ()
    only: tuple[str, ...] | None = None
    schema: str | None = None
    prediction_schema: str | None = None

    def __post_init__(self) -> None:
        for name in self.conventions:
            convention_named(name)
        schema_option(self.prediction_schema, option="--prediction-schema")
        for region in self.cavity_in:
            if region not in REGIONS:
                raise UsageError(f"--cavity-in {region}: unknown; the regions are {', '.join(REGIONS)}")

    @property
    def rules(self) -> tuple[Convention, ...]:
        """The conventions."""
        return tuple(map(convention_named, self.conventions))


def evaluate_folders(
    out: str | Path,
    reference: str | Path,
    *,
    options: ScoreOptions = ScoreOptions(),
    against: str | Path | None = None,
    output: str | Path | None = None,
    cluster: Cluster | None = None,
) -> EvaluationReport:
    """Score a folder of predictions against the labels of a folder of cases in any layout.

    A case that cannot be scored is reported as a problem; the others are scored. The summary also has the
    voxel confusion of all cases and, if class probabilities were saved with the predictions, their
    calibration. The scored classes are the finest that the schemas of all cases distinguish.

    Args:
        out: predictions, `<case>.nii.gz`, `.nii` or `.mha`, in the label schema that `predictions.csv` names,
            else in the schema of their case.
        reference: a folder of cases with labels, or a manifest, as for `scans.layouts.find_cases`.
        options: which cases, and by which rules.
        against: a second folder of predictions, tested against the first, patient by patient.
        output: folder for `scores.csv` and `summary.json`; None writes nothing. If no case could be scored,
            nothing is written.
        cluster: whose workers score the cases, instead of threads of this process.

    Raises:
        UsageError: `cavity_in` names a region, but the labels have no resection cavity.
        InputError: a folder that does not exist.
    """
    out, against, output = Path(out), Path(against) if against else None, Path(output) if output else None
    for folder in (out, *([against] if against else [])):
        if not folder.is_dir():
            raise InputError(f"{folder}: is not a folder; give a folder of predictions")
    only, rules = options.only, options.rules
    references = find_cases(reference, required=(), schema=options.schema)
    cases = {c.id: c for c in references.cases if only is None or c.id in only}
    labeled = [case for case in cases.values() if case.label is not None]
    problems = list(references.problems) if only is None else problems_of(only, labeled, references.problems)
    scored = _score_folder(out, cases, options, problems, cluster)
    scores = [score for case in scored for score in case.scores]
    comparison = {}
    if against is not None:
        rivals = _score_folder(against, cases, options, problems, cluster)
        others = [score for case in rivals for score in case.scores]
        comparison = {"against": {"folder": str(against)} | compare(scores, others, rules)}
    summary = (
        summarize(scores, rules, problems=[str(p) for p in problems], cavity_in=options.cavity_in)
        | _voxel_tree(scored)
        | comparison
    )
    report = EvaluationReport(tuple(scores), tuple(problems), summary)
    if output is not None and scores:
        output.mkdir(parents=True, exist_ok=True)
        write_scores(output / "scores.csv", scores)
        write_json(output / "summary.json", summary)
    return report


@dataclass(frozen=True)
class _CaseScores:
    scores: tuple[Score, ...]
    classes: tuple[str, ...]
    confusion: JointHistogram
    calibration: Mapping[str, Reliability] | None
    problem: Problem | None


def _voxel_tree(scored: Sequence[_CaseScores]) -> dict[str, Any]:
    """The voxel confusion of all cases together, and their calibration where probabilities were saved."""
    if not scored:
        return {}
    tree: dict[str, Any] = {
        "confusion": {
            "rows": "reference",
            "columns": "prediction",
            "voxels": "all of every image; healthy includes the air, which the report's table leaves out",
            "classes": list(scored[0].classes),
            "n_voxels": np.sum([case.confusion for case in scored], axis=0).tolist(),
        }
    }
    calibrated = [case.calibration for case in scored if case.calibration is not None]
    return tree | ({"calibration": calibration_tree(calibrated)} if calibrated else {})


def _score_folder(
    out: Path,
    cases: Mapping[str, Case],
    options: ScoreOptions,
    problems: list[Problem],
    cluster: Cluster | None,
) -> list[_CaseScores]:
    pairs = [pair for pair in _pair_up(out, cases, options.only, problems) if _is_told(pair[0], problems)]
    if not pairs:
        return []
    written = [written_schema(case, path, untold=options.prediction_schema) for case, path in pairs]
    problems.extend(_overruled(out, written, options.prediction_schema))
    classes = common_classes(SCHEMAS[name] for name in (*(case.schema for case, _ in pairs), *written))
    if options.cavity_in and "resection_cavity" not in classes:
        raise UsageError(
            f"--cavity-in {options.cavity_in[0]}: the labels of all cases distinguish {', '.join(classes)}, "
            "and no resection cavity; "
            "score only cases of brats2024gli"
        )
    tasks = [
        (case, path, SCHEMAS[name], classes, options)
        for (case, path), name in zip(pairs, written, strict=True)
    ]
    scored: list[_CaseScores] = []
    for result in map_in_order(
        _score_files, tasks, threads=n_cores(), label="scoring", on_death=_unscored, cluster=cluster
    ):
        if isinstance(result, Problem):
            problems.append(result)
        else:
            scored.append(result)
            problems.extend([result.problem] if result.problem else [])
    problems.extend(_swapped(out, scored, options.cavity_in))
    return scored


def _overruled(out: Path, written: Sequence[str], asked: str | None) -> list[Problem]:
    """A warning where `predictions.csv` names another label schema than `--prediction-schema`."""
    others = [name for name in written if asked is not None and name != asked]
    if not others:
        return []
    what = (
        f"--prediction-schema {asked} is not used for {len(others)} of {len(written)} predictions: {TABLE} "
        f"says {', '.join(sorted(set(others)))}"
    )
    return [Problem("warning", "", str(out), what, f"no --prediction-schema, or label maps without {TABLE}")]


def _swapped(out: Path, scored: Sequence[_CaseScores], cavity_in: Sequence[str]) -> list[Problem]:
    """A warning if two tumor classes seem to be exchanged in a whole folder of predictions (`SWAP_GAIN`)."""
    if not scored:
        return []
    classes = scored[0].classes
    regions = regions_of(classes)

    def mean_dice(order: Sequence[int]) -> list[float]:
        """The mean Dice of each region, over the cases that have one, with the classes in that order."""
        means = []
        for region in regions:
            members = region_classes(region, classes, cavity_in=cavity_in)
            values = np.array([overlap_scores(case.confusion[:, order], members).dice for case in scored])
            means.append(float(values[~np.isnan(values)].mean()) if not np.isnan(values).all() else 0.0)
        return means

    dice_as_is, found = mean_dice(range(len(classes))), []
    for one, other in combinations(range(1, len(classes)), 2):
        order = [{one: other, other: one}.get(i, i) for i in range(len(classes))]
        swapped = mean_dice(order)
        gain, region = max(
            (after - before, i) for i, (before, after) in enumerate(zip(dice_as_is, swapped, strict=True))
        )
        if gain > SWAP_GAIN and sum(swapped) > sum(dice_as_is):
            found.append((gain, f"with {classes[one]} and {classes[other]} swapped the mean Dice of "
                                f"{regions[region]} would be "
                          f"{swapped[region]:.3f} instead of {dice_as_is[region]:.3f}"))  # fmt: skip
    expected = "the label values of each case's schema, or --prediction-schema NAME"
    return [Problem("warning", "", str(out), max(found)[1], expected)] if found else []


def _is_told(case: Case, problems: list[Problem]) -> bool:
    """Whether the label schema of a case is known; a problem names those that fit."""
    untold = untold_schema(case)
    if untold and untold not in problems:  # two folders of predictions share the references
        problems.append(untold)
    return untold is None


def _pair_up(
    out: Path, cases: Mapping[str, Case], only: Collection[str] | None, problems: list[Problem]
) -> list[tuple[Case, Path]]:
    files: dict[str, list[Path]] = {}
    for path in sorted(out.iterdir()):
        suffix = next((s for s in SUFFIXES if path.name.endswith(s)), None)
        if suffix and not path.name.startswith(".") and path.is_file():
            files.setdefault(path.name.removesuffix(suffix), []).append(path)
    if only is not None:
        files = {name: paths for name, paths in files.items() if name in only}
    labeled = {c.id for c in cases.values() if c.label is not None}
    lost = set(only or ()) - files.keys() - labeled - {p.case for p in problems}
    pairs: list[tuple[Case, Path]] = []

    def refuse(name: str, file: Path, what: str, expected: str) -> None:
        problems.append(Problem("error", name, str(file), what, expected))

    for name in sorted(files.keys() | labeled | lost):
        paths, case, wanted = files.get(name, []), cases.get(name), str(out / (name + SUFFIXES[0]))
        if name in lost:
            what = "neither a prediction nor a reference with a label"
            refuse(name, out, what, f"{wanted}, and a case of this name with a label")
        elif not paths:
            refuse(name, out, NO_PREDICTION, wanted)
        elif case is None or case.label is None:
            what = "no reference for this prediction"
            refuse(name, paths[0], what, "a case of this name with a label")
        elif len(paths) > 1:
            refuse(name, out, f"{len(paths)} predictions: {', '.join(p.name for p in paths)}", "one")
        else:
            pairs.append((case, paths[0]))
    return pairs


_Task = tuple[Case, Path, LabelSchema, tuple[str, ...], ScoreOptions]


def _unscored(task: _Task, error: BaseException) -> _CaseScores | Problem:
    return Problem("error", task[0].id, str(task[1]), str(error), "workers with more memory")


def _score_files(task: _Task) -> _CaseScores | Problem:
    case, path, written, classes, options = task
    label = case.label
    assert label is not None  # `_pair_up` lets no other case through
    at: Path = label.path
    try:
        truth, truth_grid = read_volume(label)
        reference = to_tissue(truth, SCHEMAS[case.schema], classes)
        at = path
        answer, grid = read_volume(path)
        if answer.shape != truth.shape:
            wanted = f"{truth.shape}, as its reference {label}"
            raise ScanError(path, f"shape {answer.shape} (Z, Y, X)", expected=wanted)
        if not same_grid(truth_grid, grid):
            wanted = f"the grid of its reference {label}"
            raise ScanError(path, "its affine places voxels elsewhere", expected=wanted)
        prediction = to_tissue(answer, written, classes)
        calibration, problem = _calibrate(
            case, path.parent, reference, classes=classes, cavity_in=options.cavity_in, grid=truth_grid
        )
        scores = score_case(
            reference,
            prediction,
            classes=classes,
            spacing_mm=truth_grid.spacing_mm,
            conventions=options.conventions,
            cavity_in=options.cavity_in,
        )
        return _CaseScores(
            tuple(replace(score, case=case.id, patient=case.patient) for score in scores),
            classes,
            joint_histogram(reference, prediction, len(classes)),
            calibration,
            problem,
        )
    except InputError as error:
        schema = case.schema if at == label.path else written.name
        return problem_of(error, case.id, file=at, expected=f"a label map in the values of schema '{schema}'")


def _calibrate(
    case: Case,
    out: Path,
    reference: TissueMap,
    *,
    classes: Sequence[str],
    cavity_in: Sequence[str],
    grid: Geometry,
) -> tuple[Mapping[str, Reliability] | None, Problem | None]:
    """The calibration of a case whose probabilities were saved, or the problem if they cannot be read. The
    other scores of the case stay valid.
    """
    try:
        saved = read_probabilities(out, case.id, grid=grid)
        if saved is None:
            return None, None
        return score_probabilities(*saved, reference=reference, classes=classes, cavity_in=cavity_in), None
    except InputError as error:
        expected = "probabilities as `predict` saves them"
        return None, problem_of(error, case.id, file=out / PROBABILITIES, expected=expected)
