"""A remedy as a study has it: the training config of each network, and what must be code."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import import_module
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from brats_seg.classification.bench import recorded
from brats_seg.classification.boosting import decontaminated
from brats_seg.classification.settings import Knobs, StudySettings
from brats_seg.core.augmentation import Augment
from brats_seg.core.config import Config
from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.sections import Mix, Network, Phases, Training, Validation
from brats_seg.core.shapes import Counts
from brats_seg.training.remedies import Recipe, Synthesizer, load_recipe, remedy_names

METHODS = remedy_names()
"""Two-phase training and the decision rules go with any of these: see `Knobs.two_phase` and `decisions`."""
_DEFAULTS = Knobs()


@dataclass(frozen=True)
class Remedy:
    """A remedy as one network (or committee) has it.

    Attributes:
        name: in the study and in its tables.
        recipe: how it trains.
        knobs: as the study gives them, one `imbalance_ratio` alone. Where they are at their defaults, what
            the recipe says holds.
    """

    name: str
    recipe: Recipe
    knobs: Knobs

    @cached_property
    def recorded_knobs(self) -> dict[str, Any]:
        """The knobs as plain values, as a store has them."""
        return dict(recorded("method", self.knobs.model_dump(mode="json")))

    @property
    def imbalance_ratio(self) -> float:
        """Majority over minority that is left after over- or undersampling."""
        return self.knobs.imbalance_ratio[0]

    @property
    def n_networks(self) -> int:
        """Networks trained, the second phase's included."""
        members = self.knobs.networks if self.recipe.committee else 1
        return members + (self.recipe.committee == "meta_cost") + self.knobs.two_phase + self.has_second_phase

    @property
    def has_second_phase(self) -> bool:
        """Whether the remedy itself trains the output layer in a second phase."""
        return self.recipe.phases is not None and self.recipe.phases.two_phase

    def config(self, settings: StudySettings, *, lr: float, seed: int) -> Config:
        """How one network is trained, as a training config whose epochs are single steps."""
        recipe, knobs, budget, looks = self.recipe, self.knobs, settings.training, settings.validation
        patience = None if looks.patience is None else looks.patience * looks.every
        deferred = {"weights_from": knobs.weights_from} if recipe.loss.weights_from else {}
        tau = self._chosen("tau", recipe.loss.tau)
        drawing = {"imbalance_ratio": self.imbalance_ratio, "allow_absent_class": True}
        return Config(
            network=Network(name=settings.network.name),
            sampler=recipe.sampler.model_copy(update=drawing),
            hard=self._chosen("hard", recipe.hard or knobs.hard),
            loss=recipe.loss.model_copy(update={**deferred, "tau": tau}),
            augment=Augment(flip=0) if recipe.augment is None else self._chosen("augment", recipe.augment),
            optimizer=settings.optimizer.model_copy(update={"lr": lr}),
            training=Training(epochs=budget.iterations, steps=1, batch_size=budget.batch_size, seed=seed),
            mix=recipe.mix or Mix(),
            phases=self._phases(budget.phase2_lr_factor),
            validation=Validation(every=looks.every, patience=patience),
        )

    def _phases(self, lr_factor: float) -> Phases:
        """The study's factor on the rate, unless the recipe has its own."""
        own = self.recipe.phases or Phases()
        factor = own.lr_factor if "lr_factor" in own.model_fields_set else lr_factor
        return own.model_copy(update={"lr_factor": factor})

    def _chosen(self, name: str, own: Any) -> Any:
        """What the study says, or what the recipe says where the study says nothing."""
        value = getattr(self.knobs, name)
        return own if value == getattr(_DEFAULTS, name) else value


def remedies(methods: Mapping[str, Knobs]) -> tuple[Remedy, ...]:
    """The study's methods, one for each reduced ratio.

    Raises:
        UsageError: an unknown kind, or knobs that it does not take.
    """
    return tuple(
        remedy(name, method.model_copy(update={"imbalance_ratio": (ratio,)}))
        for name, method in methods.items()
        for ratio in method.imbalance_ratio
    )


def remedy(name: str, knobs: Knobs) -> Remedy:
    """One method, checked. Raises `UsageError` naming the knob."""
    kind = knobs.kind or name
    if kind not in METHODS and not kind.endswith(".yaml"):
        raise UsageError(f"methods.{name}: no method '{kind}'; the names are {', '.join(METHODS)}")
    recipe = load_recipe(kind)
    if knobs.imbalance_ratio != (1.0,) and recipe.sampler.kind not in ("oversample", "undersample"):
        raise UsageError(
            f"methods.{name}.imbalance_ratio: '{kind}' takes none; oversample, undersample, perturbed_copies "
            "do"
        )
    if knobs.redraw != "never" and recipe.sampler.kind != "undersample":
        raise UsageError(f"methods.{name}.redraw: only 'undersample' has a subset to draw anew")
    one = Remedy(name, recipe, knobs)
    if knobs.two_phase and (one.has_second_phase or recipe.classifier):
        raise UsageError(f"methods.{name}.two_phase: '{kind}' has an output layer of its own already")
    if knobs.two_phase and recipe.committee:
        raise UsageError(
            f"methods.{name}.two_phase: '{kind}' is several networks; a second phase goes on from one"
        )
    return one


def check_class_sizes(remedy: Remedy, counts: Counts) -> None:
    """Raise `UsageError` where a class has fewer images than a remedy needs."""
    rarest, kind = int(counts[counts > 0].min()), remedy.recipe.synthesizer or remedy.recipe.committee or ""
    if rarest < 2 and "smote" in kind.lower():
        raise UsageError(
            f"methods.{remedy.name}: a class with 1 image has no neighbor to interpolate to; take a "
            "smaller rho"
        )


def synthesize(
    kind: Synthesizer,
    images: Float32[np.ndarray, "n features"],
    labels: Int64[np.ndarray, " n"],
    *,
    neighbors: int,
    seed: int,
) -> tuple[Float32[np.ndarray, "m features"], Int64[np.ndarray, " m"]]:
    """Training images made anew by a sampler of imbalanced-learn (Lemaitre et al. 2017); test images are no
    business of it.

    Args:
        kind: name of its class. The first three interpolate new images of the rare classes, the next two
            remove images, and generalized editing (`decontaminated`) gives images other labels.
        images, labels: of the imbalanced training set.
        neighbors: looked at; fewer where the rarest class has no more.
        seed: of its draws.

    Raises:
        UsageError: imbalanced-learn is not installed.
        InputError: a class is too small for it, or it finds no cluster.

    KMeansSMOTE interpolates within clusters of all images. Its own default takes clusters in which the rare
    class is common, and on digits with a rho of 50 there are none. Here each cluster counts in which the
    class is no rarer than the rarest class of the set. Where no cluster has enough images of the class, it
    looks at fewer neighbors.
    """
    if kind == "GeneralizedEditing":
        kept, edited = decontaminated(images, labels, neighbors=neighbors)
        return images[kept], edited
    try:
        packages = (import_module("imblearn.over_sampling"), import_module("imblearn.under_sampling"))
    except ImportError:
        raise UsageError(
            f"{kind}: imbalanced-learn is not installed; pip install 'brats-seg[imbalanced]'"
        ) from None
    rarest = int(np.bincount(labels)[np.unique(labels)].min())
    fewer = min(neighbors, rarest - 1)
    makers = {
        "SMOTE": lambda package: package.SMOTE(k_neighbors=fewer, random_state=seed).fit_resample,
        "BorderlineSMOTE": lambda package: (
            package.BorderlineSMOTE(k_neighbors=fewer, random_state=seed).fit_resample
        ),
        "KMeansSMOTE": lambda package: partial(
            _cluster_smote, package.KMeansSMOTE, neighbors=fewer, seed=seed
        ),
        "OneSidedSelection": lambda package: package.OneSidedSelection(random_state=seed).fit_resample,
        "EditedNearestNeighbours": lambda package: (
            package.EditedNearestNeighbours(n_neighbors=neighbors).fit_resample
        ),
    }
    if "SMOTE" in kind and rarest < 2:
        raise InputError(
            f"{kind}: a class with 1 image has no neighbor to interpolate to; take a smaller rho"
        )
    package = next(package for package in packages if hasattr(package, kind))
    try:
        made, of = makers[kind](package)(images, labels)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{kind}: {str(error).splitlines()[0]}") from None
    return np.asarray(made, np.float32), np.asarray(of, np.int64)


def _cluster_smote(
    maker: Any, images: np.ndarray, labels: np.ndarray, *, neighbors: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """KMeansSMOTE that finds clusters in sets with rare classes, with as many neighbors as these allow.
    Raises `RuntimeError` where no cluster has two images of a class.
    """
    share = int(np.bincount(labels)[np.unique(labels)].min()) / len(labels)
    for n in range(neighbors, 1, -1):
        with suppress(RuntimeError):
            return maker(k_neighbors=n, random_state=seed, cluster_balance_threshold=share).fit_resample(
                images, labels
            )
    last = maker(k_neighbors=1, random_state=seed, cluster_balance_threshold=share)
    return last.fit_resample(images, labels)


def kept_by_cascade(
    own: Float32[np.ndarray, " n"], labels: Int64[np.ndarray, " n"], *, goal: Counts
) -> Int64[np.ndarray, " m"]:
    """Positions that stay in BalanceCascade (Liu et al. 2009, figure 3): of each class the `goal` images the
    network knows least.

    Args:
        own: the network's probability of each image's own class.
        labels: class of each.
        goal: images of each class to keep.
    """
    order = np.argsort(own, kind="stable")
    return np.sort(np.concatenate([order[labels[order] == k][:keep] for k, keep in enumerate(goal.tolist())]))


def cascade_goals(counts: Counts, *, round_: int, rounds: int) -> Counts:
    """Images of each class after round number `round_` (from 1) of `rounds`: each falls by one factor a
    round, to the rarest in the last.

    The factor of a class is (n_min / n)^(1 / (rounds - 1)) (Liu et al. 2009, section 3.2), here for any
    number of classes.
    """
    rarest = counts[counts > 0].min()
    share = (rarest / np.maximum(counts, 1)) ** (round_ / (rounds - 1))
    return np.minimum(counts, np.maximum(rarest, np.rint(counts * share))).astype(np.int64)
