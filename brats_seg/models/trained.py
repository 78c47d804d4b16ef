"""A trained run or a packaged network, opened: each checkpoint file is read and hashed once."""

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
        path: of the file.
        checkpoint: weights, priors, cases and the rest.
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
        """Whether the loss has a prior that can be corrected, and the checkpoint holds it."""
        loss = self.config.loss
        return (
            loss.kind in LOSSES_WITH_A_PRIOR
            and loss.outside == "healthy"
            and self.checkpoint.natural_prior is not None
        )

    def restore(self, runtime: Runtime) -> nn.Module:
        """The network to predict with. Raises as `checkpoint.restore_network`."""
        return restore_network(self.checkpoint, self.path, runtime=runtime)

    def class_shift(self, strength: float) -> tuple[float, ...] | None:
        """What a prior correction of this strength (0 to 1) adds to the logits of each class; None for 0.

        It leads from the prior that the network was trained under to the natural one of its cases.

        Raises:
            UsageError: a loss without a prior, or with `outside` "ignore".
            InputError: a checkpoint of an older version, without the priors.
        """
        if strength == 0:
            return None
        require_prior(self.config.loss.kind)
        if self.config.loss.outside == "ignore":
            # Each patch is averaged over its own brain voxels: those of patches at the brain's edge weigh
            # more than the ledger counts them.
            raise UsageError(
                "--correct-priors: the run has loss.outside=ignore, so its prior is not the ledger's; it "
                "needs loss.outside=healthy"
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
        folder: of the run or of the packaged network.
        networks: whose probabilities are averaged.
    """

    folder: Path
    networks: tuple[TrainedNetwork, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of the checkpoint, or of the digests of several; what `tuned.yaml` names."""
        digests = [network.digest for network in self.networks]
        return digests[0] if len(digests) == 1 else digest_of("".join(digests).encode()).hexdigest()

    @property
    def held_out_cases(self) -> tuple[str, ...]:
        """Ids of the cases that every network held out. Raises `InputError` where there is none."""
        common, *others = (network.checkpoint.held_out_cases for network in self.networks)
        held_out = tuple(case for case in common if all(case in theirs for theirs in others))
        if not held_out:
            trained = (
                "its networks, together, were trained on every case"
                if others
                else "was trained on every case (--fold all)"
            )
            raise InputError(f"{self.folder}: {trained}; there is no held-out case to predict")
        return held_out

    @property
    def comes_tuned(self) -> bool:
        """Whether settings travel with a packaged network."""
        return is_packaged(self.folder) and (self.folder / TUNED).is_file()

    def unfinished(self) -> Problem | None:
        """A warning where a run has not come to its last epoch, as its `epochs.csv` says; a run may have
        ended early for its patience.
        """
        table = self.folder / "epochs.csv"
        if is_packaged(self.folder) or not table.is_file():
            return None
        (network,) = self.networks
        try:
            _, rows = read_table(table)
            best = max((int(row["epoch"]) for row in rows if row["is_best"] == "1"), default=len(rows))
        except (InputError, KeyError, ValueError):
            what = "is damaged: nothing says whether the training is finished"
            return Problem("warning", "", str(table), what, "`brats-seg train` with --resume writes it again")
        n_done, n_epochs, patience = len(rows), network.config.n_epochs, network.config.validation.patience
        if n_done >= n_epochs or (patience is not None and n_done - best >= patience):
            return None
        what = (
            f"checkpoint of epoch {network.checkpoint.epoch} of {n_epochs}: the training stands at epoch "
            f"{n_done}"
        )
        mend = "a finished run; `brats-seg train` with --resume goes on"
        return Problem("warning", "", str(self.folder), what, mend)


def open_network(path: Path) -> TrainedNetwork:
    """Read a checkpoint file. Raises as `checkpoint.load_checkpoint`."""
    return TrainedNetwork(path, load_checkpoint(path), sha256(path))


def open_run(run: str | Path) -> TrainedRun:
    """Open a run folder, or the packaged network of that name.

    Raises:
        UsageError: neither.
        InputError: no checkpoint, or a bad one.
    """
    folder = find_run(run)
    return TrainedRun(folder, tuple(map(open_network, checkpoints_of(folder))))


def initial_checkpoint(source: str | Path | None, config: Config) -> tuple[Checkpoint | None, Config]:
    """The checkpoint that a training begins with, and the config that records its SHA-256.

    `source` is a run, a packaged network or a checkpoint file; None for none.

    Raises:
        UsageError: no such run, or another checkpoint than the config's run began with.
        InputError: no checkpoint, or a bad one.
    """
    recorded = config.training.initial
    if source is None:
        if recorded:
            raise UsageError(
                f"training.initial: this config is of a run that began with the checkpoint {recorded[:12]}; "
                "give it by --from"
            )
        return None, config
    trained = open_network(Path(source) if Path(source).is_file() else checkpoints_of(find_run(source))[0])
    if recorded not in ("", trained.digest):
        raise UsageError(
            f"--from {source}: has the SHA-256 {trained.digest[:12]}; the config's run began with "
            f"{recorded[:12]} (training.initial)"
        )
    return trained.checkpoint, config.model_copy(
        update={"training": config.training.model_copy(update={"initial": trained.digest})}
    )


def held_out_by_all(runs: Sequence[TrainedRun]) -> tuple[str, ...]:
    """Ids that every run held out: a case that one of several averaged networks was trained on is no held-out
    case. Raises `UsageError` where there is none.
    """
    common = runs[0].held_out_cases
    for run in runs[1:]:
        common = tuple(case for case in common if case in run.held_out_cases)
        if not common:
            raise UsageError(
                f"--held-out --also {run.folder}: held out no case that {runs[0].folder} held out; average "
                "runs of one fold"
            )
    return common


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
