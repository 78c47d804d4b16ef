"""An opened run or packaged network. Each checkpoint file is read and hashed once."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256 as digest_of
from pathlib import Path

import numpy as np
from torch import nn

from brats_seg.core.config import Config
from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.files import TUNED, read_table, sha256
from brats_seg.core.loss import Loss
from brats_seg.core.runtime import Runtime
from brats_seg.core.sections import Network, Task
from brats_seg.core.settings import dump_config
from brats_seg.imbalance.priors import LOSSES_WITH_A_PRIOR, correct_logits, require_prior
from brats_seg.models.checkpoint import Checkpoint, load_checkpoint
from brats_seg.models.packaged import checkpoints_of, find_run, is_packaged
from brats_seg.models.restore import restore_network
from brats_seg.scans.case import Problem
from brats_seg.scans.grouping import HEALTHY, GroupKind


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """A checkpoint and the file that it was read from.

    Attributes:
        path: path of the file.
        checkpoint: content of the file: weights, priors, cases and more.
        digest: SHA-256 of the file.
    """

    path: Path
    checkpoint: Checkpoint
    digest: str

    @cached_property
    def config(self) -> Config:
        """The config of the training. Raises as `Checkpoint.parsed_config`."""
        return self.checkpoint.parsed_config()

    @property
    def has_prior(self) -> bool:
        """Whether the loss has a prior that can be corrected and the checkpoint holds this prior."""
        loss = self.config.loss
        return (
            loss.kind in LOSSES_WITH_A_PRIOR
            and loss.outside == "healthy"
            and self.checkpoint.natural_prior is not None
        )

    def restore(self, runtime: Runtime) -> nn.Module:
        """The network for prediction. Raises as `checkpoint.restore_network`."""
        return restore_network(self.checkpoint, self.path, runtime=runtime)

    def class_shift(self, strength: float) -> tuple[float, ...] | None:
        """The values that a prior correction of this strength (0 to 1) adds to the logits of each class; None
        for 0.

        The correction replaces the prior of the training by the natural prior of the training cases.

        Raises:
            UsageError: the loss has no prior, or `outside` is "ignore".
            InputError: the checkpoint is of an older version and has no priors.
        """
        if strength == 0:
            return None
        require_prior(self.config.loss.kind)
        if self.config.loss.outside == "ignore":
            # Each patch is averaged over its own brain voxels. Therefore a voxel of a patch at the edge of
            # the brain has more weight in the loss than in the ledger.
            raise UsageError(
                "--correct-priors: the run has loss.outside=ignore, so its prior is not the prior of the "
                "ledger; it needs loss.outside=healthy"
            )
        training, natural = self.checkpoint.effective_prior, self.checkpoint.natural_prior
        if training is None or natural is None:
            raise InputError(
                f"{self.path}: does not hold the priors that --correct-priors needs; train the run again"
            )
        shift = correct_logits(
            np.zeros(len(training)),
            training_prior=np.array(training),
            target_prior=np.array(natural),
            strength=strength,
        )
        return tuple(shift.tolist())


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """The best checkpoint of a run, or all checkpoints of a packaged network.

    Attributes:
        folder: folder of the run or of the packaged network.
        networks: the networks whose probabilities are averaged.
    """

    folder: Path
    networks: tuple[TrainedNetwork, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of the checkpoint, or of the digests of several checkpoints. `tuned.yaml` refers to this
        digest.
        """
        digests = [network.digest for network in self.networks]
        return digests[0] if len(digests) == 1 else digest_of("".join(digests).encode()).hexdigest()

    @property
    def held_out_cases(self) -> tuple[str, ...]:
        """Ids of the cases that every network held out. Raises `InputError` if there is no such case."""
        common, *others = (network.checkpoint.held_out_cases for network in self.networks)
        held_out = tuple(case for case in common if all(case in theirs for theirs in others))
        if not held_out:
            trained = (
                "each case was used to train at least one of its networks"
                if others
                else "was trained on every case (--fold all)"
            )
            raise InputError(f"{self.folder}: {trained}; there is no held-out case to predict")
        return held_out

    @property
    def comes_tuned(self) -> bool:
        """Whether a packaged network contains tuned settings."""
        return is_packaged(self.folder) and (self.folder / TUNED).is_file()

    def unfinished(self) -> Problem | None:
        """A warning if a run has not reached its last epoch, by its `epochs.csv`. A run that ended early
        because of its patience is finished.
        """
        table = self.folder / "epochs.csv"
        if is_packaged(self.folder) or not table.is_file():
            return None
        (network,) = self.networks
        try:
            _, rows = read_table(table)
            best = max((int(row["epoch"]) for row in rows if row["is_best"] == "1"), default=len(rows))
        except (InputError, KeyError, ValueError):
            what = "is damaged, so it is unknown whether the training is finished"
            return Problem("warning", "", str(table), what, "`brats-seg train` with --resume writes it again")
        n_done, n_epochs, patience = len(rows), network.config.n_epochs, network.config.validation.patience
        if n_done >= n_epochs or (patience is not None and n_done - best >= patience):
            return None
        what = (
            f"checkpoint of epoch {network.checkpoint.epoch} of {n_epochs}: the training has reached epoch "
            f"{n_done}"
        )
        mend = "a finished run; `brats-seg train` with --resume continues it"
        return Problem("warning", "", str(self.folder), what, mend)


def open_network(path: Path) -> TrainedNetwork:
    """Read a checkpoint file. Raises as `checkpoint.load_checkpoint`."""
    return TrainedNetwork(path, load_checkpoint(path), sha256(path))


def open_run(run: str | Path) -> TrainedRun:
    """Open a run folder, or the packaged network with this name.

    Raises:
        UsageError: neither exists.
        InputError: the checkpoint is missing or damaged.
    """
    folder = find_run(run)
    return TrainedRun(folder, tuple(map(open_network, checkpoints_of(folder))))


def initial_checkpoint(source: str | Path | None, config: Config) -> tuple[Checkpoint | None, Config]:
    """The checkpoint from which a training starts, and the config that records its SHA-256.

    `source` is a run, a packaged network or a checkpoint file; None starts without a checkpoint.

    Raises:
        UsageError: the run does not exist, or the checkpoint is not the one recorded in the config.
        InputError: the checkpoint is missing or damaged.
    """
    recorded = config.training.initial
    if source is None:
        if recorded:
            raise UsageError(
                f"training.initial: the run of this config started from the checkpoint {recorded[:12]}; "
                "give it with --from"
            )
        return None, config
    trained = open_network(Path(source) if Path(source).is_file() else checkpoints_of(find_run(source))[0])
    if recorded not in ("", trained.digest):
        raise UsageError(
            f"--from {source}: has the SHA-256 {trained.digest[:12]}; the run of the config started from "
            f"{recorded[:12]} (training.initial)"
        )
    return trained.checkpoint, config.model_copy(
        update={"training": config.training.model_copy(update={"initial": trained.digest})}
    )


def held_out_by_all(runs: Sequence[TrainedRun]) -> tuple[str, ...]:
    """Ids of the cases that every run held out. A case that one of the averaged networks used for training is
    not a held-out case. Raises `UsageError` if there is no such case.
    """
    common = runs[0].held_out_cases
    for run in runs[1:]:
        common = tuple(case for case in common if case in run.held_out_cases)
        if not common:
            raise UsageError(
                f"--held-out --also {run.folder}: has no held-out case in common with {runs[0].folder}; "
                "average runs of one fold"
            )
    return common


_TASKS: dict[str, GroupKind] = {"detector": "healthy_or_tumor", "classifier": "tumor"}
"""The task of each stage. The name of a stage is the name of its module in `models.builders.Cascade`."""
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
"""Fields that two stages must share, and their names in error messages."""

_ONE_SPLIT = "train both stages on one bank with one --fold, training.seed and validation section"


def compose_checkpoints(detector: TrainedNetwork, classifier: TrainedNetwork) -> Checkpoint:
    """Two trained stages as one checkpoint for prediction, with network `cascade` and all tissue classes.

    p(healthy) comes from the detector. p(class) is (1 - p(healthy)) times p(class) of the classifier. Each
    stage sees only the image. Both priors are combined in the same way. If the loss of a stage has no prior,
    the cascade has no prior. The training prior of the classifier is an approximation: its loss averages each
    patch over the tumor voxels of the patch, but the ledger counts all tumor voxels with equal weight. Facts
    about the run (seed, schedule, precision) come from the detector. The epoch is the later epoch of the two.

    Args:
        detector: network of a run with task.classes=healthy_or_tumor.
        classifier: network of a run with task.classes=tumor.

    Raises:
        UsageError: a stage has another task, or the stages have different numbers of patch axes or slices
            around.
        InputError: the stages were trained on different cases or banks, so a case that one stage held out may
            have trained the other stage.
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
            raise InputError(f"{paths[1]}: does not have the same {words} as {paths[0]}; {_ONE_SPLIT}")
    if len(configs[0].patch.size) != len(configs[1].patch.size):
        sizes = tuple(" x ".join(map(str, config.patch.size)) for config in configs)
        raise UsageError(
            f"{paths[1]}: uses patches of {sizes[1]}, {paths[0]} of {sizes[0]}; the stages need equal "
            "numbers of axes"
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
    """The config of the detector, with the values that depend on the classifier too."""
    without_prior = [
        config.loss for config in (detector, classifier) if config.loss.kind not in LOSSES_WITH_A_PRIOR
    ]
    loss = Loss(kind=without_prior[0].kind) if without_prior else Loss(outside=detector.loss.outside)
    # A case without one of the modalities is accepted if both stages were trained for this.
    augment = min((detector.augment, classifier.augment), key=lambda section: section.modality_dropout)
    network = Network(name="cascade", stages=(detector.network, classifier.network))
    return detector.model_copy(update={"network": network, "task": Task(), "loss": loss, "augment": augment})


def _composed_prior(
    detector: tuple[float, ...] | None, classifier: tuple[float, ...] | None
) -> tuple[float, ...] | None:
    """(share of healthy, (1 - share of healthy) times the share of each tumor class)."""
    if detector is None or classifier is None:
        return None
    return (detector[0], *(detector[1] * np.array(classifier)).tolist())
