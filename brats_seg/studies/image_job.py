"""One cell of a study: a training set, a remedy, a rate and a run; as plain values in the store."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from brats_seg.classification.methods import METHODS, Remedy
from brats_seg.imbalance.distributions import Distribution, Kind, Minority
from brats_seg.studies.grid import Job


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """An imbalanced set of images of one repeat.

    Attributes:
        kind: of the distribution.
        minority: which classes are rare.
        counts: images of each class, of kind "given".
        repeat: number of the draw.
        rho, mu: ratio of the largest class to the smallest, and share of rare classes.
    """

    kind: Kind
    minority: Minority
    counts: tuple[int, ...] | None
    repeat: int
    rho: float | int
    mu: float | int | None

    @property
    def distribution(self) -> Distribution:
        """What decides the images of each class."""
        return Distribution(self.kind, rho=self.rho, mu=self.mu, counts=self.counts)

    @property
    def number(self) -> int:
        """A number that stands for the distribution and its repeat."""
        return int.from_bytes(hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).digest()[:8])

    def row(self) -> dict[str, Any]:
        """What a row of the study says of the set."""
        tree = asdict(self)
        tree["given"] = None if self.counts is None else list(self.counts)
        return {
            "minority_rule" if name == "minority" else name: tree[name] for name in tree if name != "counts"
        }

    def __str__(self) -> str:
        words = [f"{self.kind} rho {self.rho:g}", *([f"mu {self.mu:g}"] if self.mu else [])]
        if self.counts:
            return " ".join([*words, "-".join(map(str, self.counts))])
        return " ".join(words) + (f", {self.minority} classes rare" if self.kind != "balanced" else "")


@dataclass(frozen=True)
class ImageJob(Job):
    """What decides the rows of a network on images."""

    set: TrainingSet
    remedy: Remedy
    rate: float
    run: int

    @property
    def key(self) -> str:
        """Its name for people."""
        ratio = f" to {self.remedy.imbalance_ratio:g}" if self.remedy.imbalance_ratio != 1 else ""
        trained = f"{self.remedy.name}{ratio}, rate {self.rate:g}, run {self.run}"
        return f"{self.set}, repeat {self.set.repeat}, {trained}"

    def tree(self) -> dict[str, Any]:
        """All that decides the rows, as plain values."""
        knobs = self.remedy.recorded_knobs
        tree = {"set": asdict(self.set), "method": self.remedy.name, "knobs": knobs}
        if (self.remedy.knobs.kind or self.remedy.name) not in METHODS:  # a file of the user's own may change
            tree["recipe"] = self.remedy.recipe.model_dump(mode="json")
        return {**tree, "rate": self.rate, "run": self.run}
