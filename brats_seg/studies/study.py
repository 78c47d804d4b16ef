"""Distribution x method x seed -> one row per trained network."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
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
from brats_seg.studies.image_cells import check_cell, time_iterations, train_cells
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
"""Size on the disk of a row of ten classes, with its confusion matrix."""


@dataclass(frozen=True)
class Plan:
    """The time, memory and disk space that a study will need, estimated before the study starts.

    Attributes:
        n_sets: number of imbalanced training sets.
        n_networks: number of trained networks, including those of a second phase and of committees.
        n_cells: number of cells. A cell is a network and its second phase, or a committee.
        n_finished: number of cells that are finished in the given folder.
        by_method: number of networks of each method.
        iteration_ms: milliseconds of one iteration of a network on one thread, and of one iteration of its
            second phase; None without the images.
        hours: time for the unfinished cells with all workers; None without the images.
        workers: number of processes.
        stack: number of networks that each process trains together.
        disk_mb: size of the finished store.
        memory_mb: memory of the images of one worker; None without the images.
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
        UsageError: a method is unknown, or it does not accept a knob.
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
    """Count the networks and measure the time of a few iterations. If the images are missing, time and memory
    stay unknown.

    Images are whitened only if the store of an earlier run exists, because whitening CIFAR-10 takes a minute.
    `say` receives a line of text before each slow step.

    Raises:
        UsageError: as `run_study`, if the images exist.
        InputError: the images are damaged, or the store belongs to another study.
    """
    jobs = study_jobs(settings)
    say(f"{len(jobs):,} cells; reading the images and measuring an iteration")
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
    """Train the networks that are not in the store yet.

    Args:
        settings: settings of the study; `OUT/study.yaml` keeps a copy.
        out: folder of the store; created if it does not exist, resumed if it belongs to this study.
        folder: folder of the images, instead of the folder in the settings.
        on: the processes that train the networks.
        part: (I, N): train every N-th cell from the I-th on, and write into `OUT/part_I_of_N`. Cells that
            other parts finished are not computed again.
        say: receives a line of text before each slow step.

    Raises:
        UsageError: a method is unknown or does not accept a knob, the folder of the images is not given, or a
            class has too few images for a distribution.
        InputError: images are missing or damaged, the store belongs to another study, or the disk is full.
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
    )  # before the training, so that a killed study has its table
    n = n_workers(on.n, device=on.device)
    worker = partial(
        train_cells,
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
        lines.append(f"an iteration takes {first:.1f} ms on this machine, in a second phase {second:.1f} ms")
        together = f" with {plan.stack} networks at a time in each" if plan.stack > 1 else ""
        lines.append(f"{plan.workers} workers{together}: {duration(plan.hours)}")
    else:
        lines.append("the images are missing, so the time is unknown; give their folder: --images PATH")
    memory = f", {plan.memory_mb:,.0f} MB of images in each worker" if plan.memory_mb is not None else ""
    return "\n".join([*lines, f"{plan.disk_mb:,.1f} MB on the disk{memory}"])


def stack_size(settings: StudySettings, images: Splits | None, *, device: str) -> int:
    """How many networks each process trains together; see `StudySettings.stack`. Without the images "auto"
    means 1.
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
    """The table of a study, from the rows of all finished cells. Raises `InputError` if no cell is
    finished.
    """
    rows, settings, n_missing = _rows_and_missing(out)
    return make_table(rows, published=settings.published, n_missing=n_missing)


def draw_figures(out: Path) -> tuple[Path, ...]:
    """Draw the figures of the finished networks into `OUT/figures`. Return the files. Raises `InputError` if
    no network is finished.
    """
    rows = study_rows(out)
    return write_figures(
        {**study_figures(rows), **two_class_figures(rows, class_names=rows[0]["class_names"])},
        out / "figures",
    )


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
    """The rows of every finished cell of a study with its present settings. The rows of all parts are joined,
    and no row occurs twice.

    If the knobs of a method were changed, its cells are new cells. The rows of the old cells stay in the
    store and are not used.

    Raises:
        InputError: the folder has no finished network of a study.
    """
    return _rows_and_missing(out)[0]


def n_unfinished(out: Path) -> int:
    """How many cells of a study are not finished, in all parts together. Raises `InputError` if no cell is
    finished.
    """
    return _rows_and_missing(out)[2]


def _rows_and_missing(out: Path) -> tuple[list[Row], StudySettings, int]:
    """The rows of `study_rows`, the settings that the study keeps, and how many cells are not finished."""
    cells = read_cells(out)
    if not cells:
        raise InputError(
            f"{out}: no finished network of a study; `brats-seg study run CONFIG {out}` trains some"
        )
    if not (out / SETTINGS).is_file():
        raise InputError(f"{out / SETTINGS}: is missing; `brats-seg study run CONFIG {out}` writes it")
    settings = load_settings(StudySettings, out / SETTINGS)
    jobs = study_jobs(settings)
    rows = [row for job in jobs for row in cells.get(job.digest, ())]
    return rows, settings, sum(job.digest not in cells for job in jobs)


def _sets(distribution: Distribution, repeat: int) -> list[TrainingSet]:
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
    """Decode all files of an image folder once, before the first network of a study. Otherwise a broken file
    might be found only after days.
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
    """Raise `UsageError` for settings that would fail in the middle of a study."""
    check_study(settings, images)
    for job in jobs:
        check_cell(job, settings=settings, splits=images)


def _images_if_there(settings: StudySettings, folder: Path | None) -> Splits | None:
    """The images, not whitened; None if no folder is given or the folder does not exist."""
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
    """The memory of a worker's images, in MB. Whitened images are float32, which is four bytes for each
    value.
    """
    if images is None:
        return None
    return images.n_bytes * (1 if settings.images.preprocessing == "none" else 4) / 1e6


def _cache_mb(settings: StudySettings, images: Splits | None) -> float:
    """The disk space of the whitened images that a study keeps (float32), in MB."""
    if images is None or settings.images.preprocessing == "none":
        return 0.0
    return (
        sum(part.images.size for part in images.parts if not isinstance(part.images, FolderImages)) * 4 / 1e6
    )


def _note(key: str, rows: Sequence[Row]) -> str:
    return f"{key}: AUC {100 * rows[0]['auc']:.2f}" if rows else key


def _recipe(settings: StudySettings) -> StudySettings:
    """The settings without their grid, so that little is sent to a worker process. The job of a cell holds
    the rest.
    """
    return settings.model_copy(update={"distributions": (Distribution(kind="balanced"),), "methods": {}})
