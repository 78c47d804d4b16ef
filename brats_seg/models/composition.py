"""The best checkpoints of two stages -> the checkpoint of their cascade."""

import numpy as np

from brats_seg.core.config import Config
from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.loss import Loss
from brats_seg.core.sections import Network, Task
from brats_seg.core.settings import dump_config
from brats_seg.imbalance.priors import LOSSES_WITH_A_PRIOR
from brats_seg.models.checkpoint import Checkpoint
from brats_seg.models.trained import TrainedNetwork
from brats_seg.scans.grouping import HEALTHY, GroupKind

_TASKS: dict[str, GroupKind] = {"detector": "healthy_or_tumor", "classifier": "tumor"}
"""What each stage is trained on; its name is that of the module in `models.builders.Cascade`."""
_SHARED = {
    "bank": "bank (by its digest)",
    "fold": "fold",
    "train_cases": "training cases",
    "inner_cases": "inner cases",
    "held_out_cases": "held-out cases",
    "modalities": "modalities",
    "spacing_mm": "voxel size",
    "normalization": "normalization",
}
"""What two stages must have the same of, and what an error calls it."""

_ONE_SPLIT = "train both stages on one bank with one --fold, training.seed and validation section"


def compose_checkpoints(detector: TrainedNetwork, classifier: TrainedNetwork) -> Checkpoint:
    """Two trained stages as one checkpoint to predict with, of network `cascade` and all tissue classes.

    p(healthy) is the detector's; p(class) = (1 - p(healthy)) times the classifier's, each from the image
    alone. Both priors are composed alike; where the loss of a stage has no prior, the cascade has none. The
    classifier's training prior is near to what its loss saw and not equal: its patches are averaged over
    their own tumor voxels, which the ledger counts as if each weighed alike. What it says of the run (seed,
    schedule, precision) is the detector's, and the epoch the later of the two.

    Args:
        detector: of a run with task.classes=healthy_or_tumor.
        classifier: of a run with task.classes=tumor.

    Raises:
        UsageError: stages of another task, or of patches with another number of axes or other slices around.
        InputError: stages trained on other cases or another bank, so that together they would have seen what
            one of them held out.
    """
    paths, configs = (detector.path, classifier.path), (detector.config, classifier.config)
    first, second = detector.checkpoint, classifier.checkpoint
    for path, config, (stage, kind) in zip(paths, configs, _TASKS.items(), strict=True):
        if config.task.classes != kind:
            raise UsageError(
                f"{path}: the {stage} of a cascade is a run with task.classes={kind}; this one has "
                f"{config.task.classes}"
            )
    for name, words in _SHARED.items():
        if getattr(first, name) != getattr(second, name):
            raise InputError(f"{paths[1]}: has not the same {words} as {paths[0]}; {_ONE_SPLIT}")
    if len(configs[0].patch.size) != len(configs[1].patch.size):
        sizes = tuple(" x ".join(map(str, config.patch.size)) for config in configs)
        raise UsageError(
            f"{paths[1]}: takes patches of {sizes[1]}, {paths[0]} of {sizes[0]}; the stages need as many "
            "axes as each other"
        )
    around = [config.patch.slices_around for config in configs]
    if around[0] != around[1]:
        raise UsageError(
            f"{paths[1]}: has patch.slices_around {around[1]}, {paths[0]} {around[0]}; the stages of a "
            "cascade see the same slices"
        )
    return Checkpoint(
        weights={
            f"{stage}.{name}": value
            for stage, one in zip(_TASKS, (first, second), strict=True)
            for name, value in one.weights.items()
        },
        config=dump_config(_composed_config(*configs)),
        modalities=first.modalities,
        classes=(HEALTHY, *second.classes),
        spacing_mm=first.spacing_mm,
        normalization=first.normalization,
        bank=first.bank,
        fold=first.fold,
        train_cases=first.train_cases,
        inner_cases=first.inner_cases,
        held_out_cases=first.held_out_cases,
        effective_prior=_composed_prior(first.effective_prior, second.effective_prior),
        natural_prior=_composed_prior(first.natural_prior, second.natural_prior),
        epoch=max(first.epoch, second.epoch),
        step=0,
        score=None,
        n_threads=first.n_threads,
        precision=first.precision,
        versions=first.versions,
    )


def _composed_config(detector: Config, classifier: Config) -> Config:
    """The detector's, but for what the classifier has a say in."""
    without_prior = [
        config.loss for config in (detector, classifier) if config.loss.kind not in LOSSES_WITH_A_PRIOR
    ]
    loss = Loss(kind=without_prior[0].kind) if without_prior else Loss(outside=detector.loss.outside)
    # A case that lacks a modality is taken where both stages were trained for that.
    augment = min((detector.augment, classifier.augment), key=lambda section: section.modality_dropout)
    network = Network(name="cascade", stages=(detector.network, classifier.network))
    return detector.model_copy(update={"network": network, "task": Task(), "loss": loss, "augment": augment})


def _composed_prior(
    detector: tuple[float, ...] | None, classifier: tuple[float, ...] | None
) -> tuple[float, ...] | None:
    """(healthy, (1 - healthy) times each tumor class's)."""
    if detector is None or classifier is None:
        return None
    return (detector[0], *(detector[1] * np.array(classifier)).tolist())
