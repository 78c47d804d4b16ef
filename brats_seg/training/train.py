"""Train a network on a patch bank."""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import nn

from brats_seg.bank.bank import PatchBank
from brats_seg.bank.lesions import lesions_of_case
from brats_seg.core.config import Config
from brats_seg.core.files import lock
from brats_seg.core.progress import progress_bar
from brats_seg.core.runtime import Runtime, catch_stop_signals
from brats_seg.models.builders import margin_of
from brats_seg.models.checkpoint import Checkpoint
from brats_seg.models.networks import check_patch_size, make_network, network_divisor
from brats_seg.models.readout import readout_of
from brats_seg.models.restore import take_weights
from brats_seg.training.augment import Augmenter
from brats_seg.training.exchange import check_ranks
from brats_seg.training.loop import Loop
from brats_seg.training.norms import measure_norms
from brats_seg.training.phases import Method
from brats_seg.training.run import RunFolder
from brats_seg.training.source import BankSource, score_network
from brats_seg.training.split import RunResult, Split
from brats_seg.training.validation import check_metric

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
    """Train a network on a bank, or resume a run bit-exactly.

    After SIGTERM or Ctrl-C the training saves its state and returns. A second Ctrl-C interrupts it
    immediately.

    Args:
        run_dir: folder of the run; created if it does not exist. A used folder is refused without `resume`.
        bank: bank with the patch size of the training. The split determines which of its cases are used.
        split: case ids by their use.
        config: every knob.
        runtime: device, precision and ranks.
        resume: resume the run in the folder; an empty folder starts a new run.
        initial: checkpoint whose weights are the initial weights of every layer that fits; a warning names
            the other layers.
        looks: epochs after which the prediction weights are kept (`look_folder`).

    Raises:
        UsageError: knobs do not fit each other or the run to resume, or the folder is used and `resume` is
            not given.
        InputError: the loss is not finite (the batch is saved), the checkpoint is damaged, the bank is not
            the bank of the run, or another process uses the folder.
    """
    network, training, jitter = config.network, config.training, config.sampler.jitter
    check_ranks(training.batch_size, world_size=runtime.world_size)
    n_together = training.batch_size // runtime.world_size // training.accumulate
    check_patch_size(network, patch_size=bank.patch_size, n_together=n_together, jitter=jitter)
    bank = bank.regroup(config.task.classes)
    check_metric(config.validation.metric, of=config.validation.of, classes=bank.classes)
    seen = bank.select(split.train).to(runtime.device)
    numberer = partial(lesions_of_case, bank.cases)
    method = Method(config=config, index=seen.index, runtime=runtime, number_lesions=numberer)
    method.check()
    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        built = make_network(
            network, n_channels=bank.n_channels, n_classes=len(bank.classes), n_dims=len(bank.patch_size)
        )
    if initial is not None and (left_out := take_weights(built, initial)) and runtime.is_writer:
        logger.warning("--from: layers that do not fit keep random initial weights: %s", ", ".join(left_out))
    if initial is not None and runtime.is_writer:
        warn_of_seen_cases(initial, split)
    divisor = network_divisor(network)
    augmenter = Augmenter(
        config.augment,
        seed=training.seed,
        patch_size=bank.patch_size,
        n_slices=2 * bank.slices_around + 1,
        jitter=jitter,
    )
    source = BankSource(
        bank=seen,
        augment=augmenter,
        margin=margin_of(built),
        training=training,
        runtime=runtime,
        divisor=divisor,
        readout=readout_of(config.loss.kind),
    )
    scorer, measure = None, None
    if split.inner:
        inner = bank.select(split.inner)
        scorer = partial(
            score_network, bank=inner, validation=config.validation, runtime=runtime, divisor=divisor
        )
    if training.norm_statistics == "measured":
        measure = partial(measure_norms, bank=seen, divisor=divisor, runtime=runtime)

    def finish(network: nn.Module) -> None:
        method.normalize(network)
        if measure is not None:
            measure(network)

    record = RunFolder(
        run_dir=run_dir, bank=seen, split=split, config=config, runtime=runtime, looks=tuple(looks),
        watch=source.watch,
    )  # fmt: skip
    loop = Loop(
        method=method, phase=method.first(), network=built, source=source, record=record, scorer=scorer,
        finish=finish,
    )  # fmt: skip
    with _own(run_dir, runtime), catch_stop_signals() as stop:
        record.begin(loop, resume=resume)
        with progress_bar() as bar:
            record.show_on(bar, n_done=loop.n_done)
            ended = loop.run(stop)
        if ended == "done" and runtime.is_writer:
            record.log.write(is_last=True)
        return RunResult(
            run_dir=run_dir,
            n_epochs=loop.n_epochs,
            ended=ended,
            best_epoch=loop.best.at,
            best_score=loop.best.score,
            rows=tuple(record.log.epochs),
        )


def warn_of_seen_cases(initial: Checkpoint, split: Split) -> None:
    """Log a warning if the initial weights were trained or chosen on held-out cases of this run, or trained
    on its inner cases. Cases are compared by their ids.
    """
    held_out = {*initial.train_cases, *initial.inner_cases}.intersection(split.held_out)
    if held_out:
        logger.warning(
            "--from: the initial network was trained or chosen on %d of the %d held-out cases (%s): their "
            "scores will be too high; give a run of the same fold",
            len(held_out), len(split.held_out), _first(held_out),
        )  # fmt: skip
    inner = set(initial.train_cases).intersection(split.inner)
    if inner:
        logger.warning(
            "--from: the initial network was trained on %d of the %d inner cases (%s): their scores "
            "are too high and cannot choose the best epoch; validation.metric=last uses the last epoch",
            len(inner), len(split.inner), _first(inner),
        )  # fmt: skip
    elif split.inner and not initial.train_cases:
        logger.warning(
            "--from: the initial network does not record its training cases: if the inner cases are among "
            "them, their scores cannot choose the best epoch; validation.metric=last uses the last epoch"
        )


def _first(cases: set[str]) -> str:
    return ", ".join(sorted(cases)[:3]) + (", ..." if len(cases) > 3 else "")


def _own(run_dir: Path, runtime: Runtime) -> AbstractContextManager[None]:
    if not runtime.is_writer:
        return nullcontext()
    run_dir.mkdir(parents=True, exist_ok=True)
    return lock(run_dir / ".lock")
