"""Distribution x method x seed -> one row per trained network."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from brats_seg.classification.bench import (
    check_study,
    image_folder,
    open_images,
    scored_parts,
    shared_settings,
)
from brats_seg.classification.fitting import build_network
from brats_seg.classification.folder import FolderImages, broken_images
from brats_seg.classification.image_set import Splits
from brats_seg.classification.images import check_whitening
from brats_seg.classification.methods import remedies
from brats_seg.classification.settings import Distribution, StudySettings
from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.files import write_text
from brats_seg.core.runtime import Runtime, n_workers
from brats_seg.core.settings import dump_config, load_settings
from brats_seg.studies.grid import Grid, GridReport, GridWorkers, run_grid
from brats_seg.studies.image_cells import CellWorker, check_cell, time_iterations
from brats_seg.studies.image_job import ImageJob, TrainingSet
from brats_seg.studies.store import STORE, Row, check_identity, read_cells, stores
from brats_seg.studies.study_figures import study_figures, write_figures
from brats_seg.studies.study_table import StudyTable, make_table
from brats_seg.studies.two_class import two_class_figures
from brats_seg.training.stack import memory_of_one
from brats_seg.training.step import can_stack

SETTINGS = "study.yaml"
MOST_STACKED = 64
ROW_BYTES = 3000
"""A row of ten classes on the disk, with its confusion matrix."""


@dataclass(frozen=True)
class Plan:
    """What a study will take, before anything starts.

    Attributes:
        n_sets: imbalanced training sets.
        n_networks: trained networks, those of a second phase and of committees included.
        n_cells: networks and what goes on from them, computed together.
        n_finished: of the cells, in the folder that was given.
        by_method: networks of each method.
        iteration_ms: one iteration of one network on one thread, and one of its second phase; None without
            the images.
        hours: for what is left, on so many workers; None without the images.
        workers: processes.
        stack: networks that each process trains together.
        disk_mb: of the finished store.
        memory_mb: of one worker's images; None without the images.
    """

    n_sets: int
    n_networks: int
    n_cells: int
    n_finished: int
    by_method: Mapping[str, int]
    iteration_ms: tuple[float, float] | None
    hours: float | None
    workers: int
    stack: int
    disk_mb: float
    memory_mb: float | None


def study_jobs(settings: StudySettings) -> tuple[ImageJob, ...]:
    """Every job of a study: a set, a method, a learning rate and a run; the first repeat of all sets comes
    first.

    Raises:
        UsageError: a method that is none, or knobs it does not take.
    """
    repeats = max(distribution.repeats or settings.repeats for distribution in settings.distributions)
    methods = remedies(settings.methods)
    return tuple(
        ImageJob(images, remedy, rate, run)
        for repeat in range(repeats)
        for distribution in settings.distributions if repeat < (distribution.repeats or settings.repeats)
        for images in _sets(distribution, repeat)
        for remedy in methods if remedy.name in (distribution.methods or settings.methods)
        for rate in settings.search.rates or (settings.optimizer.lr,)
        for run in range(settings.search.runs)
    )  # fmt: skip


def make_plan(
    settings: StudySettings,
    *,
    folder: Path | None,
    workers: int,
    store: Path | None = None,
    device: str = "cpu",
    say: Callable[[str], None] = lambda line: None,
) -> Plan:
    """Count, and time a few iterations. Images that are not there leave time and memory unknown.

    Images are whitened only where a store was begun with them and is to be gone on with: whitening CIFAR-10
    takes a minute. `say` takes a line before anything slow.

    Raises:
        UsageError: as `run_study`, where the images are there.
        InputError: images that are damaged, or a store of another study.
    """
    jobs = study_jobs(settings)
    say(f"{len(jobs):,} cells; looking at the images and measuring an iteration")
    images = _images_if_there(settings, folder)
    if images is not None:
        check_whitening(images, settings.images.preprocessing)
        _check(jobs, settings, images)
    if store is not None and images is not None and any((one / STORE).exists() for one in stores(store)):
        folder = image_folder(settings.images, folder)
        check_identity(
            store, _identity(settings, open_images(settings.images, folder, cache=store / "images"))
        )
    finished = read_cells(store) if store is not None else {}
    todo = [job.remedy for job in jobs if not finished or job.digest not in finished]
    by_method: dict[str, int] = {}
    for remedy in (job.remedy for job in jobs):
        by_method[remedy.name] = by_method.get(remedy.name, 0) + remedy.n_networks - remedy.knobs.two_phase
        if remedy.knobs.two_phase:
            by_method[f"two_phase_{remedy.name}"] = by_method.get(f"two_phase_{remedy.name}", 0) + 1
    workers, stack = n_workers(workers, device=device), stack_size(settings, images, device=device)
    timing = time_iterations(settings, images, device=device, stack=stack) if images is not None else None
    hours = None
    if timing is not None:
        first = sum(remedy.n_networks - remedy.knobs.two_phase for remedy in todo)
        second = sum(remedy.knobs.two_phase for remedy in todo)
        hours = settings.training.iterations * (first * timing[0] + second * timing[1]) / workers / 3.6e6
    rules = (
        1
        + len(settings.decisions.priors)
        + len(settings.decisions.tuned)
        + (settings.decisions.costs is not None)
    )
    n_networks = sum(by_method.values())
    return Plan(
        n_sets=len({job.set for job in jobs}),
        n_networks=n_networks,
        n_cells=len(jobs),
        n_finished=len(jobs) - len(todo),
        by_method=by_method,
        iteration_ms=timing,
        hours=hours,
        workers=workers,
        stack=stack,
        disk_mb=n_networks * rules * len(scored_parts(settings)) * ROW_BYTES / 1e6
        + _cache_mb(settings, images),
        memory_mb=_memory_mb(settings, images),
    )


def run_study(
    settings: StudySettings,
    out: Path,
    *,
    folder: Path | None,
    on: GridWorkers,
    part: tuple[int, int] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> GridReport:
    """Train what the store does not hold yet.

    Args:
        settings: of the study; `OUT/study.yaml` keeps a copy.
        out: store; made if absent, gone on with if it is of this study.
        folder: of the images, in place of the one in the settings.
        on: who trains the networks.
        part: (I, N): every N-th cell from the I-th on, into `OUT/part_I_of_N`; what other parts finished is
            not computed again.
        say: takes a line before anything slow.

    Raises:
        UsageError: a method that is none, knobs it does not take, images without a folder, or a distribution
            that they cannot fill.
        InputError: images that are missing or damaged, a store of another study, or a full disk.
    """
    jobs = study_jobs(settings)
    where = image_folder(settings.images, folder)
    out.mkdir(parents=True, exist_ok=True)
    cache = out / "images"
    if settings.images.preprocessing != "none" and not cache.is_dir():
        say(f"whitening the images, once for all networks (a minute for CIFAR-10); they are kept in {cache}")
    images = open_images(settings.images, where, cache=cache)
    identity = _identity(settings, images)
    check_identity(out, identity)
    _check(jobs, settings, images)
    if not read_cells(out):
        _check_files(images)
    write_text(
        out / SETTINGS, dump_config(settings)
    )  # before anything is trained: a killed study has its table
    n = n_workers(on.n, device=on.device)
    worker = CellWorker(
        settings=_recipe(settings),
        folder=str(where),
        cache=str(cache),
        device=on.device,
        decoders=max(1, n_workers(0) // n),
    )
    grid = Grid(
        store=out, identity=identity, label="networks", on=replace(on, n=n), part=part,
        stack=stack_size(settings, images, device=on.device),
    )  # fmt: skip
    return run_grid(worker, jobs, grid, note=_note)


def describe(plan: Plan) -> str:
    """A plan in a few lines."""
    methods = ", ".join(f"{name} {n:,}" for name, n in plan.by_method.items())
    lines = [
        f"{plan.n_sets:,} training sets, {plan.n_networks:,} networks: {methods}",
        f"{plan.n_cells:,} cells, {plan.n_finished:,} of them finished",
    ]
    if plan.iteration_ms is not None and plan.hours is not None:
        first, second = plan.iteration_ms
        lines.append(f"an iteration takes {first:.1f} ms here and now, in a second phase {second:.1f} ms")
        together = f" with {plan.stack} networks at a time in each" if plan.stack > 1 else ""
        lines.append(f"{plan.workers} workers{together}: {duration(plan.hours)}")
    else:
        lines.append("the images are not there, so no time can be given; say where they are: --images PATH")
    memory = f", {plan.memory_mb:,.0f} MB of images in each worker" if plan.memory_mb is not None else ""
    return "\n".join([*lines, f"{plan.disk_mb:,.1f} MB on the disk{memory}"])


def stack_size(settings: StudySettings, images: Splits | None, *, device: str) -> int:
    """How many networks each process trains together; see `StudySettings.stack`. Without the images 1 stands
    for "auto".
    """
    is_on_gpu = torch.cuda.is_available() and device != "cpu"
    if settings.stack != "auto" or images is None or not is_on_gpu:
        return 1 if settings.stack == "auto" else settings.stack
    network = build_network(settings, images.train, seed=0, runtime=Runtime(torch.device("cpu")))
    if not can_stack(network):
        return 1
    image = torch.zeros(1, images.train.n_channels, *images.train.image_size)
    needed = memory_of_one(network, image, batch_size=settings.training.batch_size)
    n_bytes = torch.cuda.get_device_properties(0).total_memory
    return max(1, min(MOST_STACKED, n_bytes // 2 // needed))


def study_table(out: Path) -> StudyTable:
    """The table of a study, from all rows that are finished. Raises `InputError` where there are none."""
    rows, settings, n_missing = _rows_and_missing(out)
    return make_table(rows, published=settings.published, n_missing=n_missing)


def draw_figures(out: Path) -> tuple[Path, ...]:
    """Draw what the finished networks allow into `OUT/figures`; gives the files. Raises `InputError` where
    there are none.
    """
    rows = study_rows(out)
    return write_figures(
        {**study_figures(rows), **two_class_figures(rows, class_names=rows[0]["class_names"])},
        out / "figures",
    )


def _kept(out: Path) -> Path:
    """The settings that a study keeps."""
    if not (out / SETTINGS).is_file():
        raise InputError(f"{out / SETTINGS}: is missing; `brats-seg study run CONFIG {out}` writes it")
    return out / SETTINGS


def duration(hours: float) -> str:
    """Hours as minutes, hours or days."""
    return (
        f"{hours * 60:.0f} minutes"
        if hours < 2
        else f"{hours:.0f} hours"
        if hours < 72
        else f"{hours / 24:.0f} days"
    )


def study_rows(out: Path) -> list[Row]:
    """Rows of every finished cell that a study asks for now, those of all parts together, none twice.

    A method whose knobs were changed since is another cell; the rows of the old one stay in the store and are
    not mixed in.

    Raises:
        InputError: no study there.
    """
    return _rows_and_missing(out)[0]


def n_unfinished(out: Path) -> int:
    """How many cells of a study are not finished, all parts together. Raises `InputError` where none is."""
    return _rows_and_missing(out)[2]


def _rows_and_missing(out: Path) -> tuple[list[Row], StudySettings, int]:
    """The rows of `study_rows`, the settings that the study keeps, and how many cells are not finished."""
    cells = read_cells(out)
    if not cells:
        raise InputError(
            f"{out}: no finished network of a study; `brats-seg study run CONFIG {out}` trains some"
        )
    settings = load_settings(StudySettings, _kept(out))
    jobs = study_jobs(settings)
    rows = [row for job in jobs for row in cells.get(job.digest, ())]
    return rows, settings, sum(job.digest not in cells for job in jobs)


def _sets(distribution: Distribution, repeat: int) -> list[TrainingSet]:
    """The sets of a distribution in one repeat."""
    counts = tuple(distribution.counts) if distribution.counts else None
    kind, minority = distribution.kind, distribution.minority
    return [
        TrainingSet(kind=kind, minority=minority, counts=counts, repeat=repeat, rho=rho, mu=mu)
        for rho in distribution.rho
        for mu in distribution.mu or (None,)
    ]


def _identity(settings: StudySettings, images: Splits) -> dict[str, Any]:
    return {"images": images.digest, **shared_settings(settings)}


def _check_files(images: Splits) -> None:
    """Decode the files of an image folder once, before the first network of a study: one may be drawn after
    days only.
    """
    with ThreadPoolExecutor(n_workers(0)) as threads:
        for part in images.parts:
            broken = (
                broken_images(part.images, threads=threads) if isinstance(part.images, FolderImages) else ()
            )
            if broken:
                others = f" ({len(broken) - 1} more are broken too)" if len(broken) > 1 else ""
                raise InputError(broken[0] + others)


def _check(jobs: Sequence[ImageJob], settings: StudySettings, images: Splits) -> None:
    """Raise `UsageError` for what would fail in the middle of a study."""
    check_study(settings, images)
    for job in jobs:
        check_cell(job, settings=settings, splits=images)


def _images_if_there(settings: StudySettings, folder: Path | None) -> Splits | None:
    """The images as they lie there, not whitened; None where no folder is named, or nothing is there."""
    try:
        where = image_folder(settings.images, folder)
    except UsageError:
        return None
    return (
        open_images(settings.images.model_copy(update={"preprocessing": "none"}), where, cache=None)
        if where.exists()
        else None
    )


def _memory_mb(settings: StudySettings, images: Splits | None) -> float | None:
    """The memory of a worker's images; whitened images are float32, four bytes for each value."""
    if images is None:
        return None
    return images.n_bytes * (1 if settings.images.preprocessing == "none" else 4) / 1e6


def _cache_mb(settings: StudySettings, images: Splits | None) -> float:
    """The disk of the whitened images that a study keeps, float32."""
    if images is None or settings.images.preprocessing == "none":
        return 0.0
    return (
        sum(part.images.size for part in images.parts if not isinstance(part.images, FolderImages)) * 4 / 1e6
    )


def _note(key: str, rows: Sequence[Row]) -> str:
    return f"{key}: AUC {100 * rows[0]['auc']:.2f}" if rows else key


def _recipe(settings: StudySettings) -> StudySettings:
    """The settings without their grid, small for a process to be given: a cell's job says the rest."""
    return settings.model_copy(update={"distributions": (Distribution(kind="balanced"),), "methods": {}})
