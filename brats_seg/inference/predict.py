"""Case + network -> label map on the native grid."""

import hashlib
import threading
import time
from collections.abc import Collection, Generator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from brats_seg.bank.normalize import NormalizedCase, normalize_volumes, off_spacing, uncrop
from brats_seg.core.errors import InputError, UsageError, is_out_of_memory
from brats_seg.core.files import write_text
from brats_seg.core.progress import track
from brats_seg.core.shapes import Image, TissueMap
from brats_seg.evaluation.calibration import CLASSES, PROBABILITIES
from brats_seg.inference.cleanup import Cleanup, clean_up
from brats_seg.inference.dense import SLICES, Mirroring, Probabilities, brain_mask
from brats_seg.inference.outputs import add_row, rebuild_table
from brats_seg.inference.segmenter import Segmenter, fitting, goes_by_slices, segment_crop
from brats_seg.inference.threads import computing_threads
from brats_seg.inference.thresholds import RegionThresholds, cut_regions
from brats_seg.scans.case import Case
from brats_seg.scans.geometry import Geometry, ScanError
from brats_seg.scans.labels import REGIONS, from_tissue, region_classes, schema_named
from brats_seg.scans.problem import Problem
from brats_seg.scans.verify import check_case, load_case
from brats_seg.scans.volume import SUFFIXES, read_header, write_label_map, write_volume

Flaw = Literal["skull", "same_scan"]
"""What refuses a case unless it is allowed by name: networks see brains without a skull, and a scan of its
own in each channel.
"""
DEFAULT_SCHEMA, CAVITY_SCHEMA = "brats2023", "brats2024gli"
"""The label values of cases that have none of their own; the second for networks that know a resection
cavity.
"""
_OPTIONS: dict[str, str] = {"skull": "--allow-skull", "same_scan": "--allow-same-scan"}

_MOST_CASES = 6  # at a time: each takes 0.1 GB while it is read


@dataclass(frozen=True)
class Prediction:
    """One label map that was written.

    Attributes:
        case: its id.
        path: where it lies.
        seconds: reading, computing and writing it, one after the other.
        volumes_ml: of each class and region of it.
        warnings: what was odd about the case.
    """

    case: str
    path: Path
    seconds: float
    volumes_ml: Mapping[str, float]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class PredictReport:
    """What a run over a folder did: label maps written, cases that were there already, and what was wrong."""

    predictions: tuple[Prediction, ...]
    skipped: tuple[str, ...]
    problems: tuple[Problem, ...]

    @property
    def exit_code(self) -> int:
        """1 where a case was refused, or there was none."""
        return int(
            not (self.predictions or self.skipped) or any(p.severity == "error" for p in self.problems)
        )

    def summary(self) -> str:
        """One line of counts."""
        n_refused = len({p.case or p.file for p in self.problems if p.severity == "error"})
        mean = (
            f", {sum(p.seconds for p in self.predictions) / len(self.predictions):.1f} s each"
            if self.predictions
            else ""
        )
        there = f", {len(self.skipped)} were there already" if self.skipped else ""
        n = len(self.predictions)
        return f"{n} {'case' if n == 1 else 'cases'} segmented{mean}{there}, {n_refused} refused"


def predict_cases(
    segmenters: Sequence[Segmenter],
    cases: Sequence[Case],
    *,
    out: Path,
    problems: Sequence[Problem] = (),
    mirroring: Mirroring = "none",
    thresholds: RegionThresholds | None = None,
    cleanup: Cleanup | None = None,
    save_probabilities: bool = False,
    skip_finished: bool = False,
    resample: bool = False,
    allow_missing: bool = False,
    allowed: Collection[Flaw] = (),
    suffix: str = ".nii.gz",
) -> PredictReport:
    """Segment cases into `OUT/<case>.nii.gz`, in the label values, grid and type of each; and
    `predictions.csv`, `labels.txt`.

    A case of an unknown label schema gets the values of `DEFAULT_SCHEMA`; `predictions.csv` says so.

    The next cases are read while one is computed, and the last are written. A case that cannot be segmented
    is named among the problems; the others are segmented.

    Args:
        segmenters: one, or several whose probabilities are averaged.
        cases: ids must differ; labels are not read.
        out: made if it is not there.
        problems: known before (of finding the cases), to be reported with the others.
        mirroring: averages over flips, of a 2-D network in plane at most.
        thresholds: of the probability of each region; None for the likeliest class.
        cleanup: volumes below which tumor is taken out; None for none. Saved probabilities are those before
            it.
        save_probabilities: also `OUT/probabilities/<case>.nii.gz`, float32, a volume per class, and
            `classes.txt`, their names.
        skip_finished: leave cases alone that are there whole: label map, row of the table, and probabilities
            where they are wanted; those of other networks or settings (column `settings`) are made again.
        resample: take cases whose spacing is over 5 % off the network's: there and back by SimpleITK.
        allow_missing: take cases that lack some modalities, whose channels are then 0: for networks trained
            with modality dropout.
        allowed: flaws that refuse no case: a head with its skull, one scan given for two modalities.
        suffix: file type, one of `scans.volume.SUFFIXES`.

    Raises:
        UsageError: no segmenter, segmenters that do not fit together, or an unknown suffix.
    """
    if suffix not in SUFFIXES:
        raise UsageError(f"suffix '{suffix}': must be one of {', '.join(SUFFIXES)}")
    job = _Job(
        fitting(segmenters), out, suffix, mirroring, save_probabilities, resample,
        thresholds=thresholds, cleanup=cleanup, allow_missing=allow_missing, allowed=frozenset(allowed),
    )  # fmt: skip
    cases = [case if case.schema else replace(case, schema=job.default_schema) for case in cases]
    out.mkdir(parents=True, exist_ok=True)
    alike = {row["case"] for row in rebuild_table(out) if row.get("settings") == job.settings}
    skipped = [c.id for c in cases if skip_finished and c.id in alike and _is_finished(job, c)]
    found = list(problems)
    predictions = []
    done = set(skipped)
    todo = [c for c in cases if c.id not in done]
    with closing(
        _pipelined(job, todo)
    ) as results:  # whatever ends the loop: a traceback would keep them, and they go on by themselves
        for result in track(results, total=len(todo), label="segmenting", line=_line):
            if isinstance(result, Problem):
                found.append(result)
            else:
                predictions.append(result)
    rebuild_table(out)  # the rows stand in the order in which the cases were finished
    return PredictReport(tuple(predictions), tuple(skipped), tuple(found))


def _line(result: Prediction | Problem) -> str:
    """What a log says of a case."""
    if isinstance(result, Problem):
        return f"{result.case} refused"
    return f"{result.case}, {result.seconds:.1f} s"


def predict_one(
    segmenters: Sequence[Segmenter],
    case: Case,
    *,
    out: Path,
    mirroring: Mirroring = "none",
    thresholds: RegionThresholds | None = None,
    cleanup: Cleanup | None = None,
    resample: bool = False,
    allow_missing: bool = False,
    allowed: Collection[Flaw] = (),
) -> PredictReport:
    """Segment one case into the label map `out` itself, and write nothing else. Otherwise as
    `predict_cases`.
    """
    suffix = next((s for s in SUFFIXES if out.name.endswith(s)), None)
    if suffix is None:
        raise UsageError(f"{out}: its name must end in one of {', '.join(SUFFIXES)}")
    job = _Job(
        fitting(segmenters),
        out.parent,
        suffix,
        mirroring,
        save_probabilities=False,
        resample=resample,
        single=out,
        thresholds=thresholds,
        cleanup=cleanup,
        allow_missing=allow_missing,
        allowed=frozenset(allowed),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    results = list(_pipelined(job, [replace(case, schema=case.schema or job.default_schema)]))
    problems = tuple(r for r in results if isinstance(r, Problem))
    return PredictReport(tuple(r for r in results if isinstance(r, Prediction)), (), problems)


@dataclass(frozen=True)
class _Job:
    """What is the same for all cases of a run."""

    segmenters: tuple[Segmenter, ...]
    out: Path
    suffix: str
    mirroring: Mirroring
    save_probabilities: bool
    resample: bool
    single: Path | None = None
    thresholds: RegionThresholds | None = None
    cleanup: Cleanup | None = None
    allow_missing: bool = False
    allowed: frozenset[Flaw] = frozenset()

    @property
    def default_schema(self) -> str:
        """Of the label maps of cases whose own schema is unknown: the newest that has all classes of the
        networks.
        """
        return DEFAULT_SCHEMA if "resection_cavity" not in self.segmenters[0].classes else CAVITY_SCHEMA

    @cached_property
    def settings(self) -> str:
        """Digest of what label maps depend on beside the scans: the networks, their arithmetic and how they
        are used.
        """
        networks = [
            (s.checkpoint, s.window, s.inference, s.class_shift, _arithmetic(s)) for s in self.segmenters
        ]
        used = repr(
            (networks, self.mirroring, self.thresholds, self.cleanup, self.resample, self.allow_missing)
        )
        return hashlib.sha256(used.encode()).hexdigest()[:12]

    @property
    def needs_probabilities(self) -> bool:
        """Whether class probabilities are computed beside the label map."""
        return self.save_probabilities or self.thresholds is not None

    def path_of(self, case: Case) -> Path:
        return self.single or self.out / f"{case.id}{self.suffix}"

    def probabilities_of(self, case: Case) -> Path:
        return self.out / PROBABILITIES / f"{case.id}.nii.gz"


def _arithmetic(segmenter: Segmenter) -> list[str]:
    """Types of numbers and kinds of device: bfloat16 and float32, or a CPU and a GPU, do not give the same
    label maps.
    """
    return sorted({f"{p.dtype} {p.device.type}" for p in segmenter.network.parameters()})


@dataclass(frozen=True)
class _Input:
    case: Case
    normalized: NormalizedCase
    warnings: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class _Part:
    """Of a case: slices that were computed together, and when."""

    labels: TissueMap
    probabilities: Probabilities | None
    start: float
    end: float


@dataclass(frozen=True)
class _Output:
    source: _Input
    labels: TissueMap
    probabilities: Probabilities | None
    seconds: float


def _is_finished(job: _Job, case: Case) -> bool:
    """Whether the files of a case are there: a process may have been killed between them."""
    return job.path_of(case).is_file() and (
        not job.save_probabilities or job.probabilities_of(case).is_file()
    )


def _pipelined(job: _Job, cases: Sequence[Case]) -> Generator[Prediction | Problem, None, None]:
    """Read, compute and write several cases at a time, results in their order; slices of an earlier case are
    computed first.
    """
    n_cores = torch.get_num_threads()
    first_of = {case.id: i for i, case in reversed(list(enumerate(cases)))}

    def segment(i: int) -> Prediction | Problem:
        case = cases[i]
        if first_of[case.id] != i:
            return Problem("error", case.id, str(case.folder), "a second case of this id", "ids that differ")
        try:
            source = _read(job, case)
            output = (
                source
                if isinstance(source, Problem)
                else _compute(job, source, computers, n_parts=n_computers)
            )
            if isinstance(output, Problem):
                return output
            with writing:  # the table and the lists beside the label maps are of all cases
                return _write(job, output)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return _too_large(job, case)

    writing = threading.Lock()
    n_computers = n_cores if goes_by_slices(job.segmenters) else 1
    networks = [s.network for s in job.segmenters]
    # The computing threads end first: the cases under way wait for them.
    with (
        ThreadPoolExecutor(min(1 + n_cores, _MOST_CASES, max(len(cases), 1))) as pool,
        computing_threads(networks, n=n_computers) as computers,
    ):
        yield from pool.map(segment, range(len(cases)))


def _too_large(job: _Job, case: Case) -> Problem:
    windows = (
        "--inference windowed, "
        if any(s.window is None or (s.n_dims == 3 and s.inference == "auto") for s in job.segmenters)
        else ""
    )
    what = "does not fit into memory with this network"
    return Problem(
        "error", case.id, str(case.folder), what, f"{windows}another --device, or a smaller network"
    )


def _read(job: _Job, case: Case) -> _Input | Problem:
    """Read, check and normalize a case; what is wrong with its label, if it has one, does not matter here."""
    start = time.perf_counter()
    first = job.segmenters[0]
    missing = [name for name in first.modalities if name not in case.modalities]
    there = tuple(name for name in first.modalities if name in case.modalities)
    if missing and not (job.allow_missing and there):
        return Problem(
            "error",
            case.id,
            str(case.folder),
            f"lacks {', '.join(missing)}",
            f"a scan each for {', '.join(first.modalities)}",
        )
    needed = {name: case.modalities[name] for name in there}
    target = job.path_of(case)
    own = [scan.path for scan in (*case.modalities.values(), *([case.label] if case.label else []))]
    if target.exists() and any(target.samefile(path) for path in own if path.exists()):
        return Problem(
            "error",
            case.id,
            str(target),
            "is a file of the case itself, which its label map would replace",
            "another output",
        )
    try:
        schema_named(case.schema)
        loaded = load_case(replace(case, modalities=needed, label=None))
        report = check_case(loaded, digests="none")
        errors = [p for p in report.problems if p.severity == "error"]
        if errors:
            return replace(errors[0], what="; ".join(p.what for p in errors))
        flaws = [p for p in report.problems if p.kind and p.kind not in job.allowed]
        if flaws:
            return _refused(flaws)
        geometry = loaded.volumes[there[0]][1]
        if off_spacing(geometry.spacing_mm, wanted_mm=first.spacing_mm) and not job.resample:
            have, want = (
                " x ".join(f"{mm:.3g}" for mm in spacing)
                for spacing in (geometry.spacing_mm, first.spacing_mm)
            )
            what = f"voxels of {have} mm (Z, Y, X), over 5 % off the network's {want} mm"
            return Problem("error", case.id, str(case.folder), what, "that spacing, or --resample")
        normalized = normalize_volumes(
            case,
            {name: loaded.volumes[name][0] for name in there},
            label=None,
            geometry=geometry,
            percentiles=first.percentiles,
            n4_cache=job.out / "n4" if first.n4 else None,
            resample_to_mm=first.spacing_mm if job.resample else None,
        )
    except InputError as error:
        return _problem(case, error)
    warnings = (
        *(p.what for p in report.problems),
        *normalized.warnings,
        *(f"lacks {name}" for name in missing),
    )
    return _Input(
        case, _with_all_channels(normalized, there, first.modalities), warnings, time.perf_counter() - start
    )


def _refused(flaws: Sequence[Problem]) -> Problem:
    """An error of what `verify` only warns of: a label map of such a case looks like one, and is none."""
    options = " ".join(dict.fromkeys(_OPTIONS[p.kind] for p in flaws))
    expected = " and ".join(dict.fromkeys(p.expected for p in flaws))
    what = "; ".join(p.what for p in flaws)
    return replace(
        flaws[0],
        severity="error",
        what=what,
        expected=f"{expected}, as in the training; {options} takes it all the same",
    )


def _with_all_channels(
    normalized: NormalizedCase, there: Sequence[str], wanted: Sequence[str]
) -> NormalizedCase:
    """The case with a channel of 0 for each modality it lacks, as modality dropout made them in training."""
    if len(there) == len(wanted):
        return normalized
    image = np.zeros((*normalized.image.shape[:3], len(wanted)), np.float16)
    image[..., [list(wanted).index(name) for name in there]] = normalized.image
    return replace(normalized, image=image)


def _compute(job: _Job, source: _Input, computers: Executor, *, n_parts: int) -> _Output | Problem:
    image, first = source.normalized.image, job.segmenters[0]
    groups = [slice(z, z + SLICES) for z in range(0, len(image), SLICES)] if n_parts > 1 else [None]
    try:
        parts = list(computers.map(partial(_segment, job, image), groups))
        labels = np.concatenate([part.labels for part in parts])
        probabilities = (
            np.concatenate([part.probabilities for part in parts], axis=1)
            if job.needs_probabilities
            else None
        )
        if job.thresholds is not None and probabilities is not None:
            cut = cut_regions(labels, probabilities, classes=first.classes, thresholds=job.thresholds)
            labels = np.where(brain_mask(image), cut, np.uint8(0))
        if job.cleanup is not None:
            labels = clean_up(
                labels, classes=first.classes, spacing_mm=source.normalized.spacing_mm, cleanup=job.cleanup
            )
    except InputError as error:
        return _problem(source.case, error)
    saved = probabilities if job.save_probabilities else None
    return _Output(source, labels, saved, max(part.end for part in parts) - min(part.start for part in parts))


def _segment(job: _Job, image: Image, slices: slice | None) -> _Part:
    """The slices wanted of a crop, or all. The whole crop is there for all groups: a network may see the
    slices around its own.
    """
    start = time.perf_counter()
    labels, probabilities = segment_crop(
        job.segmenters,
        image,
        slices=slices,
        mirroring=job.mirroring,
        with_probabilities=job.needs_probabilities,
    )
    return _Part(labels, probabilities, start, time.perf_counter())


def _write(job: _Job, output: _Output) -> Prediction | Problem:
    start = time.perf_counter()
    case, normalized, classes = output.source.case, output.source.normalized, job.segmenters[0].classes
    path = job.path_of(case)
    try:
        values = uncrop(from_tissue(output.labels, schema_named(case.schema), classes), normalized)
        write_label_map(path, values, normalized.geometry, dtype=_label_dtype(case))
        if output.probabilities is not None:
            _write_probabilities(job, output, output.probabilities)
        same_grid = normalized.spacing_mm == normalized.geometry.spacing_mm
        volumes_ml = _volumes_ml(
            output.labels if same_grid else uncrop(output.labels, normalized), normalized.geometry, classes
        )
        seconds = output.source.seconds + output.seconds + time.perf_counter() - start
        if job.single is None:
            row: dict[str, str | float] = {
                "case": case.id,
                "file": path.name,
                "schema": case.schema,
                "seconds": round(seconds, 3),
            }
            row["settings"] = job.settings
            row |= {f"{name}_ml": round(ml, 3) for name, ml in volumes_ml.items()} | {
                "warnings": "; ".join(output.source.warnings)
            }
            add_row(job.out, row)
    except InputError as error:
        return _problem(case, error)
    except OSError as error:
        return Problem(
            "error", case.id, str(path), f"cannot be written: {error.strerror or error}", "a folder with room"
        )
    return Prediction(case.id, path, seconds, volumes_ml, output.source.warnings)


def _write_probabilities(job: _Job, output: _Output, probabilities: Probabilities) -> None:
    """Class probabilities (Z, Y, X, K) on the native grid; healthy is 1 outside the brain, and below 1 in it:
    so calibration tells them.
    """
    normalized = output.source.normalized
    brain = brain_mask(normalized.image)
    stack = np.stack([uncrop(p, normalized) for p in probabilities * brain], axis=-1)
    below_1 = 1 - uncrop(brain.view(np.uint8), normalized) * np.finfo(np.float32).epsneg
    stack[..., 0] = np.minimum(1 - stack[..., 1:].sum(axis=-1), below_1)
    path = job.probabilities_of(output.source.case)
    path.parent.mkdir(exist_ok=True)
    write_text(path.parent / CLASSES, "\n".join(job.segmenters[0].classes) + "\n")
    write_volume(path, stack, normalized.geometry, dtype="float32")


def _volumes_ml(tissue: TissueMap, geometry: Geometry, classes: Sequence[str]) -> dict[str, float]:
    """Of every region and every class but healthy, whose volume is the frame's. What is not in `tissue` is
    healthy.
    """
    voxel_ml = float(np.prod(geometry.spacing_mm)) / 1000
    counts = [np.count_nonzero(tissue == i) * voxel_ml for i in range(len(classes))]
    regions = {region: float(sum(counts[i] for i in region_classes(region, classes))) for region in REGIONS}
    return regions | {name: float(counts[i]) for i, name in enumerate(classes) if i}


def _label_dtype(case: Case) -> str:
    """The type of the case's own label, as released (2023 has float masks); uint8 where there is none."""
    if case.label is None:
        return "uint8"
    try:
        dtype = read_header(case.label.path).dtype
    except InputError:
        return "uint8"
    return dtype if np.dtype(dtype).kind in "iuf" else "uint8"


def _problem(case: Case, error: InputError) -> Problem:
    if isinstance(error, ScanError):
        return Problem("error", case.id, str(error.path), error.what, error.expected)
    return Problem("error", case.id, "", str(error).removeprefix(f"{case.id}: "))
