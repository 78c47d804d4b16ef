"""Class counts and a time budget -> short trials of the remedies that the tables recommend, and advice which
remedy to use.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64
from pydantic import Field

from brats_seg.bank.bank import PatchBank
from brats_seg.classification.bench import open_bench, open_images
from brats_seg.classification.hold_out import inner_folds
from brats_seg.classification.image_set import Splits
from brats_seg.classification.settings import StudySettings
from brats_seg.core.comparison import FEWEST
from brats_seg.core.errors import InputError, UsageError, refuse
from brats_seg.core.files import write_text
from brats_seg.core.runtime import start_runtime
from brats_seg.core.settings import Section, dump_config, load_settings, parse_settings
from brats_seg.core.shapes import Counts
from brats_seg.scans.labels import REGIONS
from brats_seg.studies.experiment import run_experiment
from brats_seg.studies.grid import GridWorkers
from brats_seg.studies.image_cells import make_cell, time_iterations
from brats_seg.studies.strategies import ExperimentConfig
from brats_seg.studies.study import study_jobs
from brats_seg.training.steps import alone

PAGE = "advice.md"
FULL = "full.yaml"
FOLDS = 3
EPOCHS = 4
"""Number of epochs of a trial on scans. Hard examples are searched for between two epochs."""
FEWEST_STEPS = 20
MOST_STEPS = 10_000
_RESAMPLES = 1000
_SPENT = 0.75
"""Share of the budget that is planned for training. The rest is for building and scoring the networks."""
_SURE = 0.8
Scores = Float64[np.ndarray, "n m"]
"""A score of each image or case (rows) for each remedy (columns)."""


class Choice(Section):
    """The remedies to try from an imbalance ratio on, and the rows of the table that recommend them."""

    rho_from: Annotated[float, Field(ge=1)] = 1.0
    remedies: tuple[str, ...]
    rows: str


class Choices(Section):
    """The recommendations for scans or for images, by increasing imbalance ratio."""

    choices: Annotated[tuple[Choice, ...], Field(min_length=1)]


@dataclass(frozen=True)
class Tried:
    """A remedy that was tried.

    Attributes:
        name: name of the remedy.
        score: mean over the classes (images) or cases (scans).
        interval: 95 % interval, by bootstrap over images or cases.
        best: share of the resamples in which the remedy is the best.
    """

    name: str
    score: float
    interval: tuple[float, float]
    best: float


@dataclass(frozen=True)
class Advice:
    """The advice which remedy to use.

    Attributes:
        tried: the remedies, best first.
        page: the file with the advice.
        command: command of the full run.
        fewest: number of images of the rarest class, or of cases, from which the scores come, in words.
        is_few: whether these are too few to be sure.
    """

    tried: tuple[Tried, ...]
    page: Path
    command: str
    fewest: str
    is_few: bool

    def lines(self) -> list[str]:
        """Lines of text: which remedy to use, how sure this is, and the command of the full run."""
        first, second = self.tried[:2]
        sure = f"the best in {first.best:.0%} of {_RESAMPLES:,} resamples"
        run = f"Full run: {self.command}"
        if not self.is_few and first.best >= _SURE:
            return [f"Use {first.name}: {sure}.", run]
        why = f", of {self.fewest} alone" if self.is_few else f"; {second.name} is in {second.best:.0%}"
        return [f"Use {first.name}, but this is not sure: it is {sure}{why}.", run]


def recommended(wing: Literal["images", "scans"], counts: Counts) -> Choice:
    """The remedies that the tables recommend for these class counts (`configs/advice`)."""
    present = counts[counts > 0]
    rho = present.max() / present.min()
    choices = load_settings(Choices, wing, shelf="advice").choices
    return [choice for choice in choices if choice.rho_from <= rho][-1]


def advise_on_images(
    settings: StudySettings,
    folder: Path,
    out: Path,
    *,
    minutes: float,
    device: str = "cpu",
    say: Callable[[str], None] = lambda line: None,
) -> Advice:
    """Try the recommended remedies and the baseline on inner splits of the training images. The test images
    are not used.

    Args:
        settings: only `settings.images` is used.
        folder: folder of the images.
        out: folder for the page and the settings of the full run.
        minutes: time budget for everything, on one core.
        device: "cpu", "cuda" or "auto".
        say: receives a line of text before each slow step.

    Raises:
        UsageError: `minutes` is less than 1, or too short for the images.
        InputError: images are missing or damaged, or a class has only one training image.
    """
    refuse((not 1 <= minutes < inf, f"--minutes {minutes:g}: a budget of at least 1 minute"))
    start = time.monotonic()
    train = open_images(settings.images, folder, cache=None).train
    names, counts = train.class_names, train.counts
    choice, fold_of = recommended("images", counts), inner_folds(train, most=FOLDS)
    n_folds = int(fold_of.max()) + 1
    remedies = ("baseline", *(name for name in choice.remedies if name != "baseline"))
    small = _small_study(settings, remedies, train.image_size, train.n_channels)
    runtime = start_runtime(device=device, precision="float32", threads=1)
    first_ms, second_ms = time_iterations(small, Splits(train, train, None), device=device, n=10)
    jobs = study_jobs(small)
    per_step = sum(
        (job.remedy.n_networks - job.remedy.has_second_phase) * first_ms
        + job.remedy.has_second_phase * second_ms
        for job in jobs
    )
    left_s = 60 * minutes * _SPENT - (time.monotonic() - start)
    n_steps = min(MOST_STEPS, int(1e3 * left_s / (n_folds * per_step)))
    _check_steps(n_steps, minutes, needed_s=n_folds * per_step * FEWEST_STEPS / 1e3)
    out.mkdir(parents=True, exist_ok=True)
    say(f"{len(jobs)} remedies x {n_folds} inner splits, {n_steps} steps for each network")
    right: dict[str, list[np.ndarray]] = {name: [] for name in remedies}
    labels: list[np.ndarray] = []
    left_out: list[str] = []
    for fold in range(n_folds):
        parts = Splits(
            train.take(np.flatnonzero(fold_of != fold)), train.take(np.flatnonzero(fold_of == fold)), None
        )
        tree = small.model_dump(mode="json")
        tree["training"] |= {"iterations": n_steps, "seed": fold}
        one = parse_settings(StudySettings, tree)
        bench = open_bench(one, parts, runtime=runtime)
        test = bench.parts["test"]
        for job in study_jobs(one):
            if (name := job.remedy.name) not in right:
                continue
            cell = make_cell(job, settings=one, bench=bench, runtime=runtime)
            try:
                likely = cell.class_probabilities(alone(cell.train()), test)
            except (InputError, UsageError) as error:  # such as SMOTE with one image of a class
                if name == "baseline" or len(right) == 2:
                    raise
                del right[name]
                left_out.append(f"{name}: {error}")
                say(f"left out: {left_out[-1]}")
            else:
                right[name].append(likely.argmax(1) == test.labels)
        labels.append(test.labels)
    scores = np.stack([np.concatenate(found) for found in right.values()], 1).astype(np.float64)
    tried = rank_remedies(tuple(right), scores, groups=np.concatenate(labels))
    methods: dict[str, Any] = {name: {} for name in sorted({"baseline", tried[0].name})}
    tree = small.model_dump(mode="json") | {"repeats": 3, "methods": methods}
    full = parse_settings(StudySettings, tree)
    write_text(out / FULL, dump_config(full))
    command = f"brats-seg study run {out / FULL} {out / 'full'} --images {folder}"
    what = f"{len(train):,} training images, {len(names)} classes of {counts.min():,} to {counts.max():,}"
    fewest = int(counts.min())
    advice = Advice(tried, out / PAGE, command, f"{fewest} images of a class", fewest < FEWEST)
    return _write(advice, choice, what=what, score="balanced accuracy", n_steps=n_steps, left_out=left_out)


def advise_on_scans(
    bank: Path,
    out: Path,
    *,
    minutes: float,
    base: str = "unet2d_cpu",
    device: str = "cpu",
    say: Callable[[str], None] = lambda line: None,
) -> Advice:
    """Try the recommended remedies and the baseline on the inner cases of fold 0. The held-out cases of fold
    0 are not used.

    Args:
        bank: a patch bank.
        out: folder for the runs, the page and the settings of the full experiment.
        minutes: time budget for everything, on one core.
        base: name or file of the training config.
        device: "cpu", "cuda" or "auto".
        say: receives a line of text before each slow step.

    Raises:
        UsageError: `minutes` is less than 1 or too short for the scans, or the folder holds an earlier trial.
        InputError: the bank is damaged.
    """
    refuse((not 1 <= minutes < inf, f"--minutes {minutes:g}: a budget of at least 1 minute"))
    used = (out / "tried").exists()
    refuse((used, f"{out}: holds a trial of remedies already; give another folder"))
    start = time.monotonic()
    opened = PatchBank(bank, patch_size=(1, 1))
    choice = recommended("scans", opened.index.counts)
    remedies = ("baseline", *(name for name in choice.remedies if name != "baseline"))
    on = GridWorkers(n=1, device=device)
    say("timing a few steps")
    with TemporaryDirectory() as scratch:  # if the budget is too small, nothing is left in `out`
        timed = run_experiment(bank, scratch, _experiment(base, ("baseline",), FEWEST_STEPS), on=on)
        _check_run(timed.grid.failed)
        (timing,) = Path(scratch).rglob("timing.csv")
        step_s = float(pd.read_csv(timing)["training_s"].sum()) / FEWEST_STEPS
    total_s = time.monotonic() - start
    fixed_s = total_s - step_s * FEWEST_STEPS
    left_s = 60 * minutes * _SPENT - total_s
    n_steps = min(MOST_STEPS, int((left_s / len(remedies) - fixed_s) / step_s)) // EPOCHS * EPOCHS
    needed_s = total_s + len(remedies) * (fixed_s + FEWEST_STEPS * step_s)
    _check_steps(n_steps, minutes, needed_s=needed_s)
    say(f"{len(remedies)} remedies on the inner cases of fold 0, {n_steps} steps each")
    report = run_experiment(bank, out / "tried", _experiment(base, remedies, n_steps), on=on)
    _check_run(report.grid.failed)
    rows = pd.read_csv(out / "tried" / "runs.csv")
    rows = rows[rows["region"].isin(REGIONS)]
    scores = rows.pivot_table(index="case", columns="strategy", values="dice", aggfunc="mean")
    values = scores[list(remedies)].to_numpy(np.float64)
    tried = rank_remedies(remedies, values, groups=np.zeros(len(values), np.int64))
    full = _experiment(base, sorted({"baseline", tried[0].name}), None)
    write_text(out / FULL, dump_config(full))
    command = f"brats-seg experiment {bank} {out / 'full'} --config {out / FULL}"
    what = f"{len(opened.cases)} cases, {len(values)} of them inner cases"
    advice = Advice(tried, out / PAGE, command, f"{len(values)} inner cases", len(values) < FEWEST)
    return _write(advice, choice, what=what, score="mean Dice", n_steps=n_steps)


def rank_remedies(
    remedies: Sequence[str], scores: Scores, *, groups: Int64[np.ndarray, " n"]
) -> tuple[Tried, ...]:
    """The remedies, the best mean first, each with its interval and the share of resamples in which it is the
    best.

    Args:
        remedies: names of the columns.
        scores: NaN where a case has no score.
        groups: number of the group of each row (the class of an image). The mean is taken over the groups,
            and resampling stays within a group.
    """
    generator = np.random.default_rng(0)
    means, drawn = [], []
    for group in np.unique(groups):
        members = np.nan_to_num(scores[groups == group])
        means.append(members.mean(0))
        times = generator.multinomial(len(members), np.full(len(members), 1 / len(members)), _RESAMPLES)
        drawn.append(times @ members / len(members))
    resampled = np.mean(drawn, axis=0)
    best = resampled == resampled.max(1, keepdims=True)
    shares = (best / best.sum(1, keepdims=True)).mean(0)
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    tried = [
        Tried(name, float(mean), (float(low[i]), float(high[i])), float(shares[i]))
        for i, (name, mean) in enumerate(zip(remedies, np.mean(means, axis=0), strict=True))
    ]
    return tuple(sorted(tried, key=lambda one: -one.score))


def _check_steps(n_steps: int, minutes: float, *, needed_s: float) -> None:
    if n_steps < FEWEST_STEPS:
        raise UsageError(
            f"--minutes {minutes:g}: is enough for {max(0, n_steps)} steps for each network, but fewer than "
            f"{FEWEST_STEPS} show nothing; give {ceil(needed_s / 60 / _SPENT)} minutes or more"
        )


def _check_run(failed: Sequence[tuple[str, str]]) -> None:
    if failed:
        raise InputError(f"{failed[0][0]}: {failed[0][1]}")


def _small_study(
    settings: StudySettings, remedies: Sequence[str], size: tuple[int, int], n_channels: int
) -> StudySettings:
    """A study of the remedies with a small network for images of this size."""
    small = "lenet5" if n_channels == 1 and min(size) >= 16 else "two_class"
    tree: dict[str, Any] = {
        "images": settings.images.model_dump(mode="json"), "base": None,
        "methods": {name: {"networks": 2} for name in remedies},
        "distributions": [{"kind": "natural"}],
        "network": {"name": "resnet10" if min(size) >= 64 else small},
        "optimizer": {"kind": "adam", "lr": 0.001, "weight_decay": 0.0, "schedule": "constant"},
        "training": {"batch_size": 64},
    }  # fmt: skip
    return parse_settings(StudySettings, tree)


def _experiment(base: str, remedies: Sequence[str], n_steps: int | None) -> ExperimentConfig:
    """An experiment with these remedies. Without a remedy every voxel is drawn with equal probability,
    whatever the base config says.

    Args:
        base: name or file of the training config.
        remedies: names of the remedies to compare.
        n_steps: number of steps of a trial on the inner cases of fold 0. A trial searches for hard voxels
            among as many voxels as it draws, so that the search is short. None: as in the base config, on all
            held-out folds.
    """
    natural = {"kind": "random", "first": "voxel", "healthy_share": None, "drift": "none"}
    tree: dict[str, Any] = {
        "base": base, "every": {"sampler": natural}, "against": "baseline",
        "strategies": {name: {"remedy": name} for name in remedies},
    }  # fmt: skip
    if n_steps is not None:
        tree |= {
            "every": {
                "sampler": natural,
                "training.epochs": EPOCHS, "training.steps": n_steps // EPOCHS,
                "optimizer.warmup_steps": n_steps // 10, "hard.subset": None,
                "validation": {"cases": "next_fold", "metric": "last"},
            },
            "folds": [0], "seeds": [0], "predict": {"cases": "inner"},
        }  # fmt: skip
    return parse_settings(ExperimentConfig, tree)


def _write(
    advice: Advice, choice: Choice, *, what: str, score: str, n_steps: int, left_out: Sequence[str] = ()
) -> Advice:
    use, run = advice.lines()
    rows = [
        f"| {one.name} | {one.score:.3f} | {one.interval[0]:.3f} to {one.interval[1]:.3f} | {one.best:.0%} |"
        for one in advice.tried
    ]
    lines = [
        "# Which remedy to use",
        "",
        use,
        "",
        f"Data: {what}. Each remedy was trained for {n_steps:,} steps; longer trainings may rank otherwise.",
        f"The remedies were chosen by {choice.rows}.",
        "",
        f"| remedy | {score} | 95 % interval | the best in |",
        "|---|---|---|---|",
        *rows,
        "",
        *(f"Left out: {line}\n" for line in left_out),
        "Interval and last column: from resamples of the inner images or cases. They do not show how much",
        "another training would differ.",
        "",
        run,
        "",
    ]
    write_text(advice.page, "\n".join(lines))
    return advice
