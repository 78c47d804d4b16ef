"""A cell of a study -> its rows, computed in one process with one thread. The images are in memory once."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from brats_seg.classification.bench import (
    Bench,
    Purpose,
    config_digest,
    open_bench,
    open_images,
    part_training,
    study_seed,
)
from brats_seg.classification.decisions import Probabilities, divide_by_prior, tune_factors, weigh_costs
from brats_seg.classification.fitting import (
    Fitted,
    Looks,
    build_network,
    fitting,
    fitting_second_phase,
    probabilities,
)
from brats_seg.classification.image_set import Splits
from brats_seg.classification.methods import (
    check_class_sizes,
    remedy,
)
from brats_seg.classification.scores import auc_interval, roc_curves, score_outputs
from brats_seg.classification.settings import Knobs, StudySettings
from brats_seg.classification.source import ImageSource
from brats_seg.core.local_engine import worker_number
from brats_seg.core.outcome import Outcome
from brats_seg.core.runtime import Runtime, start_runtime, worker_device
from brats_seg.core.shapes import Counts, Shares
from brats_seg.imbalance.distributions import class_counts, class_order, draw_subset
from brats_seg.imbalance.index import ClassIndex
from brats_seg.models.checkpoint import library_versions
from brats_seg.studies.image_job import ImageJob
from brats_seg.studies.image_networks import CellNetworks
from brats_seg.studies.store import Row
from brats_seg.studies.study_table import ARGMAX
from brats_seg.training.phases import Method
from brats_seg.training.stack import train_together
from brats_seg.training.steps import Training

MOST_CONFUSION_CLASSES = 100
"""With more classes, a row holds no confusion matrix: with 1,000 classes it would need 2 MB."""
_SLOW_S = 0.5
COSTS = "costs"
"""The decision rule that chooses the class of the lowest expected cost."""

Rule = Callable[[Probabilities], Probabilities]
"""Class probabilities -> outputs; the class of the largest output is chosen."""


def train_cells(
    jobs: tuple[ImageJob, ...],
    *,
    settings: StudySettings,
    folder: str,
    cache: str,
    device: str,
    decoders: int,
) -> list[Outcome[ImageJob, list[Row]]]:
    """Train the networks of several jobs together. `seconds` of a row is the total time divided by the number
    of jobs.

    Args:
        jobs: cells of the study.
        settings: settings of the study.
        folder: folder of the images.
        cache: folder for whitened images.
        device: "auto", "cpu", "cuda" or "cuda:N".
        decoders: number of threads that decode the images of a folder.
    """
    runtime = runtime_once(device, settings.network.precision)
    bench = _bench(settings.model_dump_json(), folder, cache, runtime, decoders)
    outcomes = train_together(partial(train_cell, settings=settings, bench=bench, runtime=runtime), jobs)
    for row in (row for outcome in outcomes for row in outcome.value or ()):
        row["seconds"] = round(row["seconds"] / len(jobs), 2)
    return outcomes


def make_cell(job: ImageJob, *, settings: StudySettings, bench: Bench, runtime: Runtime) -> "Cell":
    """A cell with its training set drawn.

    Sets, first weights and draws depend only on the seed of the study, the distribution, the repeat and the
    run. Therefore all methods share them. Each set is drawn independently of the other sets (Buda et al.
    2018, section 3.3.1).
    """
    drawn = draw_subset(
        job.set.distribution,
        bench.available.labels,
        n_classes=bench.available.index.n_classes,
        most=settings.base,
        minority=job.set.minority,
        seed=study_seed(settings, Purpose.SET, job.set.number),
    )
    seed = study_seed(settings, Purpose.NETWORK, job.set.number, job.run)
    return Cell(settings, bench, runtime, bench.available.restrict(drawn.ids, seed=seed), job, seed)


def train_cell(
    job: ImageJob, *, settings: StudySettings, bench: Bench, runtime: Runtime
) -> Training[list[Row]]:
    """Train the network (or committee) of a cell and its second phase. Return one row for each of them,
    decision and part.
    """
    cell = make_cell(job, settings=settings, bench=bench, runtime=runtime)
    counts = cell.pool.index.counts
    about = {
        "images": settings.images.name,
        **job.set.row(),
        "minority": np.flatnonzero(counts < counts.max()).tolist(),
        "counts": counts.tolist(),
        "n_train": int(counts.sum()),
        "class_names": list(cell.pool.class_names[:MOST_CONFUSION_CLASSES]),
        "imbalance_ratio": job.remedy.imbalance_ratio,
        "rate": job.rate,
        "run": job.run,
        "seed": cell.seed,
        "batch_size": settings.training.batch_size,
        "network": settings.network.name,
        "precision": settings.network.precision,
        "versions": library_versions(),
        "config": config_digest(settings),
    }
    return [about | row for row in (yield from cell.rows())]


def check_cell(job: ImageJob, *, settings: StudySettings, splits: Splits) -> None:
    """Raise `UsageError` if a class has too few images for the set or for the method of a cell."""
    knobs, train = settings.validation, splits.train
    available = train.counts - knobs.held_out - knobs.per_class
    if train.patients is not None:
        left = train.labels[part_training(settings, train)[2]]
        available = np.bincount(left, minlength=len(available)).astype(np.int64)
    order = class_order(
        available,
        most=settings.base,
        minority=job.set.minority,
        seed=study_seed(settings, Purpose.SET, job.set.number),
    )
    counts = class_counts(job.set.distribution, available=available, most=settings.base, order=order)
    index = ClassIndex(
        splits.train.class_names, counts[None], part=lambda case: np.empty(0), case_ids=np.zeros(1, np.int64)
    )
    config = job.remedy.config(settings, lr=job.rate, seed=0)
    method = Method(config=config, index=index, runtime=Runtime(torch.device("cpu")), targets="images")
    method.loss_of(method.first(), epoch=config.training.epochs)
    check_class_sizes(job.remedy, counts)


@dataclass(frozen=True)
class Cell(CellNetworks):
    """The networks of a cell, and their rows."""

    def rows(self) -> Training[list[Row]]:
        """The rows of the method and of its second phase."""
        start = time.perf_counter()
        networks = yield from self.train()
        rows = self._rows(self.job.remedy.name, networks, phase=1, seconds=time.perf_counter() - start)
        if self.job.remedy.knobs.two_phase:
            start = time.perf_counter()
            second = yield from self._second_phase(networks[0])
            rows += self._rows(
                f"two_phase_{self.job.remedy.name}", [second], phase=2, seconds=time.perf_counter() - start
            )
        return rows

    def _rows(self, name: str, networks: list[Fitted], *, phase: int, seconds: float) -> list[Row]:
        last = networks[-1]
        counts = self.pool.index.counts
        about = {
            "method": name,
            "phase": phase,
            "networks": len(networks),
            "iterations": sum(fitted.iterations for fitted in networks),
            "seen": np.sum([fitted.seen for fitted in networks], axis=0).tolist(),
            "loss": last.loss,
            "diverged": last.has_failed,
            "validation": last.validation,
            "seconds": round(seconds, 2),
        }
        parts = dict(self.bench.parts) | ({"train": self.pool} if self.settings.record.train else {})
        rules = self._rules(networks, counts, last.prior)
        n_resamples, rows = self.settings.record.auc_resamples, []
        for part, pool in parts.items():
            undecided = self.class_probabilities(networks, pool)
            for rule, decide in rules.items():
                outputs = decide(undecided)
                row = about | {"part": part, "decision": rule} | score_outputs(outputs, pool.labels).row()
                if len(counts) > MOST_CONFUSION_CLASSES:
                    del row["confusion"]
                elif n_resamples:
                    # The other rules multiply the outputs of a class by a number. This does not change the
                    # AUC.
                    if rule in (ARGMAX, COSTS):
                        interval = auc_interval(outputs, pool.labels, n_resamples=n_resamples)
                    row["auc_interval95"] = interval and list(interval)
                if rule == ARGMAX and part == "test":
                    row["curve"] = last.curve
                if rule == ARGMAX and self.settings.record.roc:
                    row["roc"] = roc_curves(undecided, pool.labels)
                rows.append(row)
        return rows

    def _rules(self, networks: list[Fitted], counts: Counts, prior: Shares | None) -> dict[str, Rule]:
        """The decision rules by name."""
        knobs = self.settings.decisions
        rules: dict[str, Rule] = {ARGMAX: lambda known: known}
        priors = {"set": counts / counts.sum(), "ledger": prior}
        for name in knobs.priors:
            divisor = priors[name]
            if divisor is not None:
                rules[f"prior_{name}"] = partial(divide_by_prior, prior=divisor)
        validation = self.bench.validation
        for score in knobs.tuned if validation is not None else ():
            assert validation is not None
            factors = tune_factors(
                self.class_probabilities(networks, validation), validation.labels, score=score
            )
            rules[f"tuned_{score}"] = partial(np.multiply, factors)
        if knobs.costs is not None:
            rules[COSTS] = partial(weigh_costs, costs=np.array(knobs.costs, np.float64))
        return rules

    def class_probabilities(self, networks: list[Fitted], pool: ImageSource) -> Probabilities:
        """The class probabilities of one network, or the mean of a committee. A network that diverged gives
        all classes the same probability.
        """
        n_classes = pool.index.n_classes
        sure = [
            np.full((len(pool.labels), n_classes), 1 / n_classes)
            if fitted.has_failed
            else probabilities(fitted.network, pool, runtime=self.runtime)
            for fitted in networks
        ]
        votes = [fitted.vote for fitted in networks]
        return np.average(sure, axis=0, weights=votes) if len(sure) > 1 else sure[0]


def time_iterations(
    settings: StudySettings, splits: Splits, *, device: str = "cpu", n: int = 30, stack: int = 1
) -> tuple[float, float]:
    """Milliseconds of one iteration of a network, and of one iteration of its second phase, on a device or
    one thread. `stack` networks are trained together, and the values are medians of `n` iterations.

    If an iteration takes more than half a second, three iterations are measured.
    """
    runtime = runtime_once(device, settings.network.precision)
    every = ImageSource(splits.train, device=runtime.device)
    pool = every.restrict(np.arange(0, len(every), max(1, len(every) // 1000)))
    moments: list[float] = []

    def note_time(network: nn.Module) -> dict[str, float]:
        if runtime.device.type == "cuda":
            torch.cuda.synchronize(runtime.device)
        moments.append(time.perf_counter())
        return {}

    looks = [Looks(curve=note_time, curve_every=1), *[Looks()] * (stack - 1)]

    def first_phase(one: Looks) -> Training[Fitted]:
        network = build_network(settings, splits.train, seed=0, runtime=runtime)
        return fitting(network, pool, config, runtime=runtime, looks=one)

    def second_phase(one: Fitted) -> Training[Fitted]:
        return fitting_second_phase(one, pool, config, runtime=runtime, looks=one.looks)

    for n_steps in (min(n, 3), n):
        budget = settings.training.model_copy(update={"iterations": n_steps})
        short = settings.model_copy(update={"training": budget})
        config = remedy("baseline", Knobs()).config(short, lr=settings.optimizer.lr, seed=0)
        moments.clear()
        fitted = [outcome.unwrap() for outcome in train_together(first_phase, looks)]
        first = float(np.median(np.diff(moments)))
        if first > _SLOW_S:
            break
    moments.clear()
    train_together(second_phase, fitted)
    return 1e3 * first / stack, 1e3 * float(np.median(np.diff(moments))) / stack


@lru_cache(maxsize=1)
def runtime_once(device: str, precision: Literal["float32", "bf16"] = "float32") -> Runtime:
    """One thread of a device, once for each process: the workers take the GPUs in turn."""
    device = worker_device(device, worker=worker_number())
    return start_runtime(device=device, precision=precision, threads=1)


@lru_cache(maxsize=1)
def _bench(settings_json: str, folder: str, cache: str, runtime: Runtime, decoders: int) -> Bench:
    """The images of a study, opened once in each process."""
    settings = StudySettings.model_validate_json(settings_json)
    return open_bench(
        settings,
        open_images(settings.images, Path(folder), cache=Path(cache)),
        runtime=runtime,
        decoders=decoders,
    )
