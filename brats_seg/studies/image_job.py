"""One cell of a study: a training set, a remedy, a learning rate and a run; the store keeps it as plain
values.
"""

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
        kind: kind of the distribution.
        minority: which classes are rare.
        counts: number of images of each class, for kind "given"; else None.
        repeat: number of the draw.
        rho: ratio of the largest class to the smallest class.
        mu: share of rare classes.
    """

    kind: Kind
    minority: Minority
    counts: tuple[int, ...] | None
    repeat: int
    rho: float | int
    mu: float | int | None

    @property
    def distribution(self) -> Distribution:
        """The distribution that determines the number of images of each class."""
        return Distribution(self.kind, rho=self.rho, mu=self.mu, counts=self.counts)

    @property
    def number(self) -> int:
        """A number computed from the distribution and its repeat (64 bits of a SHA-256 hash)."""
        return int.from_bytes(hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).digest()[:8])

    def row(self) -> dict[str, Any]:
        """The columns of a row of the study that describe the set."""
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
    """Everything that determines the rows of a network on images."""

    set: TrainingSet
    remedy: Remedy
    rate: float
    run: int

    @property
    def key(self) -> str:
        """The name of the job for people."""
        ratio = f" to {self.remedy.imbalance_ratio:g}" if self.remedy.imbalance_ratio != 1 else ""
        trained = f"{self.remedy.name}{ratio}, rate {self.rate:g}, run {self.run}"
        return f"{self.set}, repeat {self.set.repeat}, {trained}"

    def tree(self) -> dict[str, Any]:
        """Everything that determines the rows, as plain values."""
        knobs = self.remedy.recorded_knobs
        tree = {"set": asdict(self.set), "method": self.remedy.name, "knobs": knobs}
        # the user's own recipe file may change
        if (self.remedy.knobs.kind or self.remedy.name) not in METHODS:
            tree["recipe"] = self.remedy.recipe.model_dump(mode="json")
        return {**tree, "rate": self.rate, "run": self.run}
