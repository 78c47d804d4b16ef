"""A trained run -> label maps of images in memory."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from jaxtyping import UInt8

from brats_seg.core.errors import InputError, UsageError
from brats_seg.inference.options import PredictOptions
from brats_seg.inference.predict import predict_one
from brats_seg.inference.runs import load_for_prediction
from brats_seg.inference.segmenter import Segmenter
from brats_seg.models.trained import open_run
from brats_seg.scans.case import MODALITIES, case_of_files

_LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Segmentation:
    """A label map in memory.

    Attributes:
        labels: uint8 (X, Y, Z), on the grid of the images: 0 healthy or outside the brain, 1 necrotic or
            non-enhancing core, 2 edema, 3 enhancing core (4 resection cavity), as in BraTS 2023 and 2024.
        image: the same as a nibabel image, with the affine of the images.
        volumes_ml: of each tissue class and region.
        warnings: what was odd about the images.
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
        options: how a case is taken in and segmented.
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
            images: an image for each modality: of nibabel, SimpleITK, TorchIO, a `MetaTensor` of MONAI, or an
                array (X, Y, Z). Tensors may have a first axis of length 1.
            affine: of arrays: (4, 4), voxel indices to millimeters in RAS, as nibabel has it.

        Raises:
            UsageError: a name that is no modality, or an array without an affine.
            InputError: an image that is missing or is not as the network needs it, named by its modality.
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
            return self._predict_files(files, folder)

    def _predict_files(self, files: Mapping[str, Path], folder: Path) -> Segmentation:
        case = case_of_files(files, id="case")
        report = predict_one(self.segmenters, case, out=folder / "labels.nii", options=self.options)
        if not report.predictions:
            raise InputError(
                *(f"images: {Path(p.file).stem}: {p.what}; {p.expected}" for p in report.problems)
            )
        written = nibabel.Nifti1Image.from_filename(folder / "labels.nii")
        labels = np.asarray(written.dataobj).astype(np.uint8)
        image = nibabel.Nifti1Image(labels, written.affine)
        (prediction,) = report.predictions
        return Segmentation(labels, image, prediction.volumes_ml, prediction.warnings)


def load_run(
    run: str | Path, *, tuned: bool | None = None, allow_missing: bool = False, device: str = "auto"
) -> LoadedRun:
    """Open a run folder, or a packaged network by its name, to segment images in memory.

    Args:
        run: folder or name.
        tuned: take the settings that `brats-seg tune` found; None does so for packaged networks that have
            some.
        allow_missing: take cases that lack modalities (networks trained with modality dropout).
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        UsageError: no such run, or a network that was not trained for missing modalities.
        InputError: no checkpoint, a bad one, or no settings where `tuned` asks for them.
    """
    given = PredictOptions(tuned=tuned, allow_missing=allow_missing, device=device)
    return LoadedRun(*load_for_prediction((open_run(run),), given))


def _to_nifti(image: Any, affine: Any, *, modality: str) -> Any:
    """A nibabel image of any of the kinds that `LoadedRun.predict` takes."""
    if hasattr(image, "dataobj"):
        return image
    if hasattr(image, "GetDirection"):
        return _from_simpleitk(image)
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


def _from_simpleitk(image: Any) -> Any:
    """Its arrays are (Z, Y, X), and its millimeters are LPS."""
    from SimpleITK import GetArrayFromImage

    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return nibabel.Nifti1Image(GetArrayFromImage(image).T.astype(np.float32), _LPS_FROM_RAS @ affine)
