"""What a run does in each of its phases: which examples, which loss, which weights may move."""

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
"""How phase 2 draws where the config says nothing. A class without an example has the natural frequency 0:
it may be absent.
"""
IMAGE_STRETCHES = 100
"""Parts of a run on images in which the shares of a drifting sampler stay: its epochs are single steps."""
PASSES = ("random", "oversample", "undersample", "hard")
"""Samplers that show every example in a pass; with the others each draw is independent."""


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
    section 3.3). Phase 2 may draw, lose and begin otherwise (`phases.sampler`, `loss` and `output`; Kang et
    al. 2020, section 4).

    Attributes:
        config: of the run. Of a run on images its epochs are single steps: the budget is in steps there.
        index: the training examples by class: voxels of the training cases, or images.
        runtime: device, precision and ranks.
        targets: whether a target is a class for each voxel, or one for the whole image.
        number_lesions: numbers the lesions of a case; needed to draw with `sampler.first: lesion`.
        redraw: whether the sampler is made anew for each pass (of undersampling: another subset); of images
            alone.
    """

    config: knobs.Config
    index: ClassIndex
    runtime: Runtime
    targets: Literal["voxels", "images"] = "voxels"
    number_lesions: NumberLesions | None = None
    redraw: Literal["never", "epoch"] = "never"

    def check(self) -> None:
        """Refuse, before the run starts, what would fail in one of its phases. Raises `UsageError`."""
        last = Phase(2, self.config.training.epochs + 1, self.config.n_epochs)
        if self.config.phases.normalize and self.config.validation.metric != "last":
            raise UsageError(
                "phases.normalize changes the weights of the last epoch alone; it goes with "
                f"validation.metric 'last', which keeps them: '{self.config.validation.metric}' may keep an "
                "earlier epoch"
            )
        for phase in (self.first(), last) if self.config.phases.two_phase else (self.first(),):
            self._make_sampler(phase, groups=None)
            self.loss_of(phase, epoch=phase.last_epoch)

    # The phases

    def first(self) -> Phase:
        """The phase that a run begins with."""
        return Phase(1, 1, self.config.training.epochs)

    def begun_at(self, epoch: int) -> Phase:
        """The phase whose first epoch this is."""
        return self.first() if epoch == 1 else Phase(2, epoch, epoch + self._n_second - 1)

    def after(self, phase: Phase, *, ended: int) -> Phase | None:
        """The phase after one whose last epoch was `ended`; None where the run is over."""
        return self.begun_at(ended + 1) if self.config.phases.two_phase and phase.number == 1 else None

    def settled_from(self, phase: Phase) -> int:
        """First epoch from which on a phase keeps its loss."""
        return self._weighted_from if phase.number == 1 and self._weights is not None else phase.first_epoch

    def patient_from(self, phase: Phase) -> int:
        """First epoch that early stopping counts: of scans that from which on the loss stays. Stored studies
        of images did not wait for it.
        """
        return self.settled_from(phase) if self.targets == "voxels" else phase.first_epoch

    # What each of them works with

    def make_sampler(self, phase: Phase, *, number: int = 1) -> Sampler:
        """The sampler of a phase, before its first step. In phase 2 every voxel is drawn alike, whatever
        `sampler.first` says.

        Of scans a pass is an epoch, so that the sampler counts the epochs of the run. Of images a pass shows
        every image where the sampler does so; samplers of another `number` draw other subsets.
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
            if is_images:  # a class without an image is the study's own wish
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
        """The lesions of the training cases, found at first use; None where no lesion is drawn first."""
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
        """What moves the weights in a phase, before its first step. In phase 2 `network` holds the weights
        that phase 1 ended with.

        Args:
            phase: the phase.
            network: all of it.
            head: in phase 2 the output layer, where the batches hold what that layer is given.
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
        """What mixes the examples of a batch in a phase; None in phase 2, and where nothing is mixed."""
        if phase.number == 2 or self.config.mix.kind == "none":
            return None
        seed, rank = self.config.training.seed, self.runtime.rank
        return Mixer(self.config.mix, counts=self.index.counts, seed=seed, rank=rank)

    def normalize(self, network: nn.Module) -> None:
        """What `phases.normalize` does to the output layer at the end of a run."""
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
        """The layers that learn in phase 2."""
        if self.targets == "images":
            return output_layers(self.config.network.name, network)
        return (output_layer(self.config.network, network),)

    def loss_of(self, phase: Phase, *, epoch: int) -> Loss:
        """The loss of an epoch."""
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
        """Share of each class among the training examples."""
        return self.index.counts / self.index.counts.sum()

    def effective_prior(self, phase: Phase, ledger: Ledger, *, epoch: int) -> Shares | None:
        """The prior that the weights were trained under when an epoch ended: of the epochs since the mix or
        the loss last changed.

        A drifting mix changes every epoch. None before a phase has ended an epoch; else see `prior_of`.
        """
        if epoch < phase.first_epoch:
            return None
        drifts = phase.number == 1 and self.config.sampler.drift != "none"
        is_weighted = self._is_weighted(phase, epoch)
        since = epoch if drifts else self._weighted_from if is_weighted else phase.first_epoch
        return self.prior_of(phase, ledger.voxel_counts(first_epoch=since, last_epoch=epoch), epoch=epoch)

    def prior_of(self, phase: Phase, counts: Counts, *, epoch: int) -> Shares | None:
        """The prior that weights were trained under which learned from so many examples of each class, with
        the loss of an epoch. None for a loss without a prior, and where labels were mixed by remix or the
        output weights were scaled.
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
        """First epoch with class weights: at least the last one has them."""
        n_epochs = self.config.training.epochs
        return min(n_epochs, math.ceil(self.config.loss.weights_from * n_epochs - 1e-9) + 1)

    def _is_weighted(self, phase: Phase, epoch: int) -> bool:
        return self._weights is not None and phase.number == 1 and epoch >= self._weighted_from

    @property
    def _n_second(self) -> int:
        return self.config.phases.epochs or self.config.training.epochs
