"""Run folders -> segmenters, and the cases they held out."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from brats_seg.core.config import Config
from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.files import read_table, sha256
from brats_seg.core.run_folder import BEST
from brats_seg.core.runtime import Runtime
from brats_seg.imbalance.priors import correct_logits, require_prior
from brats_seg.inference.dense import ready_for_inference
from brats_seg.inference.segmenter import Segmenter
from brats_seg.inference.windowed import Inference, choose_window
from brats_seg.models.checkpoint import Checkpoint, check_same_data, load_checkpoint, restore_network
from brats_seg.models.networks import network_divisor
from brats_seg.models.packaged import checkpoints_of, is_packaged
from brats_seg.models.readout import readout_of
from brats_seg.scans.problem import Problem


def load_segmenters(
    runs: Sequence[str | Path],
    *,
    runtime: Runtime,
    inference: Inference = "auto",
    correct_priors: float = 0.0,
    allow_missing: bool = False,
) -> tuple[Segmenter, ...]:
    """The networks of several runs, ready to predict; they must agree on modalities and tissue classes.

    Args:
        runs: run folders, whose best checkpoint is taken, or folders of packaged networks, all of whose
            checkpoints are.
        runtime: what to predict on.
        inference: whole slices or windows; "auto" chooses for each network.
        correct_priors: strength of prior correction, 0 to 1.
        allow_missing: whether they are to take cases that lack modalities.

    Raises:
        InputError: no checkpoint, a bad one, or runs that do not fit together.
        UsageError: a stage of a cascade alone, prior correction of a network without a prior, or a network
            that was not trained for missing modalities.
    """
    segmenters: list[Segmenter] = []
    for path in [path for run in runs for path in checkpoints_of(Path(run))]:
        run, checkpoint = path.parent, load_checkpoint(path)
        if segmenters:
            check_same_data(
                checkpoint, path, modalities=segmenters[0].modalities, classes=segmenters[0].classes
            )
        config = checkpoint.parsed_config()
        _require_all_classes(config, run)
        if allow_missing and config.augment.modality_dropout == 0:
            raise UsageError(
                f"--allow-missing: {run} was trained with augment.modality_dropout 0; it needs every "
                "modality of a case; "
                "train with --set augment.modality_dropout=0.2 or so to take fewer"
            )
        network = ready_for_inference(restore_network(checkpoint, path, runtime=runtime), runtime=runtime)
        low, high = checkpoint.normalization["percentiles"]
        z, y, x = checkpoint.spacing_mm
        segmenters.append(
            Segmenter(
                network=network,
                modalities=checkpoint.modalities,
                classes=checkpoint.classes,
                spacing_mm=(z, y, x),
                percentiles=(low, high),
                n4=checkpoint.normalization.get("n4", False),
                n_dims=3 if len(config.patch.size) == 3 else 2,
                divisor=network_divisor(config.network),
                window=choose_window(network, patch_size=config.patch.size, inference=inference),
                inference="auto" if inference == "auto" else "windowed",
                slices_around=config.patch.slices_around,
                class_shift=class_shift(checkpoint, path, strength=correct_priors),
                readout=readout_of(config.loss.kind),
                checkpoint=sha256(path),
            )
        )
    return tuple(segmenters)


def held_out_cases(run: str | Path) -> tuple[str, ...]:
    """Ids of the cases that a run's fold held out, or that all networks of a packaged one did.

    Raises:
        InputError: there is none.
    """
    common, *others = (load_checkpoint(path).held_out_cases for path in checkpoints_of(Path(run)))
    held_out = tuple(case for case in common if all(case in theirs for theirs in others))
    if not held_out:
        trained = (
            "its networks, together, were trained on every case"
            if others
            else "was trained on every case (--fold all)"
        )
        raise InputError(f"{run}: {trained}; there is no held-out case to predict")
    return held_out


def held_out_by_all(runs: Sequence[str | Path]) -> tuple[str, ...]:
    """Ids that every run held out: a case that one of several averaged networks was trained on is no held-out
    case.
    """
    common, *others = (held_out_cases(run) for run in runs)
    for run, theirs in zip(runs[1:], others, strict=True):
        common = tuple(case for case in common if case in theirs)
        if not common:
            raise UsageError(
                f"--held-out --also {run}: held out no case that {runs[0]} held out; average runs of one fold"
            )
    return common


def unfinished(run: str | Path) -> Problem | None:
    """A warning where a run has not come to its last epoch, as its `epochs.csv` says; it may have ended early
    for its patience.
    """
    run = Path(run)
    if is_packaged(run) or not (run / "epochs.csv").is_file():
        return None
    checkpoint = load_checkpoint(run / BEST)
    config = checkpoint.parsed_config()
    try:
        _, rows = read_table(run / "epochs.csv")
        best = max((int(row["epoch"]) for row in rows if row["is_best"] == "1"), default=len(rows))
    except (InputError, KeyError, ValueError):
        what = "is damaged: nothing says whether the training is finished"
        return Problem(
            "warning", "", str(run / "epochs.csv"), what, "`brats-seg train` with --resume writes it anew"
        )
    n_done, patience = len(rows), config.validation.patience
    if n_done >= config.n_epochs or (patience is not None and n_done - best >= patience):
        return None
    what = (
        f"checkpoint of epoch {checkpoint.epoch} of {config.n_epochs}: the training stands at epoch {n_done}"
    )
    return Problem("warning", "", str(run), what, "a finished run; `brats-seg train` with --resume goes on")


def class_shift(checkpoint: Checkpoint, path: str | Path, *, strength: float) -> tuple[float, ...] | None:
    """What a prior correction adds to the logits: from the prior the network was trained under to the natural
    one of its cases.
    """
    if strength == 0:
        return None
    loss = checkpoint.parsed_config().loss
    require_prior(loss.kind)
    if loss.outside == "ignore":
        # Each patch is averaged over its own brain voxels: those of patches at the brain's edge weigh more
        # than the ledger counts them.
        raise UsageError(
            "--correct-priors: the run has loss.outside=ignore, so its prior is not the ledger's; it needs "
            "loss.outside=healthy"
        )
    if checkpoint.effective_prior is None or checkpoint.natural_prior is None:
        raise InputError(f"{path}: does not hold the priors that --correct-priors needs; train the run again")
    training, natural = np.array(checkpoint.effective_prior), np.array(checkpoint.natural_prior)
    shift = correct_logits(
        np.zeros(len(training)), training_prior=training, target_prior=natural, strength=strength
    )
    return tuple(shift.tolist())


def _require_all_classes(config: Config, run: Path) -> None:
    """Refuse a stage of a cascade alone, which would call all of the brain tumor, or all tumor alike."""
    kind = config.task.classes
    if kind != "all":
        part = "healthy from tumor" if kind == "healthy_or_tumor" else "the tumor classes"
        raise UsageError(
            f"{run}: was trained with task.classes={kind}, a stage of a cascade that tells {part} apart and "
            "nothing else; compose it with "
            "its other stage (`brats-seg cascade DETECTOR CLASSIFIER RUN`) and give the composed run"
        )
