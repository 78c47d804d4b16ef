"""Two folders -> one table; the empty-region conventions live here alone."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from brats_seg.core.cores import n_cores
from brats_seg.core.engine import Cluster, map_in_order
from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.files import write_json
from brats_seg.core.shapes import TissueMap
from brats_seg.evaluation.calibration import (
    Reliability,
    calibration_tree,
    read_probabilities,
    score_probabilities,
)
from brats_seg.evaluation.lesions import Lesions
from brats_seg.evaluation.overlap import JointHistogram, Overlap, joint_histogram, overlap_scores
from brats_seg.evaluation.pair import Pair, make_pair
from brats_seg.evaluation.surface import Spacing, hd95_of, surface_dice
from brats_seg.evaluation.table import NAN, TOLERANCE_MM, Convention, Score, compare, summarize, write_scores
from brats_seg.scans.case import Case
from brats_seg.scans.geometry import Geometry, ScanError, same_grid
from brats_seg.scans.labels import (
    REGIONS,
    SCHEMAS,
    LabelSchema,
    common_classes,
    region_classes,
    schema_option,
    to_tissue,
)
from brats_seg.scans.layouts import find_cases, problems_of
from brats_seg.scans.predictions import TABLE, written_schema
from brats_seg.scans.problem import Problem
from brats_seg.scans.verify import untold_schema
from brats_seg.scans.volume import SUFFIXES, read_volume

CONVENTIONS: dict[str, Convention] = {
    c.name: c
    for c in (
        Convention(
            "brats2013", "Menze et al. 2015: empty regions are left out", "directed", NAN, NAN, 0.0, NAN
        ),
        # 373.12866 mm is the diagonal of a BraTS image of 240 x 240 x 155 mm
        Convention(
            "brats2020",
            "Empty regions as on the BraTS 2017-2021 leaderboards; HD95 the larger directed percentile, as "
            "MONAI",
            "directed",
            1.0,
            0.0,
            0.0,
            373.12866,
        ),
        Convention(
            "brats2020_pooled_hd95",
            "Empty regions as on the BraTS 2017-2021 leaderboards; HD95 of both directions together, as "
            "MedPy",
            "pooled",
            1.0,
            0.0,
            0.0,
            373.12866,
        ),
        Convention(
            "brats2023",
            "Saluja et al., BraTS 2023 lesion-wise metrics",
            "surface_weighted",
            1.0,
            0.0,
            0.0,
            374.0,
            lesion_wise=True,
            headline=("lesion_dice", "lesion_hd95_mm", "dice"),
        ),
        Convention(
            "nnunet", "nnU-Net: empty in both is not a number; HD95 as MedPy", "pooled", NAN, NAN, 0.0, NAN
        ),
    )
}
"""The rules a score can follow, by name."""
SWAP_GAIN = 0.2
"""A swap of two tumor classes that would raise the mean Dice of a region by more than this is warned of: the
label values are probably those of another schema."""
NO_PREDICTION = "no prediction"
"""What is wrong with a reference that nothing was predicted for."""


@dataclass(frozen=True)
class EvaluationReport:
    """All scores, all problems, and the summary as it lies in summary.json."""

    scores: tuple[Score, ...]
    problems: tuple[Problem, ...]
    summary: Mapping[str, Any] = field(repr=False)

    @property
    def exit_code(self) -> int:
        """1 where an error was named, or nothing could be scored."""
        return int(not self.scores or any(p.severity == "error" for p in self.problems))


def convention_named(name: str) -> Convention:
    """The convention of that name. Raises `UsageError` with the choices."""
    if name not in CONVENTIONS:
        raise UsageError(f"--convention {name}: unknown; the conventions are {', '.join(CONVENTIONS)}")
    return CONVENTIONS[name]


def score_case(
    reference: TissueMap,
    prediction: TissueMap,
    *,
    classes: Sequence[str],
    spacing_mm: Spacing,
    conventions: Sequence[str] = ("brats2020",),
    cavity_in: Sequence[str] = (),
    tissues: bool = True,
    case: str = "",
    patient: str = "",
) -> tuple[Score, ...]:
    """Score every region, and every single tissue class, of one case under each convention.

    Args:
        reference: (Z, Y, X) indices into `classes`.
        prediction: the same, same shape.
        classes: tissue class names, healthy first.
        spacing_mm: voxel size along (Z, Y, X).
        conventions: keys of `CONVENTIONS`.
        cavity_in: regions that the resection cavity belongs to.
        tissues: whether single tissue classes get rows. The healthy one has no surface scores: its surface is
            the tumor's and the image's.
        case: goes into the rows.
        patient: goes into the rows.

    Raises:
        InputError: another shape, or a class index that `classes` does not have.
        UsageError: an unknown convention.
    """
    rules = [convention_named(name) for name in conventions]
    histogram = joint_histogram(reference, prediction, len(classes))
    pair = make_pair(reference, prediction, spacing_mm=spacing_mm)
    parts = {region: region_classes(region, classes, cavity_in=cavity_in) for region in REGIONS}
    if tissues:
        parts |= {tissue: (i,) for i, tissue in enumerate(classes)}
    return tuple(
        _score(
            pair,
            rule,
            region=region,
            members=members,
            overlap=overlap_scores(histogram, members),
            case=case,
            patient=patient,
        )
        for region, members in parts.items()
        for rule in rules
    )


@dataclass(frozen=True)
class ScoreOptions:
    """Which cases are scored, and by which rules.

    Attributes:
        conventions: keys of `CONVENTIONS`.
        cavity_in: regions that the resection cavity belongs to.
        only: ids of the cases meant; None for all. One with neither a prediction nor a labeled reference is a
            problem.
        schema: the label schema of the cases whose layout does not say it; without it, such a case is a
            problem.
        prediction_schema: the label schema of predictions that no `predictions.csv` beside them tells; None
            for that of their case.

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

    A case that cannot be scored is named among the problems; the others are scored. The summary holds the
    voxel confusion of all cases too, and where class probabilities lie beside the predictions, how well they
    are calibrated. The classes that are scored are the finest that the schemas of all cases tell apart.

    Args:
        out: predictions, `<case>.nii.gz`, `.nii` or `.mha`, in the label schema that `predictions.csv` names,
            else in their case's.
        reference: a folder of cases with labels, or a manifest, as `scans.layouts.find_cases` takes them.
        options: which cases, and by which rules.
        against: a second folder of predictions, tested against the first, patient by patient.
        output: where `scores.csv` and `summary.json` go; None writes nothing, nor is anything written where
            no case could be scored.
        cluster: whose workers score the cases, instead of threads of this process.

    Raises:
        UsageError: a region in `cavity_in` whose cavity the labels do not tell apart.
        InputError: a folder that does not exist.
    """
    out, against, output = Path(out), Path(against) if against else None, Path(output) if output else None
    for folder in (out, *([against] if against else [])):
        if not folder.is_dir():
            raise InputError(f"{folder}: is not a folder; give a folder of predictions")
    only, rules = options.only, options.rules
    found = find_cases(reference, required=(), schema=options.schema)
    cases = {c.id: c for c in found.cases if only is None or c.id in only}
    labeled = [case for case in cases.values() if case.label is not None]
    problems = list(found.problems) if only is None else problems_of(only, labeled, found.problems)
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
    voxels = np.sum([case.confusion for case in scored], axis=0)
    tree: dict[str, Any] = {
        "confusion": {
            "rows": "reference",
            "columns": "prediction",
            "voxels": "all of every image; healthy holds the air, which the report's table leaves out",
            "classes": list(scored[0].classes),
            "n_voxels": voxels.tolist(),
        }
    }
    calibrated = [case.calibration for case in scored if case.calibration is not None]
    return tree | ({"calibration": calibration_tree(calibrated)} if calibrated else {})


def _score(
    pair: Pair,
    rule: Convention,
    *,
    region: str,
    members: tuple[int, ...],
    overlap: Overlap,
    case: str,
    patient: str,
) -> Score:
    voxel_ml = math.prod(pair.spacing_mm) / 1000
    hd95, near = _surface_scores(pair, rule, members, overlap)
    return Score(
        case=case,
        region=region,
        convention=rule.name,
        n_reference_vox=overlap.n_reference,
        n_prediction_vox=overlap.n_prediction,
        dice=_unless_both_empty(overlap.dice, rule, overlap),
        iou=_unless_both_empty(overlap.iou, rule, overlap),
        # 0 / 0 with an empty reference, precision with an empty prediction: left out by every convention
        sensitivity=overlap.sensitivity,
        specificity=overlap.specificity,
        precision=overlap.precision,
        hd95_mm=hd95,
        surface_dice=near,
        reference_ml=overlap.n_reference * voxel_ml,
        prediction_ml=overlap.n_prediction * voxel_ml,
        volume_error_ml=(overlap.n_prediction - overlap.n_reference) * voxel_ml,
        patient=patient,
        **(_lesion_scores(pair.lesions(members), rule) if rule.lesion_wise and 0 not in members else {}),
    )


def _unless_both_empty(value: float, rule: Convention, overlap: Overlap) -> float:
    """An overlap of the region, or what the convention says of one that is empty in both; NaN of a score that
    cannot be had otherwise.
    """
    return rule.both_empty if overlap.n_reference == overlap.n_prediction == 0 else value


def _surface_scores(
    pair: Pair, rule: Convention, members: tuple[int, ...], overlap: Overlap
) -> tuple[float, float]:
    """HD95 and surface Dice."""
    if 0 in members:
        return NAN, NAN
    if overlap.n_reference == 0 and overlap.n_prediction == 0:
        return rule.both_empty_hd95_mm, rule.both_empty
    if overlap.n_reference == 0 or overlap.n_prediction == 0:
        return rule.one_empty_hd95_mm, rule.one_empty
    distances = pair.distances(members, rule.hd95)
    return hd95_of(distances, rule.hd95), surface_dice(distances, tolerance_mm=TOLERANCE_MM)


def _lesion_scores(lesions: Lesions, rule: Convention) -> dict[str, Any]:
    """Means over reference lesions and false positives; a missed or false lesion counts as an empty region
    does.
    """
    n = lesions.n_counted
    n_alone = lesions.n_missed + lesions.n_false
    dice = (sum(lesions.dice) + n_alone * rule.one_empty) / n if n else rule.both_empty
    hd95 = (sum(lesions.hd95_mm) + n_alone * rule.one_empty_hd95_mm) / n if n else rule.both_empty_hd95_mm
    return {
        "lesion_dice": dice,
        "lesion_hd95_mm": hd95,
        "n_lesions_found": len(lesions.dice),
        "n_lesions_missed": lesions.n_missed,
        "n_lesions_false": lesions.n_false,
    }


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
            f"--cavity-in {options.cavity_in[0]}: the labels of all cases tell {', '.join(classes)} apart, "
            "and no resection cavity; "
            "score cases of brats2024gli alone"
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
    """A warning where two tumor classes of a whole folder of predictions seem to stand for each other
    (`SWAP_GAIN`).
    """
    if not scored:
        return []
    classes = scored[0].classes

    def mean_dice(order: Sequence[int]) -> list[float]:
        """Of each region, over the cases where it has one, with the predicted classes in that order."""
        means = []
        for region in REGIONS:
            members = region_classes(region, classes, cavity_in=cavity_in)
            values = np.array([overlap_scores(case.confusion[:, order], members).dice for case in scored])
            means.append(float(values[~np.isnan(values)].mean()) if not np.isnan(values).all() else 0.0)
        return means

    plain, found = mean_dice(range(len(classes))), []
    for one, other in combinations(range(1, len(classes)), 2):
        order = [{one: other, other: one}.get(i, i) for i in range(len(classes))]
        swapped = mean_dice(order)
        gain, region = max(
            (after - before, i) for i, (before, after) in enumerate(zip(plain, swapped, strict=True))
        )
        if gain > SWAP_GAIN and sum(swapped) > sum(plain):
            found.append((gain, f"with {classes[one]} and {classes[other]} swapped the mean Dice of "
                                f"{REGIONS[region]} would be "
                          f"{swapped[region]:.3f} instead of {plain[region]:.3f}"))  # fmt: skip
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
    pairs = []
    for name in sorted(files.keys() | labeled | lost):
        paths, case = files.get(name, []), cases.get(name)
        if name in lost:
            what = "neither a prediction nor a reference with a label"
            problems.append(
                Problem(
                    "error",
                    name,
                    str(out),
                    what,
                    f"{out / (name + SUFFIXES[0])}, and a case of this name with a label",
                )
            )
        elif not paths:
            problems.append(Problem("error", name, str(out), NO_PREDICTION, f"{out / (name + SUFFIXES[0])}"))
        elif case is None or case.label is None:
            problems.append(
                Problem(
                    "error",
                    name,
                    str(paths[0]),
                    "no reference for this prediction",
                    "a case of this name with a label",
                )
            )
        elif len(paths) > 1:
            problems.append(
                Problem(
                    "error",
                    name,
                    str(out),
                    f"{len(paths)} predictions: {', '.join(p.name for p in paths)}",
                    "one",
                )
            )
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
            return Problem(
                "error",
                case.id,
                str(path),
                f"shape {answer.shape} (Z, Y, X)",
                f"{truth.shape}, as its reference {label}",
            )
        if not same_grid(truth_grid, grid):
            return Problem(
                "error",
                case.id,
                str(path),
                "its affine places voxels elsewhere",
                f"the grid of its reference {label}",
            )
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
            case=case.id,
            patient=case.patient,
        )
        return _CaseScores(
            scores, classes, joint_histogram(reference, prediction, len(classes)), calibration, problem
        )
    except ScanError as error:
        return Problem("error", case.id, str(error.path), error.what, error.expected)
    except InputError as error:
        return Problem(
            "error",
            case.id,
            str(at),
            str(error),
            f"a label map in the values of schema '{case.schema if at == label.path else written.name}'",
        )


def _calibrate(
    case: Case,
    out: Path,
    reference: TissueMap,
    *,
    classes: Sequence[str],
    cavity_in: Sequence[str],
    grid: Geometry,
) -> tuple[Mapping[str, Reliability] | None, Problem | None]:
    """The calibration of a case whose probabilities were saved; where they cannot be read, the problem: its
    other scores stand.
    """
    try:
        saved = read_probabilities(out, case.id, grid=grid)
        if saved is None:
            return None, None
        return score_probabilities(*saved, reference=reference, classes=classes, cavity_in=cavity_in), None
    except ScanError as error:
        return None, Problem("error", case.id, str(error.path), error.what, error.expected)
    except InputError as error:
        return None, Problem(
            "error", case.id, str(out / "probabilities"), str(error), "probabilities as `predict` saves them"
        )
