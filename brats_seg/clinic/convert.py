"""DICOM series -> NIfTI files with voxels and a grid, without text."""

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
from nibabel.orientations import apply_orientation

from brats_seg.clinic.archives import list_files
from brats_seg.clinic.series import Series, read_series
from brats_seg.clinic.studies import Study, plan_studies
from brats_seg.core.errors import InputError
from brats_seg.core.files import whole_folder, write_json
from brats_seg.core.shapes import Volume
from brats_seg.scans.case import Problem
from brats_seg.scans.geometry import Geometry, make_geometry, to_lps
from brats_seg.scans.metaimage import RAS_OF_LPS
from brats_seg.scans.volume import write_volume

FILES: Mapping[str, str] = {"t1n": "t1", "t1c": "t1ce", "t2w": "t2", "t2f": "flair"}
"""Modality -> name of its file, as in the layout of plain names."""
RECORD = "import.json"
"""File in the folder of the volumes: the DICOM series of each volume."""


@dataclass(frozen=True)
class Imported:
    """The result of `import_dicom`, also without writing.

    Attributes:
        studies: every study.
        written: cases whose files were written.
        problems: of studies, files and archives.
    """

    studies: tuple[Study, ...]
    written: tuple[str, ...]
    problems: tuple[Problem, ...]

    @property
    def exit_code(self) -> int:
        """1 if something was refused or nothing was found, else 0."""
        return int(not self.studies or any(p.severity == "error" for p in self.problems))


def import_dicom(
    source: Path,
    out: Path | None,
    *,
    wanted: Mapping[str, Sequence[str]],
) -> Imported:
    """Write each study of a DICOM folder or zip file as `OUT/<case>/{t1,t1ce,t2,flair}.nii.gz`.

    A study with an error is refused as a whole, and nothing of it is written; the others are written.

    Args:
        source: one or many patients, in any structure of folders.
        out: created if it does not exist; None to write nothing.
        wanted: modality -> series named by the user, see `studies.parse_wanted`.
    """
    with tempfile.TemporaryDirectory(prefix="brats-seg-") as scratch:
        files, problems = list_files(source, scratch=Path(scratch))
        series, damaged = read_series(files)
        name = source.resolve().stem if source.is_file() else source.resolve().name
        studies = plan_studies(series, damaged, root=name, wanted=wanted)
        told = {problem.file for study in studies for problem in study.problems}
        problems += [problem for problem in damaged if problem.file not in told]
        written = []
        for study in studies:
            problems += study.problems
            if out is None or not study.good:
                continue
            try:
                _write_study(study, out / study.case, source=source)
                written.append(study.case)
            except InputError as error:
                problems.append(Problem("error", study.case, "", str(error)))
    if not studies and not problems:
        problems.append(Problem("error", "", str(source), "has no DICOM images", "a folder or a zip file"))
    return Imported(tuple(studies), tuple(written), tuple(problems))


def read_voxels(series: Series) -> tuple[Volume, Geometry]:
    """The voxels of a sound series, (Z, Y, X) in LPS, and their grid. Whole numbers that fit are int16, other
    values float32.

    Raises:
        InputError: a file that GDCM cannot unpack; the series and the file are named.
    """
    stacks: dict[Path, np.ndarray] = {}
    for plane in series.planes:
        if plane.file.path not in stacks:
            stacks[plane.file.path] = _read_file(plane.file.path, series, name=str(plane.file.name))
    native = np.stack([stacks[plane.file.path][plane.frame].T for plane in series.planes], axis=2)
    affine = RAS_OF_LPS @ series.affine_lps
    smallest = make_geometry((1, 1, 1), affine=affine)
    array = np.ascontiguousarray(
        apply_orientation(_smallest_type(native), to_lps(smallest.axis_codes)).transpose(2, 1, 0)
    )
    z, y, x = array.shape
    return array, make_geometry((z, y, x), affine=affine, dtype=array.dtype.name)


def _read_file(path: Path, series: Series, *, name: str) -> np.ndarray:
    """(frame, row, column), scaled by the header."""
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK warns on the terminal of single slices
    try:
        stack = sitk.GetArrayFromImage(sitk.ReadImage(str(path), sitk.sitkFloat32, imageIO="GDCMImageIO"))
    except RuntimeError as error:
        last = re.sub(r"^ITK ERROR: |\(0x\w+\)", "", str(error).strip().splitlines()[-1].strip())
        raise InputError(
            f"series {series.number} in {series.folder}: {name} cannot be unpacked: {last}; expected whole "
            "pixels, not compressed, or as JPEG, JPEG-LS, JPEG 2000 or RLE"
        ) from None
    return stack.reshape(-1, *series.planes[0].shape)


def _smallest_type(array: np.ndarray) -> np.ndarray:
    if not np.isfinite(array).all():
        raise InputError("a series has voxels that are NaN or infinite")
    limits = np.iinfo(np.int16)
    is_whole = array.min() >= limits.min and array.max() <= limits.max and (array == np.rint(array)).all()
    return array.astype(np.int16 if is_whole else np.float32)


def _write_study(study: Study, folder: Path, *, source: Path) -> None:
    if folder.exists():
        raise InputError(f"{folder} exists already; remove it or give another output folder")
    volumes = {name: read_voxels(series) for name, series in study.chosen.items()}
    with whole_folder(folder) as part:
        for name, (array, geometry) in volumes.items():
            write_volume(part / f"{FILES[name]}.nii.gz", array, geometry, dtype=array.dtype.name)
        record = {
            name: {"series_uid": series.uid, "number": series.number} for name, series in study.chosen.items()
        }
        write_json(part / RECORD, {"source": str(source.resolve()), "series": record})
