"""Batches -> checkpoints."""

import logging
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.progress import Progress, TaskID
from torch import nn

from brats_seg.bank.bank import Batch, PatchBank
from brats_seg.bank.lesions import LesionNumberer
from brats_seg.core.config import Config, Training, Validation
from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.files import lock, write_text
from brats_seg.core.progress import log_line, progress_bar
from brats_seg.core.run_folder import BEST, LAST, PHASE_1
from brats_seg.core.runtime import Runtime, StopRequest, catch_stop_signals
from brats_seg.core.settings import dump_config
from brats_seg.imbalance.index import ClassIndex
from brats_seg.imbalance.ledger import Ledger
from brats_seg.imbalance.samplers import Draw, HardSampler
from brats_seg.inference.dense import ready_for_inference
from brats_seg.models.checkpoint import (
    Checkpoint,
    check_same_data,
    check_same_run,
    library_versions,
    load_checkpoint,
    save_checkpoint,
    take_weights,
)
from brats_seg.models.networks import check_patch_size, make_network, margin_of, network_divisor
from brats_seg.models.readout import readout_of
from brats_seg.scans.labels import REGIONS
from brats_seg.training.augment import Augmenter
from brats_seg.training.log import (
    RunLog,
    Stopwatch,
    precision_name,
    progress_note,
    write_bad_batch,
    write_environment,
)
from brats_seg.training.mining import mine
from brats_seg.training.norms import measure_norms
from brats_seg.training.phases import Method, Phase
from brats_seg.training.split import RunResult, Split
from brats_seg.training.step import count_middle
from brats_seg.training.steps import Best, Examples, Steps
from brats_seg.training.validation import InnerScores, check_metric, score_inner_cases

LOOKS = "looks"
"""Folder of a run with the weights of epochs before its end."""
LOSSES_AT_ONCE = {"cpu": 1, "cuda": 50}
"""Steps between two looks at the losses: looking makes a GPU wait."""

logger = logging.getLogger(__name__)


def train(
    run_dir: Path,
    *,
    bank: PatchBank,
    split: Split,
    config: Config,
    runtime: Runtime,
    resume: bool = False,
    initial: Checkpoint | None = None,
    looks: Sequence[int] = (),
) -> RunResult:
    """Train a network on a bank, or go on with a run to the same bits.

    SIGTERM and Ctrl-C save and return; a second Ctrl-C interrupts at once.

    Args:
        run_dir: made if absent; refused if used, unless `resume`.
        bank: with the patch size to train on; which of its cases are used is the split's say.
        split: case ids by their use.
        config: every knob.
        runtime: device, precision and ranks.
        resume: go on with the run that is there; an empty folder starts one.
        initial: begin with its weights in every layer that fits; the others are named.
        looks: epochs after which the weights to predict with are kept (`look_folder`).

    Raises:
        UsageError: knobs that do not fit each other or the run to go on with; a used folder without `resume`.
        InputError: a loss that is not finite (the batch is saved), a bad checkpoint, a bank other than the
            run's, a folder in use.
    """
    network, training, jitter = config.network, config.training, config.sampler.jitter
    n_together = training.batch_size // runtime.world_size // training.accumulate
    check_patch_size(network, patch_size=bank.patch_size, n_together=n_together, jitter=jitter)
    bank = bank.regroup(config.task.classes)
    check_metric(config.validation.metric, of=config.validation.of, classes=bank.classes)
    seen = bank.select(split.train).to(runtime.device)
    method = Method(
        config=config, index=seen.index, runtime=runtime, number_lesions=LesionNumberer(bank.cases)
    )
    method.check()
    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        built = make_network(
            network, n_channels=bank.n_channels, n_classes=len(bank.classes), n_dims=len(bank.patch_size)
        )
    if initial is not None and (left_out := take_weights(built, initial)) and runtime.is_writer:
        logger.warning("--from: layers that do not fit begin anew: %s", ", ".join(left_out))
    if initial is not None and runtime.is_writer:
        _warn_of_seen_cases(initial, split)
    loop = _Loop(
        run_dir=run_dir,
        config=config,
        split=split,
        runtime=runtime,
        source=BankSource(
            bank=seen,
            augment=Augmenter(
                config.augment,
                seed=training.seed,
                patch_size=bank.patch_size,
                n_slices=2 * bank.slices_around + 1,
                jitter=jitter,
            ),
            margin=margin_of(built),
            steps=training.steps,
        ),
        inner_bank=bank.select(split.inner) if split.inner else None,
        method=method,
        phase=method.first(),
        network=built,
        log=RunLog(run_dir, classes=bank.classes, tensorboard=training.tensorboard and runtime.is_writer),
        training=training,
        validation=config.validation,
        divisor=network_divisor(network),
        looks=tuple(looks),
    )
    with _own(run_dir, runtime), catch_stop_signals() as stop:
        loop.begin(resume=resume)
        return loop.run(stop)


def look_folder(run_dir: Path, epoch: int) -> Path:
    """Where a run keeps the weights of an epoch of `looks`, as `checkpoint_best.pt`: it is used as a run."""
    return run_dir / LOOKS / f"epoch{epoch}"


def _warn_of_seen_cases(initial: Checkpoint, split: Split) -> None:
    """Say so where the weights to begin with were trained or chosen on cases that this run holds out, or
    trained on its inner cases, as far as the ids tell.
    """
    held_out = {*initial.train_cases, *initial.inner_cases}.intersection(split.held_out)
    if held_out:
        logger.warning(
            "--from: the network to begin with has seen %d of the %d held-out cases (%s): their scores will "
            "be too high; give a run of the same fold",
            len(held_out), len(split.held_out), _first(held_out),
        )  # fmt: skip
    inner = set(initial.train_cases).intersection(split.inner)
    if inner:
        logger.warning(
            "--from: the network to begin with was trained on %d of the %d inner cases (%s): their scores "
            "are too high, and the best epoch by them misleads; validation.metric=last takes the last epoch",
            len(inner), len(split.inner), _first(inner),
        )  # fmt: skip
    elif split.inner and not initial.train_cases:
        logger.warning(
            "--from: the network to begin with does not say which cases it was trained on: if the inner "
            "cases are among them, the best epoch by their scores misleads; validation.metric=last takes the "
            "last epoch"
        )


def _first(cases: set[str]) -> str:
    """Three of the cases by name."""
    return ", ".join(sorted(cases)[:3]) + (", ..." if len(cases) > 3 else "")


def _own(run_dir: Path, runtime: Runtime) -> AbstractContextManager[None]:
    """Make the run folder and keep other runs out of it."""
    if not runtime.is_writer:
        return nullcontext()
    run_dir.mkdir(parents=True, exist_ok=True)
    return lock(run_dir / ".lock")


@dataclass(kw_only=True)
class BankSource:
    """Patches of a bank as they are trained on: transformed at random where the config says so.

    Attributes:
        bank: its selected cases are trained on.
        augment: the transforms.
        margin: voxels on each side of the patch for which the network gives no output: they do not enter the
            loss.
        steps: of an epoch; the transforms follow from the epoch and the place in it.
        watch: counts the time.
    """

    bank: PatchBank
    augment: Augmenter
    margin: int
    steps: int
    watch: Stopwatch = field(default_factory=Stopwatch)
    gathered: Batch | None = None

    @property
    def index(self) -> ClassIndex:
        """The voxels of the training cases by class."""
        return self.bank.index

    def batch(self, draw: Draw, *, number: int) -> Examples:
        """The patches of a draw."""
        with self.watch("sampling_s"):
            parameters = self.augment.draw(
                epoch=number // self.steps + 1, positions=draw.positions,
                n_modalities=len(self.bank.modalities),
            )  # fmt: skip
            maps = self.augment.maps(parameters)
            self.gathered = batch = self.bank.batch(draw.ids, out=self.gathered, maps=maps)
            counts = batch.counts
            if self.margin:
                n_classes = len(self.bank.classes)
                counts = count_middle(batch.targets, margin=self.margin, n_classes=n_classes)
        with self.watch("augmentation_s"):
            inputs, targets = self.augment(batch.inputs, batch.targets, parameters=parameters)
        return Examples(inputs, targets, counts)


@dataclass(kw_only=True)
class _Loop:
    """A run in progress: who takes part, and where it stands."""

    run_dir: Path
    config: Config
    split: Split
    runtime: Runtime
    source: BankSource
    inner_bank: PatchBank | None
    method: Method
    phase: Phase
    network: InitVar[nn.Module]
    log: RunLog
    training: Training
    validation: Validation
    divisor: int
    looks: tuple[int, ...] = ()
    loss_sum: float = 0.0
    best: Best = field(default_factory=Best)
    saved_at: float = field(default_factory=time.monotonic)

    def __post_init__(self, network: nn.Module) -> None:
        self.bank, self.watch = self.source.bank, self.source.watch
        self.ledger = Ledger(self.bank.classes)
        self._enter(self.phase, network)

    # The run

    def begin(self, *, resume: bool) -> None:
        """Start in an empty folder or go on in a used one."""
        path = self.run_dir / LAST
        used = path.exists()
        there = sorted(
            file.name for file in self.run_dir.glob("[!.]*")
        )  # the writer makes the folder, maybe later than this rank looks
        if there and not resume:
            what = (
                "a run already; give --resume to go on with it, or"
                if "config.yaml" in there
                else f"other files ({there[0]}); give"
            )
            raise UsageError(f"{self.run_dir} holds {what} another folder")
        if used:
            self._restore(load_checkpoint(path), path)
        elif (
            best := self.run_dir / BEST
        ).exists():  # killed before its first checkpoint, or another run, whose best is not written over
            self._check_own(load_checkpoint(best), best)
        self.runtime.gather(None)  # nobody writes before everybody has read
        if self.runtime.is_writer:
            for part in self.run_dir.glob(".*.part"):  # half-written by a process that was killed
                part.unlink()
            write_text(self.run_dir / "config.yaml", dump_config(self.config))
            write_environment(
                self.run_dir / "environment.json",
                runtime=self.runtime,
                command=sys.argv,
                bank=self.bank.digest,
                n_parameters=sum(p.numel() for p in self.steps.learner.network.parameters()),
                initial=self.training.initial,
            )

    def run(self, stop: StopRequest) -> RunResult:
        """Epochs until the budget of every phase is spent, or its score stops rising, or a signal comes."""
        ended: Literal["done", "stopped"] = "done"
        with progress_bar() as bar:
            task = bar.add_task(
                "training",
                total=self.config.n_epochs * self.training.steps,
                completed=self._number(),
                note="",
            )
            while ended == "done" and not self._is_over():
                if self._phase_is_over():
                    self._begin_phase_2()
                ended = self._train_epoch(stop, bar, task)
        if ended == "done" and self.runtime.is_writer:
            self.log.write(is_last=True)
        return RunResult(
            run_dir=self.run_dir,
            n_epochs=self.steps.sampler.epoch - 1,
            ended=ended,
            best_epoch=self.best.at,
            best_score=self.best.score,
            rows=tuple(self.log.epochs),
        )

    def _train_epoch(self, stop: StopRequest, bar: Progress, task: TaskID) -> Literal["done", "stopped"]:
        """The rest of an epoch and what follows it."""
        epoch, n_patches = self.steps.sampler.epoch, 0
        self.steps.learner.begin_epoch()
        self.steps.learner.loss = self.method.loss_of(self.phase, epoch=epoch)
        with self.runtime.one_shape():
            while self.steps.sampler.epoch == epoch:
                with self.watch("training_s"):
                    to_stop, to_save = self._step(stop)
                    n_patches += self.training.batch_size
                    bar.update(task, advance=1, note=self._note(epoch) if not bar.disable else "")
                if self.steps.sampler.epoch == epoch and (to_stop or to_save):
                    self._save_last()
                    if to_stop:
                        return "stopped"
        self._close_epoch(epoch, n_patches)
        to_stop = self.runtime.any_rank(stop.asked)
        if (
            to_stop
            or epoch % self.training.checkpoint_epochs == 0
            or self._phase_is_over()
            or self.runtime.any_rank(self._save_is_due())
        ):
            self._save_last()
        if self.runtime.is_writer:
            self.log.write(is_last=False)
            log_line(bar, f"training {epoch}/{self.config.n_epochs}: {self.log.line()}")
        return "stopped" if to_stop and not self._is_over() else "done"

    def _step(self, stop: StopRequest) -> tuple[bool, bool]:
        """One batch; says whether all ranks are to stop, and to save."""
        to_stop, to_save = self.steps.take(self._number(), wishes=lambda: (stop.asked, self._save_is_due()))
        if len(self.steps.unchecked) >= LOSSES_AT_ONCE[self.runtime.device.type]:
            self._check_losses()
        return to_stop, to_save

    def _check_losses(self) -> None:
        """Add the losses of the last steps to the epoch's; end the run at the first that is not finite."""
        for number, draw, value in self.steps.losses():
            if not np.isfinite(value):
                self._fail(number, draw, value)
            self.loss_sum += value

    def _fail(self, number: int, draw: Draw, value: float) -> None:
        """Save the batch that broke the run and say so."""
        path = self.run_dir / f"bad_batch_rank{self.runtime.rank}.json"
        names = write_bad_batch(path, bank=self.bank, ids=draw.ids, step=number, loss=value)
        raise InputError(
            f"the loss is {value} at step {number}, on patches of {', '.join(names)}: see {path}; "
            "a lower optimizer.lr, an optimizer.clip_norm or training.precision=float32 may help"
        )

    # After an epoch

    def _close_epoch(self, epoch: int, n_patches: int) -> None:
        self._check_losses()
        is_last = epoch == self.phase.last_epoch
        if is_last and self.training.norm_statistics == "measured":
            with self.watch("validation_s"):
                measure_norms(
                    self.steps.learner.evaluated(), self.bank, divisor=self.divisor, runtime=self.runtime
                )
        evaluated = ready_for_inference(self.steps.learner.evaluated(), runtime=self.runtime)
        for state in self._other_ledgers():
            self.ledger.absorb(state)
        self._write_draws(epoch)
        self.log.ledger += self.ledger.close_epoch(epoch, self.steps.sampler.requested_in(epoch))
        with self.watch("mining_s"):
            sampler = self.steps.sampler
            if isinstance(sampler, HardSampler) and not is_last:
                n_draws = np.ceil(sampler.requested * self.training.batch_size * self.training.steps)
                pools = mine(
                    evaluated,
                    self.bank,
                    classes=sampler.hard_classes,
                    n_draws=n_draws.astype(np.int64),
                    hard=self.config.hard,
                    seed=self.training.seed,
                    epoch=epoch,
                    runtime=self.runtime,
                    divisor=self.divisor,
                    groups=sampler.groups,
                    readout=readout_of(self.config.loss.kind),
                )
                sampler.accept_pools(pools)
        scores = None
        with self.watch("validation_s"):
            if self.inner_bank is not None and (is_last or epoch % self.validation.every == 0):
                scores = score_inner_cases(
                    evaluated, self.inner_bank, runtime=self.runtime, divisor=self.divisor,
                    metric=self.validation.metric, of=self.validation.of,
                )  # fmt: skip
        self._note_epoch(epoch, scores)
        self.log.timing.append(self.watch.row(epoch, n_patches=n_patches))
        if self.validation.metric == "last" or self.best.at in (epoch, None):
            self._save(BEST, resume=None)
        if epoch in self.looks:
            self._save(look_folder(Path(), epoch) / BEST, resume=None)

    def _write_draws(self, epoch: int) -> None:
        """Write how often each case, and lesions of each size, were drawn."""
        if not self.runtime.is_writer:
            return
        self.log.append(
            "ledger_cases", self.ledger.case_rows(epoch, case_names=[case.id for case in self.bank.cases])
        )
        if self.method.lesions is not None:
            rows = self.ledger.lesion_rows(epoch, index=self.bank.index, lesions=self.method.lesions)
            self.log.append("ledger_lesions", rows)

    def _note_epoch(self, epoch: int, scores: InnerScores | None) -> None:
        score = scores.value if scores is not None else None
        best = Best() if self.validation.metric == "last" else self.best
        is_best = score is not None and best.see(epoch, score)
        if is_best:
            self.best = best
        n_done = epoch * self.training.steps
        dice = {f"dice_{region}": scores.dice[region] if scores is not None else None for region in REGIONS}
        loss = self.loss_sum / self.training.steps
        row = {
            "epoch": epoch,
            "step": n_done,
            "lr": self.steps.learner.rate(n_done - 1),
            "loss": loss,
            **dice,
            "score": score,
        }
        self.log.epochs.append({**row, "is_best": int(is_best)})
        self.loss_sum = 0.0
        self.steps.n_drawn[:] = 0

    # From phase to phase

    def _begin_phase_2(self) -> None:
        """Keep what phase 1 ended with, and go on from the weights to predict with."""
        self._save(PHASE_1, resume=None)
        network = self.steps.learner.network
        network.load_state_dict(self.steps.learner.weights())
        self._enter(self.method.begun_at(self.steps.sampler.epoch), network)
        self.best = Best()

    def _enter(self, phase: Phase, network: nn.Module) -> None:
        self.phase = phase
        self.steps = Steps(
            sampler=self.method.make_sampler(phase),
            source=self.source,
            learner=self.method.make_learner(phase, network),
            ledger=self.ledger,
            watch=self.watch,
        )

    def _is_over(self) -> bool:
        done = self.steps.sampler.epoch - 1
        return self._phase_is_over() and self.method.after(self.phase, ended=done) is None

    def _phase_is_over(self) -> bool:
        """Whether the phase's epochs are spent, or its score has not risen for `validation.patience`
        epochs.
        """
        done = self.steps.sampler.epoch - 1
        if done >= self.phase.last_epoch:
            return True
        if self.validation.patience is None or self.best.at is None:
            return False
        return done - max(self.best.at, self.method.settled_from(self.phase) - 1) >= self.validation.patience

    # Saving and going on

    def _restore(self, checkpoint: Checkpoint, path: Path) -> None:
        """Go on where the checkpoint was written."""
        self._check_own(checkpoint, path)
        if checkpoint.resume is None:
            raise InputError(f"{path}: holds only what prediction needs; a run goes on from {LAST}")
        here = (precision_name(self.runtime), self.runtime.n_threads)
        if (checkpoint.precision, checkpoint.n_threads) != here:
            was = f"{checkpoint.precision} on {checkpoint.n_threads} threads"
            logger.warning(
                "%s: written in %s; with %s on %d the run goes on, but not to the same bits", path, was, *here
            )
        saved = checkpoint.resume
        if (began := saved.get("phase_began", 1)) > 1:
            self._enter(self.method.begun_at(began), self.steps.learner.network)
        self.steps.learner.load_state_dict(saved["learner"], weights=checkpoint.weights)
        self.steps.sampler.load_state_dict(saved["sampler"])
        self.ledger.load_state_dict(
            saved["ledger"] if self.runtime.is_writer else _closed_epochs(saved["ledger"])
        )
        self.log.load_state_dict(saved["log"])
        self.loss_sum, self.best = saved["loss_sum"], Best(saved["best_epoch"], saved["best_score"])
        self.watch.load_state_dict(saved.get("watch", {}))

    def _check_own(self, checkpoint: Checkpoint, path: Path) -> None:
        """Refuse a checkpoint of other data or another run."""
        check_same_data(checkpoint, path, modalities=self.bank.modalities, classes=self.bank.classes)
        check_same_run(
            checkpoint,
            path,
            config=dump_config(self.config),
            bank=self.bank.digest,
            cases=(self.split.train, self.split.inner, self.split.held_out),
        )

    def _save_last(self) -> None:
        self._check_losses()
        everything = Ledger(self.bank.classes)
        everything.load_state_dict(self.ledger.state_dict())
        for state in self._other_ledgers():
            everything.absorb(state)
        with self.watch("checkpoint_s"):
            self._save(
                LAST,
                resume={
                    "phase_began": self.phase.first_epoch,
                    "learner": self.steps.learner.state_dict(),
                    "sampler": self.steps.sampler.state_dict(),
                    "ledger": everything.state_dict(),
                    "log": self.log.state_dict(),
                    "loss_sum": self.loss_sum,
                    "best_epoch": self.best.at,
                    "best_score": self.best.score,
                    "watch": self.watch.state_dict(),
                },
            )
        self.saved_at = time.monotonic()

    def _save_is_due(self) -> bool:
        return (
            self.runtime.is_writer
            and time.monotonic() - self.saved_at > 60 * self.training.checkpoint_minutes
        )

    def _save(self, name: str | Path, *, resume: dict[str, Any] | None) -> None:
        if not self.runtime.is_writer:
            return
        path = self.run_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        scores = [
            row["score"]
            for row in self.log.epochs
            if row["score"] is not None and row["epoch"] >= self.phase.first_epoch
        ]
        prior = self.method.effective_prior(self.phase, self.ledger, epoch=self.steps.sampler.epoch - 1)
        checkpoint = Checkpoint(
            weights=self.steps.learner.weights(),
            config=dump_config(self.config),
            modalities=tuple(self.bank.modalities),
            classes=tuple(self.bank.classes),
            spacing_mm=tuple(self.bank.spacing_mm),
            normalization=self.bank.normalization,
            bank=self.bank.digest,
            fold=self.split.fold,
            train_cases=self.split.train,
            inner_cases=self.split.inner,
            held_out_cases=self.split.held_out,
            effective_prior=None if prior is None else tuple(prior.tolist()),
            natural_prior=tuple(self.method.natural_prior.tolist()),
            epoch=self.steps.sampler.epoch - 1,
            step=self.steps.sampler.step,
            score=scores[-1] if scores else None,
            n_threads=self.runtime.n_threads,
            precision=precision_name(self.runtime),
            versions=library_versions(),
            resume=resume,
        )
        save_checkpoint(path, checkpoint)

    # Small things

    def _other_ledgers(self) -> list[dict[str, Any]]:
        """What the other ranks drew in the open epoch."""
        if self.runtime.world_size == 1:
            return []
        return [
            state
            for rank, state in enumerate(self.runtime.gather(self.ledger.state_dict()))
            if rank != self.runtime.rank
        ]

    def _number(self) -> int:
        """Steps done, over all epochs."""
        return (self.steps.sampler.epoch - 1) * self.training.steps + self.steps.sampler.step

    def _note(self, epoch: int) -> str:
        step = (
            self.steps.sampler.step if self.steps.sampler.epoch == epoch else self.training.steps
        )  # the sampler goes on at an epoch's last step
        n_done = step - len(self.steps.unchecked)
        loss = self.loss_sum / n_done if n_done > 0 else None
        return progress_note(epoch, n_drawn=self.steps.n_drawn, loss=loss)


def _closed_epochs(ledger: dict[str, Any]) -> dict[str, Any]:
    """A ledger's state without its open epoch, which rank 0 alone takes up."""
    return {
        **ledger,
        **{name: np.zeros_like(ledger[name][:0]) for name in ("ids", "classes", "hard")},
        "voxels": ledger["voxels"] * 0,
    }
