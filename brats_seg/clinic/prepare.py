"""Scans on their own grids -> scans on one grid of 1 mm, without skull; the inverse transform is stored."""

import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
from jaxtyping import Num
from pydantic import BaseModel, ConfigDict
from scipy.ndimage import binary_fill_holes

from brats_seg.clinic.convert import FILES, RECORD
from brats_seg.clinic.itk_images import geometry_of, isotropic, resampled, to_itk
from brats_seg.clinic.register import WORST_METRIC, register
from brats_seg.core.errors import InputError
from brats_seg.core.files import whole_folder, write_json
from brats_seg.core.progress import track
from brats_seg.core.shapes import Mask, Volume
from brats_seg.scans.case import Case, Problem, problem_of
from brats_seg.scans.check import unstripped_words
from brats_seg.scans.geometry import Affine, Geometry, make_geometry, rows_of, same_grid
from brats_seg.scans.layouts import find_cases
from brats_seg.scans.releases import BRAIN_MASK
from brats_seg.scans.volume import read_volume, write_volume

PROGRAMS: Mapping[str, tuple[str, ...]] = {
    "hd-bet": ("-device", "cpu"),
    "mri_synthstrip": (),
}
"""Programs for brain extraction, in the order of the search -> the options added to `-i HEAD -o BRAIN`."""


def brain_of(t1c: Volume, geometry: Geometry, *, mask_file: Path | None) -> Mask:
    """The brain on the grid of the scan.

    Args:
        t1c: (Z, Y, X) in LPS.
        geometry: its grid.
        mask_file: a mask of the user on the same grid; None uses the scan itself if its background is 0, else
            an installed program.

    Raises:
        InputError: a mask on another grid or without a voxel; a head with skull, and no installed program; a
            program that failed.
    """
    if mask_file is not None:
        mask, mask_grid = read_volume(mask_file)
        if not same_grid(geometry, mask_grid):
            raise InputError(
                f"{mask_file}: the mask of {mask_grid.shape} voxels lies on another grid than the T1c of "
                f"{geometry.shape} (Z, Y, X); draw it on the T1c"
            )
        return _checked(mask != 0, mask_file.name)
    if unstripped_words(t1c != 0, spacing_mm=geometry.spacing_mm) is None:
        return _checked(binary_fill_holes(t1c != 0), "the T1c")
    return _extracted(t1c, geometry)


def _checked(mask: Mask, name: str) -> Mask:
    if not mask.any():
        raise InputError(f"{name}: no voxel belongs to the brain; give another --brain-mask")
    return mask


def _extracted(t1c: Volume, geometry: Geometry) -> Mask:
    program = next((name for name in PROGRAMS if shutil.which(name)), None)
    if program is None:
        raise InputError(
            "the T1c shows a head with its skull, and no program for brain extraction is installed; install "
            "HD-BET (hd-bet) or FreeSurfer (mri_synthstrip), or give --brain-mask"
        )
    with tempfile.TemporaryDirectory(prefix="brats-seg-") as scratch:
        head, brain = Path(scratch) / "head.nii.gz", Path(scratch) / "brain.nii.gz"
        write_volume(head, t1c, geometry, dtype=t1c.dtype.name)
        command = [program, "-i", str(head), "-o", str(brain), *PROGRAMS[program]]
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if ended.returncode or not brain.is_file():
            said = (ended.stderr or ended.stdout).strip().splitlines() or ["nothing"]
            raise InputError(
                f"{program} ended with {ended.returncode} and said: {said[-1]}; give --brain-mask"
            )
        array, theirs = read_volume(brain)
    if not same_grid(geometry, theirs):
        raise InputError(f"{program} gave a brain on another grid than the T1c; give --brain-mask")
    return _checked(binary_fill_holes(np.asarray(array != 0)), program)


STEPS = "prepare.json"
"""File in the folder of the prepared volumes: the transforms, and the grid of the T1c."""
SPACING_MM = 1.0
REFERENCE = "t1c"
"""The modality to which the others are registered."""


class Steps(BaseModel):
    """The content of `prepare.json`.

    Attributes:
        to_scan: modality -> 4 x 4 matrix: a point of the prepared grid, (L, P, S, 1) in mm, to the same point
            in the original scan.
        metric: modality (or "atlas") -> mutual information of its registration.
        shape: (Z, Y, X) of the original T1c in LPS.
        affine: of the original T1c, 4 x 4: index (i, j, k, 1) in the file -> (R, A, S, 1) in mm.
        source: the folder of the original scans.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    to_scan: Mapping[str, tuple[tuple[float, ...], ...]]
    metric: Mapping[str, float]
    shape: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...]
    source: str


@dataclass(frozen=True)
class Written:
    """The cases or files that a verb wrote, and its problems; an error refuses its case."""

    written: tuple[str | Path, ...]
    problems: tuple[Problem, ...]

    @property
    def exit_code(self) -> int:
        """1 if a case was refused or there was no case, else 0."""
        return int(not self.written or any(problem.severity == "error" for problem in self.problems))


def prepare_scans(
    scans: Path, out: Path, *, brain_mask: str | None = None, atlas: Path | None = None
) -> Written:
    """Write each case as `OUT/<case>/{t1,t1ce,t2,flair}.nii.gz` on one grid, brain only, with `prepare.json`.

    All modalities are registered rigidly to the T1c. The grid has voxels of 1 mm and the directions of the
    T1c; with an atlas, it is the grid of the atlas, to which the T1c is registered rigidly. A case with an
    error is refused as a whole.

    Args:
        scans: of any layout, with a T1c for each case.
        out: created if it does not exist.
        brain_mask: path of a mask on the grid of the T1c; `{case}` in it is replaced by the id of the case.
        atlas: a skull-stripped volume.

    Raises:
        InputError: the folder or the atlas cannot be read.
    """
    found_cases = find_cases(scans, required=(REFERENCE,), labels="unused")
    frame = None if atlas is None else to_itk(*read_volume(atlas))
    problems, written = list(found_cases.problems), []
    for case in track(
        found_cases.cases, total=len(found_cases.cases), label="preparing", line=lambda case: case.id
    ):
        mask_file = None if brain_mask is None else Path(brain_mask.replace("{case}", case.id))
        try:
            _prepare(case, out / case.id, mask_file=mask_file, atlas=frame)
            written.append(case.id)
        except InputError as error:
            problems.append(problem_of(error, case.id, file=case.folder))
    return Written(tuple(written), tuple(problems))


def _prepare(case: Case, folder: Path, *, mask_file: Path | None, atlas: sitk.Image | None) -> None:
    if folder.exists():
        raise InputError(f"{folder} exists already; remove it or give another output folder")
    array, native = read_volume(case.modalities[REFERENCE])
    t1c = to_itk(array, native)
    brain = to_itk(brain_of(array, native, mask_file=mask_file).astype(np.uint8), native)
    images = {
        name: sitk.Cast(to_itk(*read_volume(source)), sitk.sitkFloat32)
        for name, source in case.modalities.items()
    }
    frame, from_frame, metric = isotropic(t1c, spacing_mm=SPACING_MM), np.eye(4), {}
    if atlas is not None:
        frame, (from_frame, metric["atlas"]) = atlas, _moved(t1c * sitk.Cast(brain, t1c.GetPixelID()), atlas)
    matrices = {REFERENCE: from_frame}
    for name, image in images.items():
        if name != REFERENCE:
            movement, metric[name] = _moved(image, t1c, name=f"{name} ({case.modalities[name].path.name})")
            matrices[name] = movement @ from_frame
    mask = resampled(sitk.Cast(brain, sitk.sitkFloat32), frame, matrix=from_frame)
    inside = sitk.GetArrayFromImage(mask) >= 0.5
    volumes = {
        name: sitk.GetArrayFromImage(resampled(image, frame, matrix=matrices[name])) * inside
        for name, image in images.items()
    }
    steps = Steps(
        to_scan={name: rows_of(matrix) for name, matrix in matrices.items()},
        metric={name: round(value, 4) for name, value in metric.items()},
        shape=native.shape,
        affine=rows_of(native.affine_mm),
        source=str(case.folder.resolve()),
    )
    volumes |= {"brain": inside.astype(np.uint8)}
    _write(folder, volumes, geometry_of(frame, dtype="float32"), steps)


def _moved(moving: sitk.Image, fixed: sitk.Image, *, name: str = "the T1c") -> tuple[Affine, float]:
    movement = register(moving, fixed)
    if not movement.converged:
        raise InputError(
            f"the registration of {name} did not converge: its mutual information is {movement.metric:.3f}; "
            f"expected {WORST_METRIC} or more: the same head, at least half of it in both scans"
        )
    return movement.matrix, movement.metric


def _write(folder: Path, volumes: Mapping[str, np.ndarray], geometry: Geometry, steps: Steps) -> None:
    with whole_folder(folder) as part:
        for name, array in volumes.items():
            path = part / (BRAIN_MASK if name == "brain" else f"{FILES[name]}.nii.gz")
            write_volume(path, array, geometry, dtype=array.dtype.name)
        write_json(part / STEPS, steps.model_dump(mode="json"))
        record = Path(steps.source) / RECORD
        if record.is_file():
            shutil.copyfile(record, part / RECORD)


def to_original(
    labels: Volume, geometry: Geometry, steps: Steps
) -> tuple[Num[np.ndarray, "native_z native_y native_x"], Geometry]:
    """Resample a label map from the prepared grid to the grid of the original T1c, by the nearest voxel.

    Args:
        labels: (Z, Y, X) in LPS, whole numbers.
        geometry: of the prepared grid.
        steps: of the case.
    """
    native = make_geometry(steps.shape, affine=np.array(steps.affine), dtype="uint8")
    grid = to_itk(np.zeros(native.shape, np.uint8), native)
    back = np.linalg.inv(np.array(steps.to_scan[REFERENCE]))
    image = resampled(to_itk(labels, geometry), grid, matrix=back, interpolator=sitk.sitkNearestNeighbor)
    return sitk.GetArrayFromImage(image), native
