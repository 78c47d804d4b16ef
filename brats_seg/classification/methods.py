"""The remedies of a study: the training config of each network, and the methods that are code."""

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
"""Two-phase training and the decision rules can be combined with these methods; see `Knobs.two_phase` and
`decisions`.
"""
_DEFAULTS = Knobs()


@dataclass(frozen=True)
class Remedy:
    """The remedy of one network or committee.

    Attributes:
        name: name in the study and in its tables.
        recipe: recipe of the remedy.
        knobs: knobs of the study, with one `imbalance_ratio`. A knob with its default value does not change
            the recipe.
    """

    name: str
    recipe: Recipe
    knobs: Knobs

    @cached_property
    def recorded_knobs(self) -> dict[str, Any]:
        """The knobs as plain values, as in a store."""
        return dict(recorded("method", self.knobs.model_dump(mode="json")))

    @property
    def imbalance_ratio(self) -> float:
        """Size of the largest class divided by the smallest class, after over- or undersampling."""
        return self.knobs.imbalance_ratio[0]

    @property
    def n_networks(self) -> int:
        """Number of trained networks, including the second phase."""
        members = self.knobs.networks if self.recipe.committee else 1
        return members + (self.recipe.committee == "meta_cost") + self.knobs.two_phase + self.has_second_phase

    @property
    def has_second_phase(self) -> bool:
        """Whether the recipe itself has a second phase that trains the output layer."""
        return self.recipe.phases is not None and self.recipe.phases.two_phase

    def config(self, settings: StudySettings, *, lr: float, seed: int) -> Config:
        """The training config of one network. Its epochs are single steps."""
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
        """The phases with the learning rate factor of the study, unless the recipe has its own factor."""
        own = self.recipe.phases or Phases()
        factor = own.lr_factor if "lr_factor" in own.model_fields_set else lr_factor
        return own.model_copy(update={"lr_factor": factor})

    def _chosen(self, name: str, own: Any) -> Any:
        """The value of the study, or the value of the recipe if the study gives none."""
        value = getattr(self.knobs, name)
        return own if value == getattr(_DEFAULTS, name) else value


def remedies(methods: Mapping[str, Knobs]) -> tuple[Remedy, ...]:
    """The methods of a study, one for each reduced ratio.

    Raises:
        UsageError: a kind is unknown, or does not accept a knob.
    """
    return tuple(
        remedy(name, method.model_copy(update={"imbalance_ratio": (ratio,)}))
        for name, method in methods.items()
        for ratio in method.imbalance_ratio
    )


def remedy(name: str, knobs: Knobs) -> Remedy:
    """One method with checked knobs. Raises `UsageError` with the name of a wrong knob."""
    kind = knobs.kind or name
    if kind not in METHODS and not kind.endswith(".yaml"):
        raise UsageError(f"methods.{name}: '{kind}' is not a method; the names are {', '.join(METHODS)}")
    recipe = load_recipe(kind)
    if knobs.imbalance_ratio != (1.0,) and recipe.sampler.kind not in ("oversample", "undersample"):
        raise UsageError(
            f"methods.{name}.imbalance_ratio: '{kind}' does not use it; oversample, undersample, "
            "perturbed_copies do"
        )
    if knobs.redraw != "never" and recipe.sampler.kind != "undersample":
        raise UsageError(f"methods.{name}.redraw: only 'undersample' can draw a new subset")
    one = Remedy(name, recipe, knobs)
    if knobs.two_phase and (one.has_second_phase or recipe.classifier):
        raise UsageError(f"methods.{name}.two_phase: '{kind}' already replaces the output layer")
    if knobs.two_phase and recipe.committee:
        raise UsageError(f"methods.{name}.two_phase: '{kind}' is several networks; a second phase needs one")
    return one


def check_class_sizes(remedy: Remedy, counts: Counts) -> None:
    """Raise `UsageError` if a class has fewer images than a remedy needs."""
    rarest, kind = int(counts[counts > 0].min()), remedy.recipe.synthesizer or remedy.recipe.committee or ""
    if rarest < 2 and "smote" in kind.lower():
        raise UsageError(
            f"methods.{remedy.name}: a class with 1 image has no neighbor for interpolation; use a "
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
    """Training images after resampling by a method of imbalanced-learn (Lemaitre et al. 2017). Test images
    are never resampled.

    Args:
        kind: name of the class in imbalanced-learn. The first three interpolate new images of the rare
            classes, the next two remove images, and generalized editing (`decontaminated`) changes labels of
            images.
        images, labels: images and labels of the imbalanced training set.
        neighbors: number of neighbors; smaller if the rarest class has too few images.
        seed: seed of the draws.

    Raises:
        UsageError: imbalanced-learn is not installed.
        InputError: a class is too small for the method, or the method finds no cluster.

    KMeansSMOTE interpolates within clusters of all images. By default it only uses clusters in which the rare
    class is common. On digits with a rho of 50 there are no such clusters. Therefore this function uses each
    cluster in which the share of the class is at least the share of the rarest class in the set. If no
    cluster has enough images of the class, fewer neighbors are used.
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
        raise InputError(f"{kind}: a class with 1 image has no neighbor for interpolation; use a smaller rho")
    package = next(package for package in packages if hasattr(package, kind))
    try:
        made, of = makers[kind](package)(images, labels)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{kind}: {str(error).splitlines()[0]}") from None
    return np.asarray(made, np.float32), np.asarray(of, np.int64)


def _cluster_smote(
    maker: Any, images: np.ndarray, labels: np.ndarray, *, neighbors: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """KMeansSMOTE with settings that find clusters in sets with rare classes, and with as many neighbors as
    the clusters allow. Raises `RuntimeError` if no cluster has two images of a class.
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
    """Positions that BalanceCascade keeps (Liu et al. 2009, figure 3): the `goal` images of each class to
    which the network gives the lowest probability.

    Args:
        own: probability of the own class of each image.
        labels: class of each image.
        goal: number of images of each class to keep.
    """
    order = np.argsort(own, kind="stable")
    return np.sort(np.concatenate([order[labels[order] == k][:keep] for k, keep in enumerate(goal.tolist())]))


def cascade_goals(counts: Counts, *, round_: int, rounds: int) -> Counts:
    """Number of images of each class after round number `round_` (from 1) of `rounds`. In each round the
    number decreases by the same factor. In the last round it is the size of the rarest class.

    The factor of a class is (n_min / n)^(1 / (rounds - 1)) (Liu et al. 2009, section 3.2), here for any
    number of classes.
    """
    rarest = counts[counts > 0].min()
    share = (rarest / np.maximum(counts, 1)) ** (round_ / (rounds - 1))
    return np.minimum(counts, np.maximum(rarest, np.rint(counts * share))).astype(np.int64)
