"""Studies with their own kind of grid (`study: novelty` or `few_shot` in the YAML): plan, run and tables.
They use the same store as the other studies.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from brats_seg.classification.bench import image_folder, open_images
from brats_seg.classification.few_shot import check_few_shot
from brats_seg.classification.image_set import Splits
from brats_seg.classification.settings import FewShotSettings, NoveltySettings, StudySettings
from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.files import write_text
from brats_seg.core.runtime import n_workers
from brats_seg.core.settings import dump_config, load_settings, load_tree, parse_settings
from brats_seg.core.tables import csv_text
from brats_seg.studies.few_shot import (
    few_shot_figures,
    few_shot_jobs,
    few_shot_rows,
    few_shot_size,
    few_shot_table,
    shorten_few_shot,
)
from brats_seg.studies.grid import Grid, GridReport, GridWorkers, run_grid
from brats_seg.studies.novelty import (
    check_novelty,
    novelty_figures,
    novelty_jobs,
    novelty_rows,
    novelty_table,
    shorten_novelty,
)
from brats_seg.studies.store import Row, read_cells
from brats_seg.studies.study import SETTINGS, duration
from brats_seg.studies.study_figures import write_figures

_MEASURED = 1 / 20
"""Share of a training that a plan measures."""
OwnGrid = NoveltySettings | FewShotSettings


@dataclass(frozen=True)
class Kind:
    """A kind of study.

    Attributes:
        settings: class of the settings in its YAML file.
        grid: knobs that determine which jobs exist. The other knobs are the same for all jobs of a store.
        jobs: settings -> jobs, each with its `method`.
        check: settings and images -> None; raises an error for settings that would fail in the middle of a
            study.
        rows: job, settings, folder of the images and device -> the rows of the job.
        table: rows -> rows of a table, and the lines of its Markdown.
        figures: rows -> figures by file name.
        shorten: settings and a share -> the settings with this share of the iterations and episodes.
        size: settings and job -> a whole number; the training time of the job is proportional to it.
    """

    settings: type[Any]
    grid: tuple[str, ...]
    jobs: Callable[[Any], Sequence[Any]]
    check: Callable[[Any, Splits], None]
    rows: Callable[..., list[Row]]
    table: Callable[[Sequence[Row]], tuple[list[Row], list[str]]]
    figures: Callable[[Sequence[Row]], Mapping[str, Figure]]
    shorten: Callable[[Any, float], Any]
    size: Callable[[Any, Any], int]


KINDS: dict[str, Kind] = {
    "novelty": Kind(
        NoveltySettings,
        ("pairs", "rho", "repeats", "methods"),
        novelty_jobs,
        check_novelty,
        novelty_rows,
        novelty_table,
        novelty_figures,
        shorten_novelty,
        lambda settings, job: 1,
    ),
    "few_shot": Kind(
        FewShotSettings,
        ("methods", "shots", "repeats"),
        few_shot_jobs,
        check_few_shot,
        few_shot_rows,
        few_shot_table,
        few_shot_figures,
        shorten_few_shot,
        few_shot_size,
    ),
}


def load_study(source: str | Path, *, overrides: tuple[str, ...] = ()) -> StudySettings | OwnGrid:
    """The settings of a study of any kind. The knob `study` names the kind. Without this knob it is a study
    of class imbalance.

    Raises:
        UsageError: as `load_settings`, or an unknown kind.
    """
    tree = load_tree(source, shelf="studies", overrides=overrides)
    if "study" not in tree:
        return parse_settings(StudySettings, tree)
    if tree["study"] not in KINDS:
        raise UsageError(
            f"study '{tree['study']}' is unknown; give one of {', '.join(KINDS)}, or leave out 'study'"
        )
    settings: OwnGrid = parse_settings(KINDS[tree["study"]].settings, tree)
    return settings


def plan_grid(
    settings: OwnGrid,
    *,
    folder: Path | None,
    store: Path | None,
    workers: int = 1,
    device: str = "cpu",
    say: Callable[[str], None] = lambda line: None,
) -> str:
    """The number of cells and the estimated time of a study, in two lines. `say` receives a line of text
    before each slow step.

    The time is measured on one cell of each method, trained for one step and for a twentieth of the steps.

    Raises:
        UsageError, InputError: the study cannot be run.
    """
    kind, where = KINDS[settings.study], image_folder(settings.images, folder)
    kind.check(settings, open_images(settings.images, where, cache=None))
    jobs = kind.jobs(settings)
    finished = read_cells(store) if store is not None else {}
    todo = [job for job in jobs if job.digest not in finished]
    if todo:
        say(f"{len(jobs):,} cells; measuring a part of a cell of each method")
    seconds = 0.0
    for method in dict.fromkeys(job.method for job in todo):
        sizes = [(kind.size(settings, job), job) for job in todo if job.method == method]
        most, largest = max(sizes, key=lambda pair: pair[0])
        fixed_s, short_s = (
            _seconds(
                partial(kind.rows, settings=kind.shorten(settings, share), folder=str(where), device=device),
                largest,
            )
            for share in (0.0, _MEASURED)
        )
        whole_s = max(0.0, short_s - fixed_s) / _MEASURED
        seconds += sum(fixed_s + whole_s * size / most for size, _ in sizes)
    n = n_workers(workers)
    return (
        f"{len(jobs):,} cells, {len(jobs) - len(todo):,} of them finished\n"
        f"{n} workers: about {duration(seconds / n / 3600)}"
    )


def _seconds(worker: Callable[[Any], list[Row]], job: Any) -> float:
    start = time.perf_counter()
    worker(job)
    return time.perf_counter() - start


def run_own_grid(
    settings: OwnGrid, out: Path, *, folder: Path | None, on: GridWorkers, part: tuple[int, int] | None = None
) -> GridReport:
    """Compute the jobs that are not in the store yet; see `run_study`.

    Raises:
        UsageError: the settings ask for more than the images allow.
        InputError: images are missing or damaged, or the store belongs to another study.
    """
    kind, where = KINDS[settings.study], image_folder(settings.images, folder)
    images = open_images(settings.images, where, cache=None)
    kind.check(settings, images)
    jobs = kind.jobs(settings)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / SETTINGS, dump_config(settings))
    tree = settings.model_dump(mode="json")
    tree["images"].pop("folder")
    shared = {name: value for name, value in tree.items() if name not in kind.grid}
    grid = Grid(
        store=out,
        identity={"image digest": images.digest, **shared},
        label=settings.study,
        on=replace(on, n=n_workers(on.n, device=on.device)),
        part=part,
    )
    rows_of = partial(kind.rows, settings=settings, folder=str(where), device=on.device)
    return run_grid(rows_of, jobs, grid)


def has_own_grid(out: Path) -> bool:
    """Whether a folder is a store of a study with a grid of its own."""
    return _kind_of(out) is not None


def write_own_table(out: Path) -> tuple[str, tuple[Path, ...]]:
    """The table of a study as Markdown, and the files it was written to. Raises `InputError` without rows."""
    rows, kind = _rows(out)
    means, lines = kind.table(rows)
    paths = (out / "table.csv", out / "table.md")
    write_text(paths[0], csv_text(means))
    text = "\n".join(lines) + "\n"
    write_text(paths[1], text)
    return text, paths


def draw_own_figures(out: Path) -> tuple[Path, ...]:
    """Draw the figures of a study into `OUT/figures`. Raises `InputError` without rows."""
    rows, kind = _rows(out)
    return write_figures(kind.figures(rows), out / "figures")


def _rows(out: Path) -> tuple[list[Row], Kind]:
    """The rows of the finished cells of the study with its present settings, and the kind of the study."""
    kind, cells = KINDS[str(_kind_of(out))], read_cells(out)
    if not cells:
        raise InputError(
            f"{out}: no finished cell of a study; `brats-seg study run CONFIG {out}` computes them"
        )
    jobs = kind.jobs(load_settings(kind.settings, out / SETTINGS))
    return [row for job in jobs for row in cells.get(job.digest, ())], kind


def _kind_of(out: Path) -> str | None:
    kind = load_tree(out / SETTINGS, shelf="studies").get("study") if (out / SETTINGS).is_file() else None
    return kind if kind in KINDS else None
