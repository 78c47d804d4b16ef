"""Trained runs -> segmenters."""

from collections.abc import Sequence

from brats_seg.core.errors import UsageError
from brats_seg.core.runtime import Runtime
from brats_seg.inference.dense import ready_for_inference
from brats_seg.inference.segmenter import Segmenter
from brats_seg.inference.windowed import Inference, choose_window
from brats_seg.models.checkpoint import check_same_data
from brats_seg.models.networks import network_divisor
from brats_seg.models.readout import readout_of
from brats_seg.models.trained import TrainedNetwork, TrainedRun


def load_segmenters(
    runs: Sequence[TrainedRun],
    *,
    runtime: Runtime,
    inference: Inference = "auto",
    correct_priors: float = 0.0,
    allow_missing: bool = False,
) -> tuple[Segmenter, ...]:
    """The networks of several runs, ready to predict; they must agree on modalities and tissue classes.

    Args:
        runs: whose networks are averaged.
        runtime: what to predict on.
        inference: whole slices or windows; "auto" chooses for each network.
        correct_priors: strength of prior correction, 0 to 1.
        allow_missing: whether they are to take cases that lack modalities.

    Raises:
        InputError: runs that do not fit together, or weights that do not fit their config.
        UsageError: a stage of a cascade alone, prior correction of a network without a prior, or a network
            that was not trained for missing modalities.
    """
    networks = [network for run in runs for network in run.networks]
    first = networks[0].checkpoint
    for one in networks:
        check_same_data(one.checkpoint, one.path, modalities=first.modalities, classes=first.classes)
        _check_use(one, allow_missing=allow_missing)
    return tuple(
        _segmenter(one, runtime=runtime, inference=inference, correct_priors=correct_priors)
        for one in networks
    )


def _segmenter(
    trained: TrainedNetwork, *, runtime: Runtime, inference: Inference, correct_priors: float
) -> Segmenter:
    checkpoint, config = trained.checkpoint, trained.config
    network = ready_for_inference(trained.restore(runtime), runtime=runtime)
    low, high = checkpoint.normalization["percentiles"]
    z, y, x = checkpoint.spacing_mm
    return Segmenter(
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
        class_shift=trained.class_shift(correct_priors),
        readout=readout_of(config.loss.kind),
        checkpoint=trained.digest,
    )


def _check_use(trained: TrainedNetwork, *, allow_missing: bool) -> None:
    """Refuse a stage of a cascade alone, which would call all of the brain tumor, or all tumor alike; and a
    network that was not trained for missing modalities.
    """
    run, kind = trained.path.parent, trained.config.task.classes
    if kind != "all":
        part = "healthy from tumor" if kind == "healthy_or_tumor" else "the tumor classes"
        raise UsageError(
            f"{run}: was trained with task.classes={kind}, a stage of a cascade that tells {part} apart and "
            "nothing else; compose it with "
            "its other stage (`brats-seg cascade DETECTOR CLASSIFIER RUN`) and give the composed run"
        )
    if allow_missing and trained.config.augment.modality_dropout == 0:
        raise UsageError(
            f"--allow-missing: {run} was trained with augment.modality_dropout 0; it needs every "
            "modality of a case; "
            "train with --set augment.modality_dropout=0.2 or so to take fewer"
        )
