"""One process, one thread, the images in memory once: a cell of a study -> its rows."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
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
from brats_seg.classification.boosting import (
    Weights,
    boosting_round,
    cheapest_labels,
    drawn_by_weight,
    grow_hard,
)
from brats_seg.classification.decisions import Probabilities, divide_by_prior, tune_factors, weigh_costs
from brats_seg.classification.fitting import (
    Fitted,
    Looks,
    build_network,
    fitting,
    fitting_second_phase,
    probabilities,
    take_class_means,
)
from brats_seg.classification.folder import FolderImages
from brats_seg.classification.image_set import ImageSet, Splits
from brats_seg.classification.methods import (
    Remedy,
    cascade_goals,
    check_class_sizes,
    kept_by_cascade,
    remedy,
    synthesize,
)
from brats_seg.classification.scores import auc_interval, roc_curves, score_outputs
from brats_seg.classification.settings import Knobs, StudySettings
from brats_seg.classification.source import ImageSource
from brats_seg.core.errors import UsageError
from brats_seg.core.local_engine import worker_number
from brats_seg.core.outcome import Outcome
from brats_seg.core.runtime import Runtime, start_runtime, worker_device
from brats_seg.core.sections import Sampler
from brats_seg.core.shapes import Counts, Shares
from brats_seg.imbalance.distributions import class_counts, class_order, draw_subset
from brats_seg.imbalance.index import ClassIndex
from brats_seg.models.checkpoint import library_versions
from brats_seg.studies.image_job import ImageJob
from brats_seg.studies.store import Row
from brats_seg.training.loop import Scorer
from brats_seg.training.phases import Method
from brats_seg.training.remedies import Synthesizer
from brats_seg.training.stack import train_together
from brats_seg.training.steps import Training

MOST_CONFUSION_CLASSES = 100
"""With more, a row holds no confusion matrix: 1,000 classes would take 2 MB."""
_SLOW_S = 0.5
ARGMAX = "argmax"
"""The decision for the largest probability."""
COSTS = "costs"
"""The decision of least expected cost."""

Rule = Callable[[Probabilities], Probabilities]
"""Class probabilities -> outputs of which the largest is decided for."""


@dataclass(frozen=True)
class CellWorker:
    """Jobs -> rows of each: what a process of the grid is given.

    Attributes:
        settings: of the study.
        folder: of the images.
        cache: folder for whitened images.
        device: "auto", "cpu", "cuda" or "cuda:N".
        decoders: threads that decode the images of a folder.
    """

    settings: StudySettings
    folder: str
    cache: str
    device: str = "auto"
    decoders: int = 1

    def __call__(self, jobs: tuple[ImageJob, ...]) -> list[Outcome[ImageJob, list[Row]]]:
        """Train the networks of some jobs together. `seconds` of a row are its share of their time."""
        runtime = _runtime(
            worker_device(self.device, worker=worker_number()), self.settings.network.precision
        )
        bench = _bench(self.settings.model_dump_json(), self.folder, self.cache, runtime, self.decoders)
        outcomes = train_together(
            partial(train_cell, settings=self.settings, bench=bench, runtime=runtime), jobs
        )
        for row in (row for outcome in outcomes for row in outcome.value or ()):
            row["seconds"] = round(row["seconds"] / len(jobs), 2)
        return outcomes


def make_cell(job: ImageJob, *, settings: StudySettings, bench: Bench, runtime: Runtime) -> "Cell":
    """A cell with its training set drawn.

    Sets, first weights and draws follow from the study's seed, the distribution, the repeat and the run:
    methods share them, and sets have nothing in common, so that each is a draw of its own (Buda et al. 2018,
    section 3.3.1).
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
    """Train the network (or committee) of a cell and what goes on from it; a row for each, by decision and
    part.
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
    """Raise `UsageError` where the images cannot fill a cell's set, or its method cannot do with what they
    fill it with.
    """
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
class Cell:
    """What a cell has to train with."""

    settings: StudySettings
    bench: Bench
    runtime: Runtime
    pool: ImageSource
    job: ImageJob
    seed: int

    def rows(self) -> Training[list[Row]]:
        """The rows of the method and of its second phase."""
        start = time.perf_counter()
        networks = yield from self.train()
        found = self._rows(self.job.remedy.name, networks, phase=1, seconds=time.perf_counter() - start)
        if self.job.remedy.knobs.two_phase:
            start = time.perf_counter()
            second = yield from self._second_phase(networks[0])
            found += self._rows(
                f"two_phase_{self.job.remedy.name}", [second], phase=2, seconds=time.perf_counter() - start
            )
        return found

    def train(self) -> Training[list[Fitted]]:
        """The network of the method, or the members of its committee."""
        recipe = self.job.remedy.recipe
        pool = self._synthetic() if recipe.synthesizer else self.pool
        if recipe.committee is None:
            first = yield from self._fit(pool, self.job.remedy, self.seed)
            return [(yield from self._finished(first))]
        if recipe.committee == "meta_cost":
            return [(yield from self._meta_cost())]
        if recipe.committee in ("rus_boost", "smote_boost", "databoost_im"):
            return (yield from self._boost())
        members, n_members, counts = [], self.job.remedy.knobs.networks, pool.index.counts
        undersample = recipe.model_copy(update={"sampler": Sampler(kind="undersample")})
        undersampling = replace(self.job.remedy, recipe=undersample)
        for number in range(1, n_members + 1):
            members.append((yield from self._fit(pool, undersampling, self._member_seed(number))))
            if recipe.committee == "cascade" and number < n_members:
                known = probabilities(members[-1].network, pool, runtime=self.runtime)
                own = known[np.arange(len(known)), pool.labels].astype(np.float32)
                pool = pool.restrict(
                    kept_by_cascade(
                        own, pool.labels, goal=cascade_goals(counts, round_=number, rounds=n_members)
                    )
                )
        return members

    def _finished(self, first: Fitted) -> Training[Fitted]:
        """A network after what its remedy does to the output layer."""
        remedy = self.job.remedy
        if first.has_failed:
            return first
        if remedy.has_second_phase:
            return (yield from self._second_phase(first))
        if remedy.recipe.classifier == "nearest_mean":
            config = remedy.config(self.settings, lr=self.job.rate, seed=self.seed)
            return take_class_means(first, self.pool, config, runtime=self.runtime)
        return first

    def _boost(self) -> Training[list[Fitted]]:
        """Networks one after the other, each on images drawn by how little those before know them."""
        labels, n_wrong = self.pool.labels, 0
        weights = np.full(len(labels), 1 / len(labels))
        members = []
        for number in range(1, self.job.remedy.knobs.networks + 1):
            seed = self._member_seed(number)
            pool = self._boosting_pool(weights, n_wrong=n_wrong, seed=seed)
            member = yield from self._fit(pool, self.job.remedy, seed)
            known = probabilities(member.network, self.pool, runtime=self.runtime)
            n_wrong = int((known.argmax(1) != labels).sum())
            weights, member.vote = boosting_round(known, labels, weights)
            members.append(member)
        return members

    def _boosting_pool(self, weights: Weights, *, n_wrong: int, seed: int) -> ImageSource:
        """The images of a round. In "rus_boost" each class has as many as the rarest. In "smote_boost" the
        rare classes are complete, and filled up by SMOTE. In "databoost_im" new images are made from those
        of the largest weight, as many as the network before had wrong, and all classes are drawn alike.
        """
        labels, counts = self.pool.labels, self.pool.index.counts
        if self._committee == "databoost_im":
            images, of, shares = grow_hard(
                self._values(self.pool), labels, weights, n_hard=n_wrong, seed=seed
            )
            goal = np.where(counts > 0, counts.max(), 0)
            drawn = drawn_by_weight(of, shares, goal=goal, seed=seed, again=True)
            return self._in_memory(images, of, name="hard images").restrict(drawn)
        is_smote = self._committee == "smote_boost"
        goal = counts if is_smote else np.minimum(counts, counts[counts > 0].min())
        drawn = drawn_by_weight(labels, weights, goal=goal, seed=seed, again=is_smote)
        if not is_smote:
            return self.pool.restrict(drawn)
        is_common = counts[labels] == counts.max()
        drawn = np.concatenate([drawn[is_common[drawn]], np.flatnonzero(~is_common)])
        return self._made_anew(self.pool.restrict(drawn), "SMOTE")

    def _meta_cost(self) -> Training[Fitted]:
        """One network, on images with the labels of least cost by the networks of bootstrap samples."""
        known = []
        for number in range(1, self.job.remedy.knobs.networks + 1):
            seed = self._member_seed(number)
            drawn = np.random.default_rng(seed).integers(len(self.pool), size=len(self.pool))
            member = yield from self._fit(self.pool.restrict(drawn), self.job.remedy, seed)
            known.append(probabilities(member.network, self.pool, runtime=self.runtime))
        labels = cheapest_labels(np.mean(known, axis=0), counts=self.pool.index.counts)
        return (yield from self._fit(self.pool.relabel(labels), self.job.remedy, self.seed))

    @property
    def _committee(self) -> str | None:
        return self.job.remedy.recipe.committee

    def _member_seed(self, number: int) -> int:
        return int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])

    def _fit(self, pool: ImageSource, remedy: Remedy, seed: int) -> Training[Fitted]:
        network = build_network(self.settings, pool.set, seed=seed, runtime=self.runtime)
        config = remedy.config(self.settings, lr=self.job.rate, seed=seed)
        redraw, looks = remedy.knobs.redraw, self._looks()
        return fitting(network, pool, config, redraw=redraw, runtime=self.runtime, looks=looks)

    def _second_phase(self, first: Fitted) -> Training[Fitted]:
        if first.has_failed:
            return first
        config = self.job.remedy.config(self.settings, lr=self.job.rate, seed=self.seed)
        return (
            yield from fitting_second_phase(
                first, self.pool, config, runtime=self.runtime, looks=self._looks()
            )
        )

    def _looks(self) -> Looks:
        return Looks(
            score=self._score(),
            keep=self.settings.validation.checkpoint,
            curve=self._curve,
            curve_every=self.settings.record.curve_every,
        )

    def _synthetic(self) -> ImageSource:
        """The training images made anew, in memory."""
        kind = self.job.remedy.recipe.synthesizer
        assert kind is not None
        return self._made_anew(self.pool, kind)

    def _made_anew(self, pool: ImageSource, kind: Synthesizer) -> ImageSource:
        given, neighbors = self._values(pool), self.job.remedy.knobs.neighbors
        made, labels = synthesize(kind, given, pool.labels, neighbors=neighbors, seed=self.seed % 2**32)
        return self._in_memory(made, labels, name=kind)

    def _values(self, pool: ImageSource) -> Float32[np.ndarray, "n features"]:
        """The images of a pool, one row each. Raises `UsageError` for images of a folder."""
        if isinstance(pool.set.images, FolderImages):
            raise UsageError(
                f"methods.{self.job.remedy.name}: looks for neighbors in memory; images of a folder are not "
                "there"
            )
        return pool.values(np.arange(len(pool)))

    def _in_memory(self, values: np.ndarray, labels: np.ndarray, *, name: str) -> ImageSource:
        """Images that were made, one row each, as a pool."""
        images = self.pool.set
        pixels = values.reshape(-1, *images.image_size, images.n_channels)
        made = ImageSet(f"{images.name}, {name}", pixels, labels, images.class_names, 1.0)
        return ImageSource(made, device=self.runtime.device)

    def _score(self) -> Scorer | None:
        pool, knobs = self.bench.validation, self.settings.validation
        if pool is None:
            return None

        def score(network: nn.Module) -> dict[str, float]:
            known = probabilities(network, pool, runtime=self.runtime)
            return {"score": validation_score(known, pool, score=knobs.score, of=knobs.of)}

        return score

    def _curve(self, network: nn.Module) -> dict[str, float]:
        """Accuracy, AUC and loss (mean cross-entropy) on the training and the test images."""
        point: dict[str, float] = {}
        for name, pool in (("train", self.pool), ("test", self.bench.parts["test"])):
            known = probabilities(network, pool, runtime=self.runtime)
            scores = score_outputs(known, pool.labels)
            loss = -validation_score(known, pool, score="loss", of=None)
            point |= {f"{name}_accuracy": scores.accuracy, f"{name}_auc": scores.auc, f"{name}_loss": loss}
        return point

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
        n_resamples, found = self.settings.record.auc_resamples, []
        for part, pool in parts.items():
            known = self.class_probabilities(networks, pool)
            for rule, decide in rules.items():
                outputs = decide(known)
                row = about | {"part": part, "decision": rule} | score_outputs(outputs, pool.labels).row()
                if len(counts) > MOST_CONFUSION_CLASSES:
                    del row["confusion"]
                elif n_resamples:
                    # Other rules multiply the outputs of a class by a number, which leaves the AUC as it was.
                    if rule in (ARGMAX, COSTS):
                        interval = auc_interval(outputs, pool.labels, n_resamples=n_resamples)
                    row["auc_interval95"] = interval
                if rule == ARGMAX and part == "test":
                    row["curve"] = last.curve
                if rule == ARGMAX and self.settings.record.roc:
                    row["roc"] = roc_curves(known, pool.labels)
                found.append(row)
        return found

    def _rules(self, networks: list[Fitted], counts: Counts, prior: Shares | None) -> dict[str, Rule]:
        """How classes are decided, by name."""
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
        """Of one network, or the mean of a committee. A network that diverged knows nothing: all classes
        alike.
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


def validation_score(known: Probabilities, pool: ImageSource, *, score: str, of: str | None) -> float:
    """A validation score, higher is better: minus the mean log loss, or one of the scores; of a class, or the
    mean over the classes.
    """
    if score == "loss":
        own = known[np.arange(len(known)), pool.labels]
        return float(np.log(np.maximum(own, 1e-300)).mean())
    scores = score_outputs(known, pool.labels)
    if score in ("auc", "accuracy", "balanced_accuracy"):
        return float(getattr(scores, score))
    names = pool.class_names
    per_class = {"sensitivity": scores.recall_per_class, "f_score": scores.f_score_per_class}
    asked = [per_class[name] for name in score.split("_and_")]
    values = [float(np.nanmean(values) if of is None else values[names.index(of)]) for values in asked]
    return sum(values) / len(values)


def time_iterations(
    settings: StudySettings, splits: Splits, *, device: str = "cpu", n: int = 30, stack: int = 1
) -> tuple[float, float]:
    """Milliseconds of an iteration of a network, and of one of its second phase, on a device or one thread,
    where `stack` networks are trained together: medians of `n`.

    Of a network whose iteration takes over half a second three are enough.
    """
    runtime = _runtime(device, settings.network.precision)
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
def _runtime(device: str, precision: str) -> Runtime:
    return start_runtime(device=device, precision="bf16" if precision == "bf16" else "float32", threads=1)


@lru_cache(maxsize=1)
def _bench(settings_json: str, folder: str, cache: str, runtime: Runtime, decoders: int) -> Bench:
    """Once for each process: the cells of a study follow one another."""
    settings = StudySettings.model_validate_json(settings_json)
    return open_bench(
        settings,
        open_images(settings.images, Path(folder), cache=Path(cache)),
        runtime=runtime,
        decoders=decoders,
    )
