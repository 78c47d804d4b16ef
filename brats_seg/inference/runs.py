"""Trained runs -> segmenters, and the settings to use them with."""

from collections.abc import Sequence
from dataclasses import replace

from brats_seg.core.errors import UsageError
from brats_seg.core.runtime import Runtime, start_runtime
from brats_seg.inference.options import Inference, PredictOptions, Settings
from brats_seg.inference.ready import ready_for_inference
from brats_seg.inference.segmenter import Segmenter
from brats_seg.inference.tuned import read_tuning
from brats_seg.inference.windowed import choose_window
from brats_seg.models.networks import network_divisor
from brats_seg.models.readout import readout_of
from brats_seg.models.restore import check_same_data
from brats_seg.models.trained import TrainedNetwork, TrainedRun
from brats_seg.scans.case import Problem


def load_for_prediction(
    runs: Sequence[TrainedRun], options: PredictOptions
) -> tuple[tuple[Segmenter, ...], PredictOptions]:
    """The networks of runs by the options of `predict`; and the options, whose `settings` are now those to
    use: given by hand, or found by `brats-seg tune`.

    Raises:
        InputError: as `load_segmenters`; or no settings where `tuned` asks for them.
        UsageError: as `load_segmenters`; or `tuned` beside other settings.
    """
    first = runs[0]
    tuned = options.tuned
    if tuned is None:
        tuned = first.comes_tuned and not _by_hand(options)
    elif tuned and _by_hand(options):
        raise UsageError(
            "--tuned: settings are found for one network, all together; leave out --also and settings given "
            "by hand"
        )
    if tuned:
        options = replace(options, settings=read_tuning(first.folder, checkpoint=first.digest).settings)
    segmenters = load_segmenters(
        runs,
        runtime=start_runtime(device=options.device, precision=options.precision),
        inference=options.inference,
        correct_priors=options.settings.correct_priors,
        allow_missing=options.allow_missing,
    )
    return segmenters, options


def unused_tuning(run: TrainedRun, options: PredictOptions) -> Problem | None:
    """A warning where the settings that travel with a packaged network are not used, for others are given."""
    if options.tuned is not None or not run.comes_tuned or not _by_hand(options):
        return None
    given = options.settings
    what = (
        "the tuned settings that come with this network are not used, since others are given; these "
        f"hold: --correct-priors {given.correct_priors:g} --min-component-mm3 {given.min_component_mm3:g} "
        f"--min-component-share {given.min_component_share:g} "
        f"--min-enhancing-mm3 {given.min_enhancing_mm3:g}, and no thresholds"
    )
    return Problem("warning", "", str(run.folder), what, "no other settings, or --untuned")


def _by_hand(options: PredictOptions) -> bool:
    return bool(options.also) or options.settings != Settings()


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
