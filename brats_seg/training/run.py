"""The folder of a run in training: its tables and checkpoints, and resuming from a checkpoint."""

import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from brats_seg.bank.bank import PatchBank
from brats_seg.core.config import Config
from brats_seg.core.errors import InputError, UsageError, is_out_of_memory
from brats_seg.core.files import BEST, LAST, PHASE_1, write_text
from brats_seg.core.progress import log_line
from brats_seg.core.runtime import Runtime
from brats_seg.core.settings import dump_config
from brats_seg.imbalance.ledger import Ledger
from brats_seg.models.checkpoint import (
    Checkpoint,
    first_line,
    library_versions,
    load_checkpoint,
    save_checkpoint,
)
from brats_seg.models.restore import check_same_data, check_same_run
from brats_seg.scans.labels import REGIONS
from brats_seg.training.log import (
    RunLog,
    precision_name,
    progress_note,
    write_bad_batch,
    write_environment,
)
from brats_seg.training.loop import Loop, Record
from brats_seg.training.split import Split
from brats_seg.training.steps import Best, Losses

LOOKS = "looks"
"""The folder in a run with the weights of epochs before its end."""
LOSSES_AT_ONCE = {"cpu": 1, "cuda": 50}
"""Number of steps between two reads of the losses. Each read makes a GPU wait."""

logger = logging.getLogger(__name__)


def look_folder(run_dir: Path, epoch: int) -> Path:
    """The folder in which a run keeps the weights of an epoch of `looks`, as `checkpoint_best.pt`. The folder
    can be used as a run.
    """
    return run_dir / LOOKS / f"epoch{epoch}"


@dataclass(kw_only=True)
class RunFolder(Record):
    """The files that a training on scans writes, and from which it is resumed.

    Attributes:
        run_dir: the folder.
        bank: its selected cases are the training cases.
        split: case ids by their use.
        config: every knob.
        runtime: device, precision and ranks; the first rank writes.
        looks: epochs after which the prediction weights are kept (`look_folder`).
        log: the tables.
        loss_sum: sum of the losses of the epoch that were read.
    """

    run_dir: Path
    bank: PatchBank
    split: Split
    config: Config
    runtime: Runtime
    looks: tuple[int, ...] = ()
    ledger: Ledger = field(init=False)
    log: RunLog = field(init=False)
    loss_sum: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        classes, is_writer = self.bank.classes, self.runtime.is_writer
        self._config_text = dump_config(self.config)
        self.ledger = Ledger(classes)
        self.losses_at_once = LOSSES_AT_ONCE[self.runtime.device.type]
        tensorboard = self.config.training.tensorboard and is_writer
        self.log = RunLog(self.run_dir, classes=classes, tensorboard=tensorboard)
        self._saved_at, self._n_patches = time.monotonic(), 0
        self._bar: Progress | None = None

    def begin(self, loop: Loop, *, resume: bool) -> None:
        """Start in an empty folder, or resume the run in a used folder.

        Raises:
            UsageError: the folder is used and `resume` is not given, or the knobs differ from those of the
                run.
            InputError: the checkpoint is damaged, or belongs to another bank.
        """
        path = self.run_dir / LAST
        used = path.exists()
        # the first rank creates the folder, possibly after this rank checks it
        files = sorted(file.name for file in self.run_dir.glob("[!.]*"))
        if files and not resume:
            what = (
                "a run; give --resume to continue it, or"
                if "config.yaml" in files
                else f"other files ({files[0]}); give"
            )
            raise UsageError(f"{self.run_dir} holds {what} another folder")
        if used:
            self._restore(loop, load_checkpoint(path), path)
        elif (best := self.run_dir / BEST).exists():
            # a run killed before its first checkpoint, or another run; its best checkpoint must not be
            # overwritten
            self._check_own(load_checkpoint(best), best)
        self.runtime.gather(None)  # no rank writes before all ranks have read
        if self.runtime.is_writer:
            for part in self.run_dir.glob(".*.part"):  # incomplete files of a killed process
                part.unlink()
            write_text(self.run_dir / "config.yaml", self._config_text)
            write_environment(
                self.run_dir / "environment.json",
                runtime=self.runtime,
                command=sys.argv,
                bank=self.bank.digest,
                n_parameters=sum(p.numel() for p in loop.steps.learner.network.parameters()),
                initial=self.config.training.initial,
            )

    def show_on(self, bar: Progress, *, n_done: int) -> None:
        """Show the steps on a progress bar. `n_done` steps were done before."""
        total = self.config.n_epochs * self.config.training.steps
        self._bar, self._task = bar, bar.add_task("training", total=total, completed=n_done, note="")

    # Calls from the loop

    def take_losses(self, losses: Losses) -> None:
        """Add losses to the sum of the epoch. Raises `InputError` at the first loss that is not finite, and
        saves its batch.
        """
        for number, draw, value in losses:
            if not np.isfinite(value):
                path = self.run_dir / f"bad_batch_rank{self.runtime.rank}.json"
                names = write_bad_batch(path, bank=self.bank, ids=draw.ids, step=number, loss=value)
                raise InputError(
                    f"the loss is {value} at step {number}, on patches of {', '.join(names)}: see {path}; a "
                    "lower optimizer.lr, an optimizer.clip_norm or training.precision=float32 may help"
                )
            self.loss_sum += value

    def note_step(self, loop: Loop) -> None:
        """Advance the progress bar."""
        self._n_patches += self.config.training.batch_size
        if self._bar is None:
            return
        note = ""
        if not self._bar.disable:
            epoch, step = divmod(loop.n_done - 1, self.config.training.steps)
            n_seen = step + 1 - len(loop.steps.unchecked)
            loss = self.loss_sum / n_seen if n_seen > 0 else None
            note = progress_note(epoch + 1, n_drawn=loop.steps.n_drawn, loss=loss)
        self._bar.update(self._task, advance=1, note=note)

    def wants_save(self) -> bool:
        """Whether the last checkpoint is older than `training.checkpoint_minutes`."""
        age = time.monotonic() - self._saved_at
        return self.runtime.is_writer and age > 60 * self.config.training.checkpoint_minutes

    def end_steps(self, loop: Loop, epoch: int) -> None:
        """Read the last losses, and write how often each class, each case, and lesions of each size were
        drawn.
        """
        self.take_losses(loop.steps.losses())
        for state in self._other_ledgers():
            self.ledger.absorb(state)
        if self.runtime.is_writer:
            names = [case.id for case in self.bank.cases]
            self.log.append("ledger_cases", self.ledger.case_rows(epoch, case_names=names))
            if (lesions := loop.method.lesions) is not None:
                rows = self.ledger.lesion_rows(epoch, index=self.bank.index, lesions=lesions)
                self.log.append("ledger_lesions", rows)
        self.log.ledger += self.ledger.close_epoch(epoch, loop.steps.sampler.requested_in(epoch))

    def end_epoch(self, loop: Loop, epoch: int, scores: Mapping[str, float] | None) -> None:
        """Add the row of the epoch, and keep its weights if they are the best or in `looks`."""
        names = (*(f"dice_{region}" for region in REGIONS), "score")
        self.log.epochs.append(
            {
                "epoch": epoch,
                "step": loop.n_done,
                "lr": loop.steps.learner.rate(loop.n_done - 1),
                "loss": self.loss_sum / self.config.training.steps,
                **{name: None if scores is None else scores[name] for name in names},
                "is_best": int(scores is not None and loop.best.at == epoch),
            }
        )
        self.loss_sum = 0.0
        loop.steps.n_drawn[:] = 0
        self.log.timing.append(self.watch.row(epoch, n_patches=self._n_patches))
        self._n_patches = 0
        if self.config.validation.metric == "last" or loop.best.at in (epoch, None):
            self._save(loop, BEST)
        if epoch in self.looks:
            self._save(loop, look_folder(Path(), epoch) / BEST)

    def after_epoch(self, loop: Loop, epoch: int, *, to_stop: bool) -> None:
        """Save a checkpoint if it is due, and write the tables."""
        if (
            to_stop
            or epoch % self.config.training.checkpoint_epochs == 0
            or loop.phase_is_over()
            or self.runtime.any_rank(self.wants_save())
        ):
            self.save(loop)
        if self.runtime.is_writer:
            self.log.write(is_last=False)
            if self._bar is not None:
                log_line(self._bar, f"training {epoch}/{self.config.n_epochs}: {self.log.line()}")

    def end_phase(self, loop: Loop) -> None:
        """Keep the weights at the end of phase 1."""
        self._save(loop, PHASE_1)

    def save(self, loop: Loop) -> None:
        """Write `checkpoint_last.pt`."""
        self.take_losses(loop.steps.losses())
        everything = Ledger(self.bank.classes)
        everything.load_state_dict(self.ledger.state_dict())
        for state in self._other_ledgers():
            everything.absorb(state)
        with self.watch("checkpoint_s"):
            self._save(
                loop,
                LAST,
                resume={
                    "phase_began": loop.phase.first_epoch,
                    "learner": loop.steps.learner.state_dict(),
                    "sampler": loop.steps.sampler.state_dict(),
                    "ledger": everything.state_dict(),
                    "log": self.log.state_dict(),
                    "loss_sum": self.loss_sum,
                    "best_epoch": loop.best.at,
                    "best_score": loop.best.score,
                    "watch": self.watch.state_dict(),
                },
            )
        self._saved_at = time.monotonic()

    # Checkpoints

    def _restore(self, loop: Loop, checkpoint: Checkpoint, path: Path) -> None:
        self._check_own(checkpoint, path)
        if checkpoint.resume is None:
            raise InputError(f"{path}: can only be used for prediction; a run is resumed from {LAST}")
        here = (precision_name(self.runtime), self.runtime.n_threads)
        if (checkpoint.precision, checkpoint.n_threads) != here:
            was = f"{checkpoint.precision} on {checkpoint.n_threads} threads"
            logger.warning(
                "%s: written in %s; with %s on %d threads the resumed run differs by rounding",
                path,
                was,
                *here,
            )
        try:
            self._take_up(loop, checkpoint, checkpoint.resume)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            raise InputError(
                f"{path}: damaged, the run cannot be resumed: {first_line(error)}; start a new run"
            ) from error

    def _take_up(self, loop: Loop, checkpoint: Checkpoint, saved: Mapping[str, Any]) -> None:
        if (began := saved.get("phase_began", 1)) > 1:
            loop.enter(loop.method.begun_at(began), loop.steps.learner.network)
        loop.steps.learner.load_state_dict(saved["learner"], weights=checkpoint.weights)
        loop.steps.sampler.load_state_dict(saved["sampler"])
        self.ledger.load_state_dict(
            saved["ledger"] if self.runtime.is_writer else _closed_epochs(saved["ledger"])
        )
        self.log.load_state_dict(saved["log"])
        self.watch.load_state_dict(saved.get("watch", {}))
        self.loss_sum = saved["loss_sum"]
        loop.go_on(checkpoint.epoch, checkpoint.step, Best(saved["best_epoch"], saved["best_score"]))

    def _check_own(self, checkpoint: Checkpoint, path: Path) -> None:
        check_same_data(checkpoint, path, modalities=self.bank.modalities, classes=self.bank.classes)
        check_same_run(
            checkpoint,
            path,
            config=self._config_text,
            bank=self.bank.digest,
            cases=(self.split.train, self.split.inner, self.split.held_out),
        )

    def _save(self, loop: Loop, name: str | Path, *, resume: dict[str, Any] | None = None) -> None:
        if not self.runtime.is_writer:
            return
        path = self.run_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        phase, (epoch, step) = loop.phase, divmod(loop.n_done, self.config.training.steps)
        scores = [
            row["score"]
            for row in self.log.epochs
            if row["score"] is not None and row["epoch"] >= phase.first_epoch
        ]
        prior = loop.method.effective_prior(phase, self.ledger, epoch=epoch)
        checkpoint = Checkpoint(
            weights=loop.steps.learner.weights(),
            config=self._config_text,
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
            natural_prior=tuple(loop.method.natural_prior.tolist()),
            epoch=epoch,
            step=step,
            score=scores[-1] if scores else None,
            n_threads=self.runtime.n_threads,
            precision=precision_name(self.runtime),
            versions=library_versions(),
            resume=resume,
        )
        save_checkpoint(path, checkpoint)

    def _other_ledgers(self) -> list[dict[str, Any]]:
        """The ledgers of the other ranks for the open epoch."""
        if self.runtime.world_size == 1:
            return []
        states = self.runtime.gather(self.ledger.state_dict())
        return [state for rank, state in enumerate(states) if rank != self.runtime.rank]


def _closed_epochs(ledger: dict[str, Any]) -> dict[str, Any]:
    """The state of a ledger without its open epoch, which only rank 0 loads."""
    return {
        **ledger,
        **{name: np.zeros_like(ledger[name][:0]) for name in ("ids", "classes", "hard")},
        "voxels": ledger["voxels"] * 0,
    }
