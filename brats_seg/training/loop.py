"""Steps -> a trained network: the training loop for scans and images."""

from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass, field
from typing import Literal, Protocol, runtime_checkable

from torch import nn

from brats_seg.core.runtime import StopRequest
from brats_seg.imbalance.ledger import Ledger
from brats_seg.imbalance.samplers import HardSampler
from brats_seg.training.log import Stopwatch
from brats_seg.training.phases import Method, Phase
from brats_seg.training.steps import Best, Losses, MinedSource, Steps, Training, alone


@runtime_checkable
class Scorer(Protocol):
    """Scores a network while it is trained."""

    def __call__(self, network: nn.Module) -> Mapping[str, float]:
        """Scores by name. One of them is `score`: higher is better, and NaN means that there is no score."""


@dataclass(kw_only=True)
class Record:
    """Callbacks that record a training. This class records nothing; subclasses override the methods that they
    need.

    Attributes:
        losses_at_once: number of steps between two reads of the losses. Each read makes a GPU wait.
        ledger: counts the draws; None if the counts are not needed.
        watch: measures the time.
        has_failed: whether the training must end because the loss is not finite.
    """

    losses_at_once: int = 1
    ledger: Ledger | None = None
    watch: Stopwatch = field(default_factory=Stopwatch)
    has_failed: bool = False

    def take_losses(self, losses: Losses) -> None:
        """Receive the losses of the last steps."""

    def note_step(self, loop: "Loop") -> None:
        """Called after each step."""

    def wants_save(self) -> bool:
        """Whether `save` must be called now. This is asked in each step."""
        return False

    def save(self, loop: "Loop") -> None:
        """Save everything that is needed to resume the training from here."""

    def end_steps(self, loop: "Loop", epoch: int) -> None:
        """Called after the steps of an epoch, before it is scored."""

    def end_epoch(self, loop: "Loop", epoch: int, scores: Mapping[str, float] | None) -> None:
        """Called after an epoch was scored, or without scores. `loop.best.at` is this epoch if its score is
        the best.
        """

    def after_epoch(self, loop: "Loop", epoch: int, *, to_stop: bool) -> None:
        """Called at the end of an epoch. With `to_stop` the training stops after this epoch."""

    def end_phase(self, loop: "Loop") -> None:
        """Called at the end of a phase if another phase follows."""


@dataclass(kw_only=True)
class Loop:
    """A training in progress. The budget is a number of steps. An epoch is a number of steps after which the
    network can be scored. In a study of images an epoch is one step.

    Attributes:
        method: settings of each phase.
        phase: the present phase.
        source: provides the examples.
        record: records the training.
        scorer: scores the network after an epoch; None without validation.
        finish: function that changes the network after the last epoch of a phase, before it is scored.
        steps: sampler and learner of the phase.
        best: the best score of the phase.
        n_done: number of steps done in all phases.
        n_samplers: number of samplers built in the phase. If each pass draws a new subset, each pass has a
            new sampler.
    """

    method: Method
    phase: Phase
    network: InitVar[nn.Module]
    source: MinedSource
    record: Record
    scorer: Scorer | None = None
    head: InitVar[nn.Module | None] = None
    finish: Callable[[nn.Module], None] | None = None
    steps: Steps = field(init=False)
    best: Best = field(default_factory=Best)
    n_done: int = field(default=0, init=False)
    n_samplers: int = field(default=1, init=False)

    def __post_init__(self, network: nn.Module, head: nn.Module | None) -> None:
        self.enter(self.phase, network, head=head)

    @property
    def n_epochs(self) -> int:
        """Number of epochs done in all phases."""
        return self.n_done // self.method.config.training.steps

    def enter(self, phase: Phase, network: nn.Module, *, head: nn.Module | None = None) -> None:
        """Start a phase with the weights of a network; see `Method.make_learner` for `head`."""
        self.phase, self.n_done = phase, (phase.first_epoch - 1) * self.method.config.training.steps
        self.n_samplers = 1
        self.steps = Steps(
            sampler=self.method.make_sampler(phase),
            source=self.source,
            learner=self.method.make_learner(phase, network, head=head),
            mixer=self.method.make_mixer(phase),
            ledger=self.record.ledger,
            watch=self.record.watch,
        )

    def go_on(self, epoch: int, step: int, best: Best) -> None:
        """Continue after `epoch` complete epochs and `step` steps of the next epoch."""
        self.n_done, self.best = epoch * self.method.config.training.steps + step, best
        self.steps.learner.loss = self.method.loss_of(self.phase, epoch=self.n_epochs + 1)

    def run(self, stop: StopRequest | None = None) -> Literal["done", "stopped"]:
        """Run epochs until the budget of every phase is used, the score stops rising, or a signal arrives."""
        return alone(self.training(StopRequest() if stop is None else stop))

    def training(self, stop: StopRequest) -> Training[Literal["done", "stopped"]]:
        """The training of `run`, as a generator that stops before each step."""
        while not self._is_over():
            if self.phase_is_over():
                self._begin_phase_2()
            if not (yield from self._run_epoch(stop)):
                return "stopped"
        return "done"

    def _run_epoch(self, stop: StopRequest) -> Training[bool]:
        """Run the rest of an epoch and its end. Return whether the training continues."""
        steps, record, epoch = self.steps, self.record, self.n_epochs + 1
        steps.learner.begin_epoch()
        if epoch == self.method.settled_from(self.phase):
            steps.learner.loss = self.method.loss_of(self.phase, epoch=epoch)
        while self.n_epochs < epoch:
            with steps.watch("training_s"):
                to_stop, to_save = yield from steps.take(
                    self.n_done, wishes=lambda: (stop.asked, record.wants_save())
                )
                self.n_done += 1
                if len(steps.unchecked) >= record.losses_at_once:
                    record.take_losses(steps.losses())
                record.note_step(self)
            if record.has_failed:
                return True
            if self.n_epochs < epoch and (to_stop or to_save):
                record.save(self)
                if to_stop:
                    return False
        self._close_epoch(epoch)
        to_stop = self.method.runtime.any_rank(stop.asked)
        record.after_epoch(self, epoch, to_stop=to_stop)
        return not to_stop or self._is_over()

    def _close_epoch(self, epoch: int) -> None:
        """Prepare the next pass of the sampler, and score the network."""
        steps, scores = self.steps, None
        is_last, validation = epoch == self.phase.last_epoch, self.method.config.validation
        self.record.end_steps(self, epoch)
        if is_last and self.finish is not None:
            with steps.watch("validation_s"):
                self.finish(steps.learner.evaluated())
        if steps.sampler.step == 0 and not is_last:
            with steps.watch("mining_s"):
                self.begin_pass()
        if self.scorer is not None and (is_last or epoch % validation.every == 0):
            with steps.watch("validation_s"):
                scores = self.scorer(steps.learner.evaluated())
            best = Best() if validation.metric == "last" else self.best
            if best.see(epoch, scores["score"]):
                self.best = best
        self.record.end_epoch(self, epoch, scores)

    def begin_pass(self) -> None:
        """Called between two passes of the sampler over the examples: mine hard examples, or draw another
        subset.
        """
        sampler, hard = self.steps.sampler, self.method.config.hard
        if self.method.redraw == "epoch":
            self.n_samplers += 1
            self.steps.sampler = self.method.make_sampler(self.phase, number=self.n_samplers)
        elif isinstance(sampler, HardSampler):
            network, seed = self.steps.learner.evaluated(), self.method.config.training.seed
            sampler.accept_pools(self.source.hard_pools(network, sampler, hard=hard, seed=seed))

    def _begin_phase_2(self) -> None:
        """Start phase 2 from the prediction weights of phase 1."""
        self.record.end_phase(self)
        network = self.steps.learner.network
        network.load_state_dict(self.steps.learner.weights())
        self.enter(self.method.begun_at(self.n_epochs + 1), network)
        self.best = Best()

    def _is_over(self) -> bool:
        return self.phase_is_over() and self.method.after(self.phase, ended=self.n_epochs) is None

    def phase_is_over(self) -> bool:
        """Whether all epochs of the phase are done, its score has not risen for `validation.patience` epochs,
        or the loss is not finite.
        """
        done, patience = self.n_epochs, self.method.config.validation.patience
        if done >= self.phase.last_epoch or self.record.has_failed:
            return True
        if patience is None or self.best.at is None:
            return False
        return done - max(self.best.at, self.method.patient_from(self.phase) - 1) >= patience
