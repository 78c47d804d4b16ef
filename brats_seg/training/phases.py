"""The phases of a run: for each phase the sampler, the loss and the trainable weights."""

import math
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import nn

from brats_seg.core import config as knobs
from brats_seg.core.errors import UsageError
from brats_seg.core.runtime import Runtime
from brats_seg.core.shapes import Counts, Shares
from brats_seg.imbalance.groups import Groups, Lesions, NumberLesions, group_by_case, group_by_lesion
from brats_seg.imbalance.index import ClassIndex
from brats_seg.imbalance.ledger import Ledger
from brats_seg.imbalance.priors import LOSSES_WITH_A_PRIOR, class_weights, effective_prior
from brats_seg.imbalance.sampler import EpochPlan, Sampler
from brats_seg.imbalance.samplers import build_sampler
from brats_seg.models.classic import output_layers
from brats_seg.models.losses import Loss, make_loss
from brats_seg.models.networks import output_layer
from brats_seg.models.output_rows import Directions, linear_output, normalize_rows
from brats_seg.training.augment import Mixer
from brats_seg.training.step import Learner, Schedule

NATURAL = knobs.Sampler(kind="random", allow_absent_class=True)
"""The default sampler of phase 2. A class without an example has the natural share 0, so the class may be
absent.
"""
IMAGE_STRETCHES = 100
"""Number of parts of a run on images. The shares of a drifting sampler are constant within a part, because
epochs of images are single steps.
"""
PASSES = ("random", "oversample", "undersample", "hard")
"""Samplers that show every example in a pass. In the other samplers each draw is independent."""


@dataclass(frozen=True)
class Phase:
    """Successive epochs with one sampler, one optimizer schedule and one trainable part of the network.

    The numbers of the epochs continue from phase to phase. `last_epoch` is the latest possible end: early
    stopping may end a phase earlier.
    """

    number: Literal[1, 2]
    first_epoch: int
    last_epoch: int


@dataclass(frozen=True, kw_only=True)
class Method:
    """The training method of a run, phase by phase.

    Phase 1 uses the sections of the config. Two-phase training (Havaei et al. 2017, section 3.2) adds a
    second phase. Phase 2 starts from the prediction weights at the end of phase 1. It trains only the output
    layer, on patches with natural class frequencies and without class weights. It has a complete schedule
    with `phases.lr_factor` times the learning rate. Class weights may start later (`loss.weights_from`; Cao
    et al. 2019, section 3.3). Phase 2 may have another sampler, loss and initial output layer
    (`phases.sampler`, `loss` and `output`; Kang et al. 2020, section 4).

    Attributes:
        config: config of the run. In a run on images an epoch is a single step.
        index: the training examples by class: voxels of the training cases, or images.
        runtime: device, precision and ranks.
        targets: whether a target is one class for each voxel, or one class for the whole image.
        number_lesions: numbers the lesions of a case; needed for `sampler.first: lesion`.
        redraw: whether each pass has a new sampler (undersampling then draws another subset); only for
            images.
    """

    config: knobs.Config
    index: ClassIndex
    runtime: Runtime
    targets: Literal["voxels", "images"] = "voxels"
    number_lesions: NumberLesions | None = None
    redraw: Literal["never", "epoch"] = "never"

    def check(self) -> None:
        """Raise `UsageError` before the run starts if one of its phases would fail."""
        last = Phase(2, self.config.training.epochs + 1, self.config.n_epochs)
        if self.config.phases.normalize and self.config.validation.metric != "last":
            raise UsageError(
                "phases.normalize changes only the weights of the last epoch, so it needs "
                f"validation.metric 'last', which keeps them: '{self.config.validation.metric}' may keep an "
                "earlier epoch"
            )
        for phase in (self.first(), last) if self.config.phases.two_phase else (self.first(),):
            self._make_sampler(phase, groups=None)
            self.loss_of(phase, epoch=phase.last_epoch)

    # The phases

    def first(self) -> Phase:
        """The first phase of a run."""
        return Phase(1, 1, self.config.training.epochs)

    def begun_at(self, epoch: int) -> Phase:
        """The phase that starts with this epoch."""
        return self.first() if epoch == 1 else Phase(2, epoch, epoch + self._n_second - 1)

    def after(self, phase: Phase, *, ended: int) -> Phase | None:
        """The phase after a phase whose last epoch was `ended`; None at the end of the run."""
        return self.begun_at(ended + 1) if self.config.phases.two_phase and phase.number == 1 else None

    def settled_from(self, phase: Phase) -> int:
        """The first epoch from which the loss of a phase stays the same."""
        return self._weighted_from if phase.number == 1 and self._weights is not None else phase.first_epoch

    def patient_from(self, phase: Phase) -> int:
        """The first epoch that early stopping counts. For scans this is the epoch from which the loss stays
        the same. Images do not wait for it, to agree with stored studies.
        """
        return self.settled_from(phase) if self.targets == "voxels" else phase.first_epoch

    # The parts of each phase

    def make_sampler(self, phase: Phase, *, number: int = 1) -> Sampler:
        """The sampler of a phase, before its first step. In phase 2 `sampler.first` is not used: every voxel
        is drawn with equal probability.

        For scans a pass is an epoch, so the sampler counts the epochs of the run. For images a pass shows
        every image if the sampler does this. Samplers with another `number` draw other subsets.
        """
        if self.targets == "images":
            words = np.random.SeedSequence([self.config.training.seed, number])
            return self._make_sampler(phase, groups=None, seed=int(words.generate_state(1)[0]))
        sampler = self._make_sampler(phase, groups=self._groups if phase.number == 1 else None)
        sampler.epoch = phase.first_epoch
        return sampler

    def _make_sampler(self, phase: Phase, *, groups: Groups | None, seed: int | None = None) -> Sampler:
        section = self.config.sampler if phase.number == 1 else self.config.phases.sampler or NATURAL
        training, hard, is_images = self.config.training, self.config.hard, self.targets == "images"
        steps, drift_epochs = training.steps, training.epochs
        if is_images:
            total = training.epochs * training.steps
            steps = total if section.drift == "none" else -(-total // IMAGE_STRETCHES)
            drift_epochs = -(-total // steps)
        with warnings.catch_warnings():
            if is_images:  # a study may have a class without an image
                warnings.simplefilter("ignore", UserWarning)
            plan = EpochPlan(
                batch_size=training.batch_size,
                steps=None if is_images and section.kind in PASSES else steps,
                seed=training.seed if seed is None else seed,
                rank=self.runtime.rank,
                n_ranks=self.runtime.world_size,
                drift_epochs=None if section.drift == "none" else drift_epochs,
                drift="from_natural" if section.drift == "from_natural" else "to_natural",
            )
            return build_sampler(section, self.index, plan=plan, hard=hard, groups=groups)

    @cached_property
    def lesions(self) -> Lesions | None:
        """The lesions of the training cases, found at first use; None if no lesion is drawn first."""
        if self.config.sampler.first != "lesion":
            return None
        if self.number_lesions is None:
            raise UsageError("sampler.first 'lesion': these examples have no lesions; use 'voxel' or 'case'")
        return group_by_lesion(self.index, self.number_lesions)

    @property
    def _groups(self) -> Groups | None:
        if self.lesions is not None:
            return self.lesions.groups
        return group_by_case(self.index) if self.config.sampler.first == "case" else None

    def make_learner(self, phase: Phase, network: nn.Module, *, head: nn.Module | None = None) -> Learner:
        """The learner of a phase, before its first step. In phase 2 `network` holds the weights at the end of
        phase 1.

        Args:
            phase: the phase.
            network: the whole network.
            head: in phase 2 the output layer, if the batches contain the input of this layer.
        """
        is_second = phase.number == 2
        optimizer, training = self.config.optimizer, self.config.training
        rate = optimizer.lr * (self.config.phases.lr_factor if is_second else 1)
        output = self.config.phases.output if is_second else "kept"
        if output == "anew":
            self._begin_anew(network)
        return Learner(
            network,
            loss=self.loss_of(phase, epoch=phase.first_epoch),
            schedule=Schedule(
                optimizer=optimizer.model_copy(update={"lr": rate}),
                n_steps=(phase.last_epoch - phase.first_epoch + 1) * training.steps,
                first_step=(phase.first_epoch - 1) * training.steps,
                batch_size=training.batch_size,
                accumulate=training.accumulate,
                ema=training.ema,
                seed=training.seed,
            ),
            runtime=self.runtime,
            only=self.output_layers(network) if is_second and head is None else (),
            head=head,
            directions=Directions(self._linear_output(network)) if output == "scaled" else None,
        )

    def make_mixer(self, phase: Phase) -> Mixer | None:
        """The mixer of a phase; None in phase 2, and if no examples are mixed."""
        if phase.number == 2 or self.config.mix.kind == "none":
            return None
        seed, rank = self.config.training.seed, self.runtime.rank
        return Mixer(self.config.mix, counts=self.index.counts, seed=seed, rank=rank)

    def normalize(self, network: nn.Module) -> None:
        """Apply `phases.normalize` to the output layer at the end of a run."""
        if self.config.phases.normalize:
            normalize_rows(self._linear_output(network), power=self.config.phases.normalize)

    def _begin_anew(self, network: nn.Module) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(self.config.training.seed)
            for layer in self.output_layers(network):
                for module in layer.modules():
                    if callable(reset := getattr(module, "reset_parameters", None)):
                        reset()

    def _linear_output(self, network: nn.Module) -> nn.Linear | nn.Conv2d | nn.Conv3d:
        return linear_output(self.output_layers(network)[-1])

    def output_layers(self, network: nn.Module) -> tuple[nn.Module, ...]:
        """The layers that phase 2 trains."""
        if self.targets == "images":
            return output_layers(self.config.network.name, network)
        return (output_layer(self.config.network, network),)

    def loss_of(self, phase: Phase, *, epoch: int) -> Loss:
        """The loss function of an epoch."""
        weights, loss = self._weights if self._is_weighted(phase, epoch) else None, self._loss_section(phase)
        outside = "ignore" if self.config.task.classes == "tumor" else self.config.loss.outside
        return make_loss(
            loss,
            outside="none" if self.targets == "images" else outside,
            class_weights=None if weights is None else weights.tolist(),
            classes=self.index.class_names,
            prior=self.natural_prior.tolist(),
        )

    # The priors

    @cached_property
    def natural_prior(self) -> Shares:
        """The share of each class among the training examples."""
        return self.index.counts / self.index.counts.sum()

    def effective_prior(self, phase: Phase, ledger: Ledger, *, epoch: int) -> Shares | None:
        """The training prior of the weights at the end of an epoch: the prior of the epochs since the class
        shares or the loss last changed.

        With a drift the class shares change in every epoch. The result is None before the first epoch of a
        phase has ended; else see `prior_of`.
        """
        if epoch < phase.first_epoch:
            return None
        drifts = phase.number == 1 and self.config.sampler.drift != "none"
        is_weighted = self._is_weighted(phase, epoch)
        since = epoch if drifts else self._weighted_from if is_weighted else phase.first_epoch
        return self.prior_of(phase, ledger.voxel_counts(first_epoch=since, last_epoch=epoch), epoch=epoch)

    def prior_of(self, phase: Phase, counts: Counts, *, epoch: int) -> Shares | None:
        """The training prior of weights that were trained with the loss of an epoch on `counts` examples of
        each class. None for a loss without a prior, if remix mixed the labels, or if the output weights were
        scaled.
        """
        loss = self._loss_section(phase)
        is_changed = self.config.phases.normalize or (
            self.config.phases.output == "scaled" and phase.number == 2
        )
        if loss.kind not in LOSSES_WITH_A_PRIOR or self.config.mix.kind == "remix" or is_changed:
            return None
        weights = self._weights if self._is_weighted(phase, epoch) else None
        mix = effective_prior(counts, class_weights=weights)
        if loss.kind != "logit_adjusted":
            return mix
        divided_out = self.natural_prior**loss.tau
        adjusted = np.divide(mix, divided_out, out=np.zeros_like(mix), where=self.natural_prior > 0)
        return adjusted / adjusted.sum()

    def _loss_section(self, phase: Phase) -> knobs.Loss:
        second = self.config.phases.loss
        return self.config.loss if phase.number == 1 or second is None else second

    @cached_property
    def _weights(self) -> Shares | None:
        kind = self.config.loss.class_weights
        return None if kind == "none" else class_weights(kind, self.index.case_counts)

    @property
    def _weighted_from(self) -> int:
        """The first epoch with class weights. At least the last epoch has class weights."""
        n_epochs = self.config.training.epochs
        return min(n_epochs, math.ceil(self.config.loss.weights_from * n_epochs - 1e-9) + 1)

    def _is_weighted(self, phase: Phase, epoch: int) -> bool:
        return self._weights is not None and phase.number == 1 and epoch >= self._weighted_from

    @property
    def _n_second(self) -> int:
        return self.config.phases.epochs or self.config.training.epochs
