"""Case + network -> label map on the native grid."""

import hashlib
import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from brats_seg.bank.normalize import uncrop
from brats_seg.core.errors import InputError, UsageError, is_out_of_memory
from brats_seg.core.progress import track
from brats_seg.core.shapes import Image, TissueMap
from brats_seg.inference.decisions import Cleanup, RegionThresholds, clean_up, cut_regions
from brats_seg.inference.dense import SLICES, Probabilities, brain_mask
from brats_seg.inference.intake import Intake, take_in
from brats_seg.inference.options import PredictOptions
from brats_seg.inference.outcome import Prediction, PredictReport
from brats_seg.inference.outputs import add_row, label_dtype, rebuild_table, volumes_ml, write_probabilities
from brats_seg.inference.segmenter import Segmenter, fitting, goes_by_slices, segment_crop
from brats_seg.inference.threads import computing_threads
from brats_seg.scans.case import Case, Problem, RefusedError, problem_of
from brats_seg.scans.labels import SCHEMAS, from_tissue, schema_named
from brats_seg.scans.predictions import PROBABILITIES
from brats_seg.scans.volume import SUFFIXES, write_label_map

DEFAULT_SCHEMA, CAVITY_SCHEMA = "brats2023", "brats2024gli"
"""The label schemas of cases without a known one; the second for networks with a resection cavity."""

_MOST_CASES = 6  # at a time: each takes 0.1 GB while it is read


@runtime_checkable
class Elsewhere(Protocol):
    """Other processes, which segment the unfinished cases."""

    def settings(self) -> str:
        """`settings_digest` in those processes, whose arithmetic may differ from this one's."""

    def segment(self, cases: Sequence[Case]) -> Sequence[Prediction | Problem]:
        """The outcome of each case, in the order of the cases."""


def settings_digest(segmenters: Sequence[Segmenter], *, options: PredictOptions) -> str:
    """The value of the column `settings` of predictions.csv for these networks and options."""
    return _Job(fitting(segmenters), Path(), options).settings


def predict_cases(
    segmenters: Sequence[Segmenter],
    cases: Sequence[Case],
    *,
    out: Path,
    options: PredictOptions = PredictOptions(),
    problems: Sequence[Problem] = (),
    elsewhere: Elsewhere | None = None,
) -> PredictReport:
    """Segment cases into `OUT/<case>.nii.gz`, in the label values, grid and data type of each case; and write
    `predictions.csv` and `labels.txt`.

    A case of an unknown label schema gets the values of `DEFAULT_SCHEMA`; `predictions.csv` says so.

    While one case is computed, the next are read and the previous are written. A case that cannot be
    segmented is reported as a problem; the others are segmented.

    Args:
        segmenters: one, or several whose probabilities are averaged.
        cases: ids must differ; labels are not read.
        out: created if it does not exist.
        options: how each case is read, segmented and written. The other options were used to load the
            segmenters.
        problems: already known from finding the cases; reported with the others.
        elsewhere: segments the unfinished cases in other processes; None segments them in this process.

    Raises:
        UsageError: no segmenter, or segmenters that cannot be averaged.
    """
    job = _Job(fitting(segmenters), out, options)
    cases = [replace(case, schema=job.schema_of(case)) for case in cases]
    out.mkdir(parents=True, exist_ok=True)
    settings = job.settings if elsewhere is None else elsewhere.settings()
    alike = {row["case"] for row in rebuild_table(out) if row.get("settings") == settings}
    skipped = [c.id for c in cases if options.skip_finished and c.id in alike and _is_finished(job, c)]
    first_of: dict[str, Case] = {}
    twins = []
    for case in cases:
        if case.id in first_of:
            twins.append(
                Problem("error", case.id, str(case.folder), "a second case of this id", "ids that differ")
            )
        else:
            first_of[case.id] = case
    todo = [case for case in first_of.values() if case.id not in skipped]
    if elsewhere is not None:
        finished = list(elsewhere.segment(todo))
    else:
        # The generator is closed however the loop ends: a traceback would keep its threads alive.
        with closing(_pipelined(job, todo)) as results:
            finished = list(track(results, total=len(todo), label="segmenting", line=describe_result))
    rebuild_table(out)  # until here the rows are in the order in which the cases were finished
    return _report([*finished, *twins], skipped=skipped, problems=problems)


def segment_case(
    segmenters: Sequence[Segmenter], case: Case, *, out: Path, options: PredictOptions
) -> Prediction | Problem:
    """Segment one case as `predict_cases` does, without the state of the other cases."""
    (result,) = _pipelined(_Job(fitting(segmenters), out, options), [case])
    return result


def predict_one(
    segmenters: Sequence[Segmenter],
    case: Case,
    *,
    out: Path,
    options: PredictOptions = PredictOptions(),
) -> PredictReport:
    """Segment one case into the label map `out` itself, and write nothing else. Otherwise as
    `predict_cases`.
    """
    if not out.name.endswith(SUFFIXES):
        raise UsageError(f"{out}: its name must end in one of {', '.join(SUFFIXES)}")
    job = _Job(fitting(segmenters), out.parent, options, single=out)
    out.parent.mkdir(parents=True, exist_ok=True)
    return _report(list(_pipelined(job, [replace(case, schema=job.schema_of(case))])))


def _report(
    finished: Sequence[Prediction | Problem], *, skipped: Sequence[str] = (), problems: Sequence[Problem] = ()
) -> PredictReport:
    return PredictReport(
        tuple(result for result in finished if isinstance(result, Prediction)),
        tuple(skipped),
        (*problems, *(result for result in finished if isinstance(result, Problem))),
    )


def describe_result(result: Prediction | Problem) -> str:
    """The text of a case in a log."""
    if isinstance(result, Problem):
        return f"{result.case} refused"
    return f"{result.case}, {result.seconds:.1f} s"


@dataclass(frozen=True)
class _Job:
    """Everything that is the same for all cases: networks, output folder, options; and the path of the label
    map if only one is written.
    """

    segmenters: tuple[Segmenter, ...]
    out: Path
    options: PredictOptions
    single: Path | None = None

    def schema_of(self, case: Case) -> str:
        """The label schema that a case is written in: its own. If it is unknown, or lacks a value for a class
        of the networks: the first default that has all classes.
        """
        classes = self.segmenters[0].classes
        first = CAVITY_SCHEMA if "resection_cavity" in classes else DEFAULT_SCHEMA
        names = (*([case.schema] if case.schema else []), first, *SCHEMAS)
        return next((name for name in names if schema_named(name).writes(classes)), first)

    @property
    def thresholds(self) -> RegionThresholds | None:
        """None where no region has a threshold: then class probabilities need not be computed."""
        thresholds = self.options.settings.thresholds
        return None if thresholds == RegionThresholds() else thresholds

    @cached_property
    def settings(self) -> str:
        """Digest of everything that label maps depend on except the scans: the networks, their arithmetic and
        the options. The name of the precision says whether a GPU multiplies by TF32.
        """
        networks = [
            (s.checkpoint, s.window, s.inference, s.class_shift, _arithmetic(s)) for s in self.segmenters
        ]
        options = self.options
        used = repr((
            networks, options.precision, options.mirroring, self.thresholds, options.settings.cleanup,
            options.resample, options.allow_missing,
        ))  # fmt: skip
        return hashlib.sha256(used.encode()).hexdigest()[:12]

    @property
    def needs_probabilities(self) -> bool:
        """Whether class probabilities are computed too."""
        return self.options.save_probabilities or self.thresholds is not None

    def path_of(self, case: Case) -> Path:
        return self.single or self.out / f"{case.id}{self.options.suffix}"

    def probabilities_of(self, case: Case) -> Path:
        return self.out / PROBABILITIES / f"{case.id}.nii.gz"


def _arithmetic(segmenter: Segmenter) -> list[str]:
    """Types of numbers and kinds of device: bfloat16 and float32, or a CPU and a GPU, do not give the same
    label maps.
    """
    return sorted({f"{p.dtype} {p.device.type}" for p in segmenter.network.parameters()})


def _is_finished(job: _Job, case: Case) -> bool:
    """Whether all files of a case exist: a process may have been killed after writing some."""
    return job.path_of(case).is_file() and (
        not job.options.save_probabilities or job.probabilities_of(case).is_file()
    )


def _pipelined(job: _Job, cases: Sequence[Case]) -> Generator[Prediction | Problem, None, None]:
    """Read, compute and write several cases at a time, results in their order; the slices of earlier cases
    are computed first.
    """
    n_cores = torch.get_num_threads()

    def segment(case: Case) -> Prediction | Problem:
        try:
            start = time.perf_counter()
            source = take_in(case, job.segmenters[0], options=job.options, target=job.path_of(case))
            read_s = time.perf_counter() - start
            labels, probabilities, computed_s = _compute(job, source, computers, n_parts=n_computers)
            with writing:  # the table and the label lists are shared by all cases
                return _write(job, source, labels, probabilities, seconds=read_s + computed_s)
        except RefusedError as error:
            return error.problem
        except InputError as error:
            return problem_of(error, case.id)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return _too_large(job, case)

    writing = threading.Lock()
    n_computers = n_cores if goes_by_slices(job.segmenters) else 1
    networks = [s.network for s in job.segmenters]
    # The computing threads end first: unfinished cases wait for them.
    with (
        ThreadPoolExecutor(min(1 + n_cores, _MOST_CASES, max(len(cases), 1))) as pool,
        computing_threads(networks, n=n_computers) as computers,
    ):
        yield from pool.map(segment, cases)


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


def _compute(
    job: _Job, source: Intake, computers: Executor, *, n_parts: int
) -> tuple[TissueMap, Probabilities | None, float]:
    """The label map of a crop, its class probabilities if saved, and the computing time in seconds."""
    image, first, cleanup = source.normalized.image, job.segmenters[0], job.options.settings.cleanup
    groups = [slice(z, z + SLICES) for z in range(0, len(image), SLICES)] if n_parts > 1 else [None]
    parts = list(computers.map(partial(_segment, job, image), groups))
    label_parts, probability_parts, starts, ends = zip(*parts, strict=True)
    labels = np.concatenate(label_parts)
    probabilities = np.concatenate(probability_parts, axis=1) if job.needs_probabilities else None
    if job.thresholds is not None and probabilities is not None:
        cut = cut_regions(labels, probabilities, classes=first.classes, thresholds=job.thresholds)
        labels = np.where(brain_mask(image), cut, np.uint8(0))
    if cleanup != Cleanup():
        labels = clean_up(
            labels, classes=first.classes, spacing_mm=source.normalized.spacing_mm, cleanup=cleanup
        )
    return labels, probabilities if job.options.save_probabilities else None, max(ends) - min(starts)


def _segment(
    job: _Job, image: Image, slices: slice | None
) -> tuple[TissueMap, Probabilities | None, float, float]:
    """Segment the wanted slices of a crop, or all; also returns the times of the start and the end. Each
    group gets the whole crop, because a network may see neighboring slices.
    """
    start = time.perf_counter()
    labels, probabilities = segment_crop(
        job.segmenters,
        image,
        slices=slices,
        mirroring=job.options.mirroring,
        with_probabilities=job.needs_probabilities,
    )
    return labels, probabilities, start, time.perf_counter()


def _write(
    job: _Job, source: Intake, labels: TissueMap, probabilities: Probabilities | None, *, seconds: float
) -> Prediction:
    start = time.perf_counter()
    case, normalized, classes = source.case, source.normalized, job.segmenters[0].classes
    path = job.path_of(case)
    try:
        values = uncrop(from_tissue(labels, schema_named(case.schema), classes), normalized)
        write_label_map(path, values, normalized.geometry, dtype=label_dtype(case))
        if probabilities is not None:
            write_probabilities(job.probabilities_of(case), probabilities, normalized, classes=classes)
        same_grid = normalized.spacing_mm == normalized.geometry.spacing_mm
        tissue = labels if same_grid else uncrop(labels, normalized)
        ml = volumes_ml(tissue, normalized.geometry, classes)
        seconds += time.perf_counter() - start
        if job.single is None:
            row: dict[str, str | float] = {
                "case": case.id,
                "file": path.name,
                "schema": case.schema,
                "seconds": round(seconds, 3),
                "settings": job.settings,
            }
            row |= {f"{name}_ml": round(volume, 3) for name, volume in ml.items()}
            add_row(job.out, row | {"warnings": "; ".join(source.warnings)})
    except OSError as error:
        what = f"cannot be written: {error.strerror or error}"
        raise RefusedError(Problem("error", case.id, str(path), what, "a folder with room")) from None
    return Prediction(case.id, path, seconds, ml, source.warnings)
