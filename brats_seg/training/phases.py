"""What a run does in each of its phases: which examples, which loss, which weights may move."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from torch import nn

from brats_seg import config as knobs
from brats_seg.core.runtime import Runtime
from brats_seg.core.shapes import Shares
from brats_seg.errors import UsageError
from brats_seg.imbalance.groups import Groups, Lesions, NumberLesions, group_by_case, group_by_lesion
from brats_seg.imbalance.index import ClassIndex
from brats_seg.imbalance.ledger import Ledger
from brats_seg.imbalance.priors import LOSSES_WITH_A_PRIOR, class_weights
from brats_seg.imbalance.samplers import Sampler, make_sampler
from brats_seg.models.losses import Loss, UnifiedFocal, make_loss
from brats_seg.models.networks import output_layer
from brats_seg.training.step import Learner


@dataclass(frozen=True)
class Phase:
    """A stretch of epochs with one sampler, one optimizer on one schedule, and one part of the network that
    learns.

    Epochs count on from phase to phase. `last_epoch` is the last at the latest: early stopping may end a
    phase before it.
    """

    number: Literal[1, 2]
    first_epoch: int
    last_epoch: int


@dataclass(frozen=True, kw_only=True)
class Method:
    """How a run learns, phase by phase.

    Phase 1 is as the sections of the config have it. Two-phase training (Havaei et al. 2017, section 3.2)
    adds phase 2: from the weights to predict with at the end of phase 1, the output layer alone learns, from
    patches at their natural frequencies and with no class weights, on a whole schedule again at
    `phases.lr_factor` times the rate. Class weights may be deferred (`loss.weights_from`; Cao et al. 2019,
    section 3.3).

    Attributes:
        network, task, sampler, hard, loss, optimizer, training, phases: sections of the config.
        index: voxels of the training cases by class.
        runtime: device, precision and ranks.
        number_lesions: numbers the lesions of a case; needed to draw with `sampler.first: lesion`.
    """

    network: knobs.Network
    task: knobs.Task
    sampler: knobs.Sampler
    hard: knobs.Hard
    loss: knobs.Loss
    optimizer: knobs.Optimizer
    training: knobs.Training
    phases: knobs.Phases
    index: ClassIndex
    runtime: Runtime
    number_lesions: NumberLesions | None = None

    def check(self) -> None:
        """Refuse, before the run starts, what would fail in one of its phases. Raises `UsageError`."""
        if self.loss.kind == "region" and self.sampler.kind == "hard":
            raise UsageError(
                "loss.kind 'region' with sampler.kind 'hard': hard replay reads the softmax of the class "
                "logits, which this loss does not "
                "train; use another loss or sampler"
            )
        last = Phase(2, self.training.epochs + 1, self.n_epochs)
        for phase in (self.first(), last) if self.phases.two_phase else (self.first(),):
            self._make_sampler(phase, groups=None)
            self.loss_of(phase, epoch=phase.last_epoch)

    # The phases

    @property
    def n_epochs(self) -> int:
        """Epochs of all phases, where none ends early."""
        return self.training.epochs + (self._n_second if self.phases.two_phase else 0)

    def first(self) -> Phase:
        """The phase that a run begins with."""
        return Phase(1, 1, self.training.epochs)

    def begun_at(self, epoch: int) -> Phase:
        """The phase whose first epoch this is."""
        return self.first() if epoch == 1 else Phase(2, epoch, epoch + self._n_second - 1)

    def after(self, phase: Phase, *, ended: int) -> Phase | None:
        """The phase after one whose last epoch was `ended`; None where the run is over."""
        return self.begun_at(ended + 1) if self.phases.two_phase and phase.number == 1 else None

    def settled_from(self, phase: Phase) -> int:
        """First epoch from which on a phase keeps its loss: early stopping waits for it."""
        return self._weighted_from if phase.number == 1 and self._weights is not None else phase.first_epoch

    # What each of them works with

    def make_sampler(self, phase: Phase) -> Sampler:
        """The sampler of a phase, before its first step. In phase 2 every voxel is drawn alike, whatever
        `sampler.first` says.
        """
        return self._make_sampler(phase, groups=self._groups if phase.number == 1 else None)

    def _make_sampler(self, phase: Phase, *, groups: Groups | None) -> Sampler:
        # A class without an example has the natural frequency 0: in phase 2 it may be absent.
        section = self.sampler if phase.number == 1 else knobs.Sampler(kind="random", allow_absent_class=True)
        sampler = make_sampler(
            section.kind,
            self.index,
            batch_size=self.training.batch_size,
            steps=self.training.steps,
            seed=self.training.seed,
            rank=self.runtime.rank,
            n_ranks=self.runtime.world_size,
            shares=section.shares,
            healthy_share=section.healthy_share,
            imbalance_ratio=section.imbalance_ratio,
            allow_absent_class=section.allow_absent_class,
            hard_classes=self.hard.classes,
            recycle=self.hard.recycle,
            max_age=self.hard.max_age,
            drift=section.drift,
            n_epochs=self.training.epochs,
            groups=groups,
        )
        sampler.epoch = phase.first_epoch
        return sampler

    @cached_property
    def lesions(self) -> Lesions | None:
        """The lesions of the training cases, found at first use; None where no lesion is drawn first."""
        if self.sampler.first != "lesion":
            return None
        if self.number_lesions is None:
            raise UsageError("sampler.first 'lesion': these examples have no lesions; use 'voxel' or 'case'")
        return group_by_lesion(self.index, self.number_lesions)

    @property
    def _groups(self) -> Groups | None:
        if self.lesions is not None:
            return self.lesions.groups
        return group_by_case(self.index) if self.sampler.first == "case" else None

    def make_learner(self, phase: Phase, network: nn.Module) -> Learner:
        """What moves the weights in a phase, before its first step. In phase 2 `network` holds the weights
        that phase 1 ended with.
        """
        is_second = phase.number == 2
        rate = self.optimizer.lr * (self.phases.lr_factor if is_second else 1)
        return Learner(
            network,
            loss=self.loss_of(phase, epoch=phase.first_epoch),
            optimizer=self.optimizer.model_copy(update={"lr": rate}),
            n_steps=(phase.last_epoch - phase.first_epoch + 1) * self.training.steps,
            first_step=(phase.first_epoch - 1) * self.training.steps,
            batch_size=self.training.batch_size,
            accumulate=self.training.accumulate,
            ema=self.training.ema,
            seed=self.training.seed,
            runtime=self.runtime,
            only=output_layer(self.network, network) if is_second else None,
        )

    def loss_of(self, phase: Phase, *, epoch: int) -> Loss:
        """The loss of an epoch."""
        weights = self._weights if self._is_weighted(phase, epoch) else None
        return make_loss(
            self.loss.kind,
            outside="ignore" if self.task.classes == "tumor" else self.loss.outside,
            class_weights=None if weights is None else weights.tolist(),
            classes=self.index.class_names,
            prior=self.natural_prior.tolist(),
            tau=self.loss.tau,
            dice=self.loss.dice,
            unified=UnifiedFocal(self.loss.unified_weight, self.loss.unified_delta, self.loss.unified_gamma),
            by_lesion=self.loss.by_lesion,
            by_lesion_weight=self.loss.by_lesion_weight,
        )

    # The priors

    @cached_property
    def natural_prior(self) -> Shares:
        """Share of each class among the voxels of the training cases."""
        return self.index.counts / self.index.counts.sum()

    def effective_prior(self, phase: Phase, ledger: Ledger, *, epoch: int) -> Shares | None:
        """The prior that the weights were trained under when an epoch ended: of the epochs since the mix or
        the loss last changed.

        A drifting mix changes every epoch. None for a loss without a prior, and before a phase has ended an
        epoch.
        """
        if self.loss.kind not in LOSSES_WITH_A_PRIOR or epoch < phase.first_epoch:
            return None
        is_weighted = self._is_weighted(phase, epoch)
        drifts = phase.number == 1 and self.sampler.drift != "none"
        since = epoch if drifts else self._weighted_from if is_weighted else phase.first_epoch
        mix = ledger.effective_prior(
            class_weights=self._weights if is_weighted else None, first_epoch=since, last_epoch=epoch
        )
        if self.loss.kind != "logit_adjusted":
            return mix
        adjusted = np.divide(
            mix, self.natural_prior**self.loss.tau, out=np.zeros_like(mix), where=self.natural_prior > 0
        )
        return adjusted / adjusted.sum()

    @cached_property
    def _weights(self) -> Shares | None:
        return (
            None
            if self.loss.class_weights == "none"
            else class_weights(self.loss.class_weights, self.index.case_counts)
        )

    @property
    def _weighted_from(self) -> int:
        """First epoch with class weights: at least the last one has them."""
        before = math.ceil(self.loss.weights_from * self.training.epochs - 1e-9)
        return min(self.training.epochs, before + 1)

    def _is_weighted(self, phase: Phase, epoch: int) -> bool:
        return self._weights is not None and phase.number == 1 and epoch >= self._weighted_from

    @property
    def _n_second(self) -> int:
        return self.phases.epochs or self.training.epochs
