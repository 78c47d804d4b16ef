"""Episodes: a few classes and a few examples of each class, for few-shot learning."""

import numpy as np
from jaxtyping import Bool, Int64

from brats_seg.core.errors import UsageError
from brats_seg.core.shapes import Counts
from brats_seg.imbalance.index import ClassIndex
from brats_seg.imbalance.sampler import EpochPlan, Sampler

Numbers = Int64[np.ndarray, "ways examples"]
"""The number of each example within its class."""


class EpisodeSampler(Sampler):
    """Each batch contains episodes one after the other. An episode contains `ways` classes one after the
    other, and `examples` examples of each class. No class and no example occurs twice in an episode.
    """

    def __init__(
        self, index: ClassIndex, *, ways: int, examples: int, episodes: int, steps: int, seed: int
    ) -> None:
        """Draw from an index.

        Args:
            index: the examples by class.
            ways: number of classes of an episode.
            examples: number of examples of each class.
            episodes: number of episodes in a batch.
            steps: number of batches in an epoch.
            seed: seed of all draws.

        Raises:
            UsageError: there are fewer classes, or a class has fewer examples, than an episode needs.
        """
        check_episode(index.counts, index.class_names, ways=ways, examples=examples)
        self._ways, self._examples_each, self._episodes = ways, examples, episodes
        plan = EpochPlan(batch_size=episodes * ways * examples, steps=steps, seed=seed)
        shares = np.full(index.n_classes, 1 / index.n_classes)
        super().__init__(index, requested=shares, sizes=index.counts, plan=plan)

    def _steps_to_show_all(self) -> int:
        raise AssertionError("an episode is never asked to show every example")

    def _numbers(
        self, first: int, n: int, *, generator: np.random.Generator
    ) -> tuple[Int64[np.ndarray, "n b"], Int64[np.ndarray, "n b"]]:
        sizes, ways, examples = self._sizes, self._ways, self._examples_each
        chosen = [choose_classes(len(sizes), ways, generator) for _ in range(n * self._episodes)]
        numbers = [choose_numbers(sizes[classes], examples, generator) for classes in chosen]
        every = np.repeat(np.concatenate(chosen), examples)
        return every.reshape(n, -1), np.concatenate(numbers).reshape(n, -1)


def choose_classes(n_classes: int, ways: int, generator: np.random.Generator) -> Int64[np.ndarray, " ways"]:
    """Draw `ways` different classes in a random order."""
    return generator.choice(n_classes, ways, replace=False).astype(np.int64)


def choose_numbers(sizes: Counts, examples: int, generator: np.random.Generator) -> Numbers:
    """Draw `examples` different examples of each class in a random order. `sizes` is the number of examples
    of each class.
    """
    return np.array([generator.choice(size, examples, replace=False) for size in sizes.tolist()], np.int64)


def check_episode(counts: Counts, names: tuple[str, ...], *, ways: int, examples: int) -> None:
    """Raise `UsageError` if an episode needs more classes, or more examples of a class, than exist."""
    if ways > len(counts):
        raise UsageError(f"{ways} ways, but there are {len(counts)} classes ({', '.join(names[:_FEW])})")
    short: Bool[np.ndarray, " k"] = counts < examples
    if short.any():
        worst = int(np.argmin(counts))
        raise UsageError(
            f"class '{names[worst]}' has {counts[worst]} examples, but an episode needs {examples}; use "
            "fewer shots or queries"
        )


_FEW = 5  # number of class names in the message
