"""Steps -> a trained network: the one outer loop, for scans and images."""

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
        """Scores by name, among them `score`: higher is better, and NaN where there is none."""


@dataclass(kw_only=True)
class Record:
    """What is kept of a training. This class keeps nothing; a subclass keeps what it overrides.

    Attributes:
        losses_at_once: steps between two looks at the losses: a look makes a GPU wait.
        ledger: counts what is drawn; None where nobody asks.
        watch: counts the time.
        has_failed: whether the training is to end because the loss is not finite.
    """

    losses_at_once: int = 1
    ledger: Ledger | None = None
    watch: Stopwatch = field(default_factory=Stopwatch)
    has_failed: bool = False

    def take_losses(self, losses: Losses) -> None:
        """Take in the losses of the last steps."""

    def note_step(self, loop: "Loop") -> None:
        """A step was taken."""

    def wants_save(self) -> bool:
        """Whether it is time to `save`; asked at each step."""
        return False

    def save(self, loop: "Loop") -> None:
        """Keep all that the training needs to go on from here."""

    def end_steps(self, loop: "Loop", epoch: int) -> None:
        """The steps of an epoch were taken; it is not scored yet."""

    def end_epoch(self, loop: "Loop", epoch: int, scores: Mapping[str, float] | None) -> None:
        """An epoch was scored, or had no score to get. `loop.best.at` is this epoch if its score is the
        best.
        """

    def after_epoch(self, loop: "Loop", epoch: int, *, to_stop: bool) -> None:
        """An epoch is over; with `to_stop` the training stops after it."""

    def end_phase(self, loop: "Loop") -> None:
        """A phase is over, and another follows."""


@dataclass(kw_only=True)
class Loop:
    """A training in progress. The budget is in steps; an epoch is the number of steps after which the network
    may be scored. In a study of images an epoch is one step.

    Attributes:
        method: how each phase learns.
        phase: the present phase.
        source: gives the examples.
        record: keeps what comes of the training.
        scorer: scores the network after an epoch; None where nothing validates.
        finish: what is done to the network after the last epoch of a phase, before it is scored.
        steps: sampler and learner of the phase.
        best: the best score of the phase.
        n_done: steps done in all phases.
        n_samplers: samplers made in the phase: another for each pass where a subset is drawn anew.
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
        """Epochs done in all phases."""
        return self.n_done // self.method.config.training.steps

    def enter(self, phase: Phase, network: nn.Module, *, head: nn.Module | None = None) -> None:
        """Begin a phase with the weights of a network; see `Method.make_learner` for `head`."""
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
        """Go on after `epoch` whole epochs and `step` steps of the next one."""
        self.n_done, self.best = epoch * self.method.config.training.steps + step, best
        self.steps.learner.loss = self.method.loss_of(self.phase, epoch=self.n_epochs + 1)

    def run(self, stop: StopRequest | None = None) -> Literal["done", "stopped"]:
        """Epochs until the budget of every phase is spent, or the score stops rising, or a signal comes."""
        return alone(self.training(StopRequest() if stop is None else stop))

    def training(self, stop: StopRequest) -> Training[Literal["done", "stopped"]]:
        """What `run` does, one step at a time."""
        while not self._is_over():
            if self.phase_is_over():
                self._begin_phase_2()
            if not (yield from self._run_epoch(stop)):
                return "stopped"
        return "done"

    def _run_epoch(self, stop: StopRequest) -> Training[bool]:
        """The rest of an epoch and what follows it; whether the training goes on."""
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
        """Give the sampler what it needs for its next pass, and score the network."""
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
        """Between two passes of the sampler over the examples: hard examples are mined, or another subset is
        drawn.
        """
        sampler, hard = self.steps.sampler, self.method.config.hard
        if self.method.redraw == "epoch":
            self.n_samplers += 1
            self.steps.sampler = self.method.make_sampler(self.phase, number=self.n_samplers)
        elif isinstance(sampler, HardSampler):
            network, seed = self.steps.learner.evaluated(), self.method.config.training.seed
            sampler.accept_pools(self.source.hard_pools(network, sampler, hard=hard, seed=seed))

    def _begin_phase_2(self) -> None:
        """Go on from the weights to predict with."""
        self.record.end_phase(self)
        network = self.steps.learner.network
        network.load_state_dict(self.steps.learner.weights())
        self.enter(self.method.begun_at(self.n_epochs + 1), network)
        self.best = Best()

    def _is_over(self) -> bool:
        return self.phase_is_over() and self.method.after(self.phase, ended=self.n_epochs) is None

    def phase_is_over(self) -> bool:
        """Whether the phase's epochs are spent, or its score has not risen for `validation.patience` epochs,
        or the loss is not finite.
        """
        done, patience = self.n_epochs, self.method.config.validation.patience
        if done >= self.phase.last_epoch or self.record.has_failed:
            return True
        if patience is None or self.best.at is None:
            return False
        return done - max(self.best.at, self.method.patient_from(self.phase) - 1) >= patience
