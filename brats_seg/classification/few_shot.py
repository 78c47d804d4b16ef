"""Learning from a few images of a class: episodes of unseen classes, and the accuracy of each method."""

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int64
from torch import Tensor, nn

from brats_seg.classification.fitting import Looks, fit, probabilities
from brats_seg.classification.image_set import Splits, keep_classes
from brats_seg.classification.one_class import outputs_of
from brats_seg.classification.own_loss import fit_own_loss
from brats_seg.classification.settings import FewShotSettings
from brats_seg.classification.source import ImageSource
from brats_seg.core.config import Config
from brats_seg.core.errors import UsageError
from brats_seg.core.runtime import Runtime
from brats_seg.core.sections import Sampler, Training
from brats_seg.imbalance.episodes import EpisodeSampler, check_episode, choose_classes, choose_numbers
from brats_seg.models.few_shot import (
    EpisodeNetwork,
    Matching,
    MemoryNetwork,
    Prototypical,
    make_embedding,
    n_features,
)

HEAD_STEPS, HEAD_RATE = 100, 0.01
"""Steps and learning rate for fine-tuning the output layer on the shown images."""
_AT_ONCE = 20
_SMALLEST = 16
"""Smallest side of an image in pixels for four poolings."""


class Episodes(NamedTuple):
    """Episodes of unseen classes: numbers of the classes (episodes, ways), of the shown images among the
    training images (episodes, ways, shots), and of the queries among the test images (episodes, ways,
    queries).
    """

    classes: Int64[np.ndarray, "e w"]
    shown: Int64[np.ndarray, "e w s"]
    queries: Int64[np.ndarray, "e w q"]


def seen_and_unseen(settings: FewShotSettings, splits: Splits) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the seen classes (used for training) and of the unseen classes.

    Raises:
        UsageError: no class fits a pattern, or there are fewer seen or unseen classes than an episode has
            ways.
    """
    names = splits.train.class_names
    for pattern in settings.unseen:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(f"unseen '{pattern}': is not a class; the classes are {', '.join(names[:12])}")
    unseen = tuple(n for n in names if any(fnmatchcase(n, pattern) for pattern in settings.unseen))
    seen = tuple(name for name in names if name not in unseen)
    for kind, some in (("unseen", unseen), ("seen", seen)):
        if len(some) < settings.ways:
            raise UsageError(f"ways {settings.ways}: there are {len(some)} {kind} classes; use fewer ways")
    return seen, unseen


def check_few_shot(settings: FewShotSettings, splits: Splits) -> None:
    """Raise `UsageError` for classes that do not exist, more shots or queries than a class has images, or
    images that are too small.
    """
    seen, unseen = (keep_classes(splits, names) for names in seen_and_unseen(settings, splits))
    shots, ways = max(settings.shots), settings.ways
    check_episode(unseen.train.counts, unseen.train.class_names, ways=ways, examples=shots)
    check_episode(unseen.test.counts, unseen.test.class_names, ways=ways, examples=settings.queries)
    if min(splits.train.image_size) < _SMALLEST:
        shown = " x ".join(map(str, splits.train.image_size))
        raise UsageError(f"images of {shown}: four poolings need sides of {_SMALLEST} pixels or more")
    each = shots + settings.train_queries
    check_episode(seen.train.counts, seen.train.class_names, ways=ways, examples=each)


@dataclass(frozen=True)
class FewShot:
    """The data and settings of a few-shot method.

    Attributes:
        settings: settings of the study.
        splits: all images.
        shots: number of shown images of each class.
        seed: seed of weights, draws and episodes.
        runtime: device and precision.
    """

    settings: FewShotSettings
    splits: Splits
    shots: int
    seed: int
    runtime: Runtime

    def accuracies(self, method: str) -> list[float]:
        """Accuracy of each episode, or of each draw of "oversample"."""
        if method == "oversample":
            return [self._oversampled(draw) for draw in range(self.settings.draws)]
        seen, unseen = (
            keep_classes(self.splits, names) for names in seen_and_unseen(self.settings, self.splits)
        )
        train = self._source(seen, "train")
        network = self._classifier(train) if method == "fine_tune" else self._episodic(method, train)
        embedding = network[0] if isinstance(network, nn.Sequential) else network.embedding
        features = [
            torch.from_numpy(self._features(embedding, self._source(unseen, part)))
            for part in ("train", "test")
        ]
        network.cpu()  # the features are there, and a memory network scores them with its weights
        episodes = draw_episodes(unseen, self.settings, shots=self.shots, seed=self.seed)
        right: list[float] = []
        for start in range(0, len(episodes.classes), _AT_ONCE):
            few = slice(start, start + _AT_ONCE)
            support, queries = (
                features[0][episodes.shown[few]],
                features[1][episodes.queries[few]].flatten(1, 2),
            )
            if isinstance(network, EpisodeNetwork):
                with torch.no_grad():
                    scores = network.eval().scores(support, queries)
            else:
                scores = fine_tuned(support, queries)
            truth = torch.arange(self.settings.ways).repeat_interleave(self.settings.queries)
            right += (scores.argmax(-1) == truth).double().mean(1).tolist()
        return right

    def _source(self, splits: Splits, part: str) -> ImageSource:
        return ImageSource(getattr(splits, part), device=self.runtime.device)

    def _features(self, embedding: nn.Module, pool: ImageSource) -> Float32[np.ndarray, "n f"]:
        return outputs_of(nn.Sequential(embedding), "forward", pool, runtime=self.runtime).astype(np.float32)

    def _embedding(self, images: ImageSource) -> nn.Module:
        return make_embedding(images.shape[3], width=self.settings.width)

    def _episodic(self, method: str, train: ImageSource) -> EpisodeNetwork:
        """A network trained on episodes of seen classes, with the same number of shots as in the test."""
        knobs = self.settings
        sizes = {"ways": knobs.ways, "shots": self.shots, "queries": knobs.train_queries}
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            embedding = self._embedding(train)
            if method == "memory":
                n = n_features(train.shape[1:3], width=knobs.width)
                network: EpisodeNetwork = MemoryNetwork(embedding, n_features=n, **sizes)
            else:
                network = (Prototypical if method == "prototypical" else Matching)(embedding, **sizes)
        steps = knobs.memory_iterations if method == "memory" else knobs.training.iterations
        draws = EpisodeSampler(
            train.index, ways=knobs.ways, examples=self.shots + knobs.train_queries,
            episodes=knobs.episodes_at_once, steps=steps, seed=self.seed % 2**63,
        )  # fmt: skip
        batch_size = knobs.episodes_at_once * knobs.ways * (self.shots + knobs.train_queries)
        config = self._config(iterations=steps, batch_size=batch_size)
        fit_own_loss(network, train, config, runtime=self.runtime, draws=draws)
        return network

    def _classifier(self, train: ImageSource, *, sampler: str = "random") -> nn.Sequential:
        """A classifier for the classes of a pool: an embedding and an output layer."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            n = n_features(train.shape[1:3], width=self.settings.width)
            network = nn.Sequential(self._embedding(train), nn.Linear(n, train.index.n_classes))
        budget = self.settings.training
        config = self._config(iterations=budget.iterations, batch_size=budget.batch_size, sampler=sampler)
        fit(network, train, config, runtime=self.runtime, looks=Looks())
        return network

    def _oversampled(self, draw: int) -> float:
        """Accuracy on all test images of some unseen classes, among these classes. The network was trained on
        all images of the seen classes and on the shown images of the unseen classes, with oversampling.
        """
        names, train = self.splits.train.class_names, self.splits.train
        seen, unseen = seen_and_unseen(self.settings, self.splits)
        rare = keep_classes(self.splits, unseen)
        episode = draw_episodes(rare, self.settings, shots=self.shots, seed=self.seed, first=draw, n=1)
        chosen = tuple(unseen[k] for k in episode.classes[0])
        is_rare = np.isin(train.labels, [names.index(name) for name in unseen])
        shown = np.flatnonzero(is_rare)[episode.shown[0].ravel()]
        shown_and_seen = train.take(np.sort(np.concatenate([np.flatnonzero(~is_rare), shown])))
        both = keep_classes(replace(self.splits, train=shown_and_seen, validation=None), (*seen, *chosen))
        test = self._source(both, "test")
        network = self._classifier(self._source(both, "train"), sampler="oversample")
        asked = test.restrict(np.flatnonzero(test.labels >= len(seen)))
        likely = probabilities(network, asked, runtime=self.runtime)[:, len(seen) :]
        return float((likely.argmax(1) == asked.labels - len(seen)).mean())

    def _config(self, *, iterations: int, batch_size: int, sampler: str = "random") -> Config:
        section = Sampler.model_validate({"kind": sampler})
        training = Training(epochs=iterations, steps=1, batch_size=batch_size, seed=self.seed % 2**63)
        return Config(sampler=section, optimizer=self.settings.optimizer, training=training)


def draw_episodes(
    unseen: Splits, settings: FewShotSettings, *, shots: int, seed: int, first: int = 0, n: int | None = None
) -> Episodes:
    """Episodes of unseen classes, with numbers `first` to `first` + n. All methods get the same episodes."""
    parts = [unseen.train, unseen.test]
    of_class = [[np.flatnonzero(part.labels == k) for k in range(len(part.class_names))] for part in parts]
    episodes: list[list[np.ndarray]] = []
    for number in range(first, first + (settings.episodes if n is None else n)):
        generator = np.random.Generator(np.random.Philox(key=np.array([seed, number], np.uint64)))
        classes = choose_classes(len(of_class[0]), settings.ways, generator)
        episode = [classes]
        for part, places_of, size in zip(parts, of_class, (shots, settings.queries), strict=True):
            numbers = choose_numbers(part.counts[classes], size, generator)
            episode.append(np.array([places_of[k][of] for k, of in zip(classes, numbers, strict=True)]))
        episodes.append(episode)
    return Episodes(*(np.array(values) for values in zip(*episodes, strict=True)))


def fine_tuned(support: Tensor, queries: Tensor) -> Tensor:
    """Scores (episodes, queries, ways) of output layers, one for each episode. They are trained on the
    features of the shown images (episodes, ways, shots, features). The features are not changed (Chen et al.
    2019).
    """
    n, ways, shots, width = support.shape
    weights = torch.zeros(n, ways, width, requires_grad=True)
    biases = torch.zeros(n, 1, ways, requires_grad=True)
    shown, truth = support.flatten(1, 2), torch.arange(ways).repeat_interleave(shots).expand(n, -1)
    optimizer = torch.optim.Adam([weights, biases], lr=HEAD_RATE)
    for _ in range(HEAD_STEPS):
        scores = shown @ weights.transpose(1, 2) + biases
        loss = F.cross_entropy(scores.transpose(1, 2), truth, reduction="sum") / (ways * shots)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return queries @ weights.transpose(1, 2) + biases
