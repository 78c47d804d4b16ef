"""Trained runs -> segmenters, with the settings to use them with; and label maps of images in memory."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from jaxtyping import UInt8
from SimpleITK import GetArrayFromImage

from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.runtime import Runtime, start_runtime
from brats_seg.inference.options import Inference, PredictOptions, Settings, read_tuning
from brats_seg.inference.predict import predict_one
from brats_seg.inference.ready import ready_for_inference
from brats_seg.inference.segmenter import Segmenter
from brats_seg.inference.windowed import choose_window
from brats_seg.models.networks import network_divisor
from brats_seg.models.readout import readout_of
from brats_seg.models.restore import check_same_data
from brats_seg.models.trained import TrainedNetwork, TrainedRun, open_run
from brats_seg.scans.case import MODALITIES, Problem, case_of_files


def load_for_prediction(
    runs: Sequence[TrainedRun], options: PredictOptions
) -> tuple[tuple[Segmenter, ...], PredictOptions]:
    """The networks of runs by the options of `predict`; and the options with the `settings` to use: given by
    hand, or found by `brats-seg tune`.

    Raises:
        InputError: as `load_segmenters`; or `tuned` is set and the run has no tuned settings.
        UsageError: as `load_segmenters`; or `tuned` together with other settings.
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
    """A warning if settings given by hand replace the tuned settings of a packaged network."""
    if options.tuned is not None or not run.comes_tuned or not _by_hand(options):
        return None
    given = options.settings
    what = (
        "the tuned settings of this network are not used, because you gave other settings; used "
        f"here: --correct-priors {given.correct_priors:g} --min-component-mm3 {given.min_component_mm3:g} "
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
        allow_missing: whether the networks must accept cases that lack modalities.

    Raises:
        InputError: runs with different modalities or classes, or weights that do not match their config.
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
    """Refuse a single stage of a cascade, which separates only healthy from tumor or only the tumor classes.
    With `--allow-missing`, refuse a network that was not trained for missing modalities.
    """
    run, kind = trained.path.parent, trained.config.task.classes
    if kind != "all":
        part = "healthy from tumor" if kind == "healthy_or_tumor" else "the tumor classes"
        raise UsageError(
            f"{run}: was trained with task.classes={kind}, a stage of a cascade that separates only {part}; "
            "combine it with "
            "the other stage (`brats-seg cascade DETECTOR CLASSIFIER RUN`) and give the combined run"
        )
    if allow_missing and trained.config.augment.modality_dropout == 0:
        raise UsageError(
            f"--allow-missing: {run} was trained with augment.modality_dropout 0; it needs every "
            "modality of a case; "
            "to accept fewer, train with --set augment.modality_dropout=0.2"
        )


_LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Segmentation:
    """A label map in memory.

    Attributes:
        labels: uint8 (X, Y, Z), on the grid of the images: 0 healthy or outside the brain, 1 necrotic or
            non-enhancing core, 2 edema, 3 enhancing core (4 resection cavity), as in BraTS 2023 and 2024.
        image: the same as a nibabel image, with the affine of the images.
        volumes_ml: of each tissue class and region.
        warnings: warnings about the images.
    """

    labels: UInt8[np.ndarray, "x y z"]
    image: Any
    volumes_ml: Mapping[str, float]
    warnings: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class LoadedRun:
    """A trained run or a packaged network, ready to segment images in memory.

    Attributes:
        segmenters: whose probabilities are averaged.
        options: how a case is read and segmented.
    """

    segmenters: tuple[Segmenter, ...]
    options: PredictOptions

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the images that the networks need."""
        return self.segmenters[0].modalities

    def predict(self, images: Mapping[str, Any], *, affine: Any = None) -> Segmentation:
        """Segment one case.

        Args:
            images: an image for each modality: a nibabel, SimpleITK or TorchIO image, a MONAI `MetaTensor`,
                or an array (X, Y, Z). Tensors may have a first axis of length 1.
            affine: required for arrays: matrix (4, 4) from voxel indices to millimeters in RAS, as in
                nibabel.

        Raises:
            UsageError: an unknown modality name, or an array without an affine.
            InputError: an image is missing or unsuitable for the network; the message names the modality.
        """
        if unknown := [name for name in images if name not in MODALITIES]:
            raise UsageError(f"images: no modality '{unknown[0]}'; the names are {', '.join(MODALITIES)}")
        if missing := [
            name for name in self.modalities if name not in images and not self.options.allow_missing
        ]:
            raise InputError(f"images: {', '.join(missing)} is missing; the network needs it")
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            files = {modality: folder / f"{modality}.nii" for modality in images}
            for modality, file in files.items():
                nibabel.save(_to_nifti(images[modality], affine, modality=modality), file)
            case = case_of_files(files, id="case")
            report = predict_one(self.segmenters, case, out=folder / "labels.nii", options=self.options)
            if report.predictions:
                written = nibabel.Nifti1Image.from_filename(folder / "labels.nii")
                labels = np.asarray(written.dataobj).astype(np.uint8)
        if not report.predictions:
            raise InputError(
                *(f"images: {Path(p.file).stem}: {p.what}; {p.expected}" for p in report.problems)
            )
        image = nibabel.Nifti1Image(labels, written.affine)
        (prediction,) = report.predictions
        return Segmentation(labels, image, prediction.volumes_ml, prediction.warnings)


def load_run(
    run: str | Path, *, tuned: bool | None = None, allow_missing: bool = False, device: str = "auto"
) -> LoadedRun:
    """Open a run folder, or a packaged network by its name, to segment images in memory.

    Args:
        run: folder or name.
        tuned: use the settings that `brats-seg tune` found; None uses them for packaged networks that have
            them.
        allow_missing: accept cases that lack modalities (networks trained with modality dropout).
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        UsageError: no such run, or a network that was not trained for missing modalities.
        InputError: no checkpoint, a bad one, or `tuned` is set and the run has no tuned settings.
    """
    given = PredictOptions(tuned=tuned, allow_missing=allow_missing, device=device)
    return LoadedRun(*load_for_prediction((open_run(run),), given))


def _to_nifti(image: Any, affine: Any, *, modality: str) -> Any:
    """Convert any image type that `LoadedRun.predict` accepts to a nibabel image."""
    if hasattr(image, "dataobj"):
        return image
    if hasattr(image, "GetDirection"):
        # its arrays are (Z, Y, X), and its millimeters are LPS
        in_lps = np.eye(4)
        in_lps[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
        in_lps[:3, 3] = image.GetOrigin()
        return nibabel.Nifti1Image(GetArrayFromImage(image).T.astype(np.float32), _LPS_FROM_RAS @ in_lps)
    own = getattr(image, "affine", None)
    if own is None and affine is None:
        raise UsageError(
            f"images: {modality} is an array and has no affine; give affine=, a matrix (4, 4) as nibabel has"
        )
    values = np.asarray(image if own is None else image.data, dtype=np.float32)
    if values.ndim == 4 and len(values) == 1:
        values = values[0]
    if values.ndim != 3:
        raise InputError(f"images: {modality} has the shape {values.shape}; it needs three axes (X, Y, Z)")
    return nibabel.Nifti1Image(values, np.asarray(affine if own is None else own, dtype=np.float64))
