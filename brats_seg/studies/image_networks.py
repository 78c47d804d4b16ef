"""The networks of a cell of a study: one network, a committee, or one network with a second training
phase.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32
from torch import nn

from brats_seg.classification.bench import (
    Bench,
)
from brats_seg.classification.boosting import (
    Weights,
    boosting_round,
    cheapest_labels,
    drawn_by_weight,
    grow_hard,
)
from brats_seg.classification.decisions import Probabilities
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
from brats_seg.classification.image_set import ImageSet
from brats_seg.classification.methods import (
    Remedy,
    cascade_goals,
    kept_by_cascade,
    synthesize,
)
from brats_seg.classification.scores import score_outputs
from brats_seg.classification.settings import StudySettings
from brats_seg.classification.source import ImageSource
from brats_seg.core.errors import UsageError
from brats_seg.core.runtime import Runtime
from brats_seg.core.sections import Sampler
from brats_seg.studies.image_job import ImageJob
from brats_seg.training.loop import Scorer
from brats_seg.training.remedies import Synthesizer
from brats_seg.training.steps import Training


@dataclass(frozen=True)
class CellNetworks:
    """The training images and settings of a cell, and the training of its networks."""

    settings: StudySettings
    bench: Bench
    runtime: Runtime
    pool: ImageSource
    job: ImageJob
    seed: int

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
                outputs = probabilities(members[-1].network, pool, runtime=self.runtime)
                own = outputs[np.arange(len(outputs)), pool.labels].astype(np.float32)
                pool = pool.restrict(
                    kept_by_cascade(
                        own, pool.labels, goal=cascade_goals(counts, round_=number, rounds=n_members)
                    )
                )
        return members

    def _finished(self, first: Fitted) -> Training[Fitted]:
        """The network after the second step of its remedy: a second training phase, or class means as the
        output layer.
        """
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
        """Train the networks one after the other. Each network gets images drawn by their weights: images
        that the networks before classified badly have larger weights.
        """
        labels, n_wrong = self.pool.labels, 0
        weights = np.full(len(labels), 1 / len(labels))
        members = []
        for number in range(1, self.job.remedy.knobs.networks + 1):
            seed = self._member_seed(number)
            pool = self._boosting_pool(weights, n_wrong=n_wrong, seed=seed)
            member = yield from self._fit(pool, self.job.remedy, seed)
            outputs = probabilities(member.network, self.pool, runtime=self.runtime)
            n_wrong = int((outputs.argmax(1) != labels).sum())
            weights, member.vote = boosting_round(outputs, labels, weights)
            members.append(member)
        return members

    def _boosting_pool(self, weights: Weights, *, n_wrong: int, seed: int) -> ImageSource:
        """The images of a boosting round. "rus_boost": each class has as many images as the rarest class.
        "smote_boost": the rare classes are complete, and SMOTE adds new images to them. "databoost_im": new
        images are made from the images of the largest weight, as many as the last network got wrong, and all
        classes get equally many images.
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
        """One network, trained on relabeled images. The networks of bootstrap samples give each image the
        label of the lowest expected cost.
        """
        of_members = []
        for number in range(1, self.job.remedy.knobs.networks + 1):
            seed = self._member_seed(number)
            drawn = np.random.default_rng(seed).integers(len(self.pool), size=len(self.pool))
            member = yield from self._fit(self.pool.restrict(drawn), self.job.remedy, seed)
            of_members.append(probabilities(member.network, self.pool, runtime=self.runtime))
        labels = cheapest_labels(np.mean(of_members, axis=0), counts=self.pool.index.counts)
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
        """The training images after resampling by the synthesizer of the remedy, in memory."""
        kind = self.job.remedy.recipe.synthesizer
        assert kind is not None
        return self._made_anew(self.pool, kind)

    def _made_anew(self, pool: ImageSource, kind: Synthesizer) -> ImageSource:
        given, neighbors = self._values(pool), self.job.remedy.knobs.neighbors
        made, labels = synthesize(kind, given, pool.labels, neighbors=neighbors, seed=self.seed % 2**32)
        return self._in_memory(made, labels, name=kind)

    def _values(self, pool: ImageSource) -> Float32[np.ndarray, "n features"]:
        """The images of a pool, one row for each image. Raises `UsageError` for images of a folder."""
        if isinstance(pool.set.images, FolderImages):
            raise UsageError(
                f"methods.{self.job.remedy.name}: searches for neighbors in memory, but images of a "
                "folder are not in memory"
            )
        return pool.values(np.arange(len(pool)))

    def _in_memory(self, values: np.ndarray, labels: np.ndarray, *, name: str) -> ImageSource:
        """Synthetic images, one row for each image, as a pool."""
        images = self.pool.set
        pixels = values.reshape(-1, *images.image_size, images.n_channels)
        made = ImageSet(f"{images.name}, {name}", pixels, labels, images.class_names, 1.0)
        return ImageSource(made, device=self.runtime.device)

    def _score(self) -> Scorer | None:
        pool, knobs = self.bench.validation, self.settings.validation
        if pool is None:
            return None

        def score(network: nn.Module) -> dict[str, float]:
            outputs = probabilities(network, pool, runtime=self.runtime)
            return {"score": validation_score(outputs, pool, score=knobs.score, of=knobs.of)}

        return score

    def _curve(self, network: nn.Module) -> dict[str, float]:
        """The accuracy, the AUC and the loss (mean cross-entropy) on the training and the test images."""
        point: dict[str, float] = {}
        for name, pool in (("train", self.pool), ("test", self.bench.parts["test"])):
            outputs = probabilities(network, pool, runtime=self.runtime)
            scores = score_outputs(outputs, pool.labels)
            loss = -validation_score(outputs, pool, score="loss", of=None)
            point |= {f"{name}_accuracy": scores.accuracy, f"{name}_auc": scores.auc, f"{name}_loss": loss}
        return point


def validation_score(outputs: Probabilities, pool: ImageSource, *, score: str, of: str | None) -> float:
    """A validation score (higher is better): minus the mean log loss, or one of the scores, of the class `of`
    or as the mean over the classes.
    """
    if score == "loss":
        own = outputs[np.arange(len(outputs)), pool.labels]
        return float(np.log(np.maximum(own, 1e-300)).mean())
    scores = score_outputs(outputs, pool.labels)
    if score in ("auc", "accuracy", "balanced_accuracy"):
        return float(getattr(scores, score))
    names = pool.class_names
    per_class = {"sensitivity": scores.recall_per_class, "f_score": scores.f_score_per_class}
    chosen = [per_class[name] for name in score.split("_and_")]
    values = [float(np.nanmean(values) if of is None else values[names.index(of)]) for values in chosen]
    return sum(values) / len(values)
