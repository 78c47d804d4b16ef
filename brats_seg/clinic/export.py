"""Label maps -> the original grid, in the file types of viewers."""

from dataclasses import dataclass
from pathlib import Path

from brats_seg.clinic.convert import RECORD
from brats_seg.clinic.prepare import REFERENCE, STEPS, Steps, to_original
from brats_seg.clinic.segments import write_dicom_seg, write_seg_nrrd
from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.files import read_json, read_model
from brats_seg.scans.labels import LabelSchema, schema_named
from brats_seg.scans.predictions import TABLE, read_rows
from brats_seg.scans.problem import Problem, problem_of
from brats_seg.scans.volume import SUFFIXES, read_volume, write_label_map

FILE_TYPES = (*SUFFIXES, ".seg.nrrd", ".dcm")
"""NIfTI, MetaImage, segments of 3D Slicer, DICOM SEG."""


@dataclass(frozen=True)
class Exported:
    """What `export_labels` did: the files it wrote, and the cases it refused."""

    written: tuple[Path, ...]
    problems: tuple[Problem, ...]

    @property
    def exit_code(self) -> int:
        """1 where a case was refused, or there was none."""
        return int(not self.written or bool(self.problems))


def export_labels(predictions: Path, scans: Path, out: Path, *, file_type: str = ".nii.gz") -> Exported:
    """Write each label map of a folder of predictions as `OUT/<case><file type>`.

    The label map of a case that `prepare` made comes back to the grid of its original T1c; any other keeps
    its grid.

    Args:
        predictions: a folder with `predictions.csv`.
        scans: the folder that was segmented, from `prepare` or `import`: a folder for each case.
        out: made if it is not there.
        file_type: one of `FILE_TYPES`.

    Raises:
        UsageError: another file type.
        InputError: no table of predictions.
    """
    if file_type not in FILE_TYPES:
        raise UsageError(f"--file-type {file_type}: unknown; the types are {', '.join(FILE_TYPES)}")
    rows = read_rows(predictions)
    if not rows:
        raise InputError(f"{predictions}: has no {TABLE}; give a folder that `brats-seg predict` wrote")
    out.mkdir(parents=True, exist_ok=True)
    written, problems = [], []
    for row in rows:
        path = out / f"{row['case']}{file_type}"
        try:
            _export(predictions / row["file"], scans / row["case"], path, schema=schema_named(row["schema"]))
            written.append(path)
        except InputError as error:
            problems.append(problem_of(error, row["case"], file=predictions / row["file"]))
    return Exported(tuple(written), tuple(problems))


def _export(labels_file: Path, folder: Path, path: Path, *, schema: LabelSchema) -> None:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such case; give the folder of scans that was segmented")
    labels, geometry = read_volume(labels_file)
    if (folder / STEPS).is_file():
        steps = read_model(Steps, folder / STEPS, mend="prepare the case again")
        labels, geometry = to_original(labels, geometry, steps)
    if path.name.endswith(".seg.nrrd"):
        write_seg_nrrd(path, labels, geometry, schema=schema)
    elif path.suffix == ".dcm":
        source, uid = _imported_from(folder)
        write_dicom_seg(path, labels, geometry, schema=schema, source=source, series_uid=uid)
    else:
        write_label_map(path, labels, geometry, dtype="uint8")


def _imported_from(folder: Path) -> tuple[Path, str]:
    """The folder or zip file that a case was imported from, and the identifier of its T1c."""
    record = folder / RECORD
    if not record.is_file():
        raise InputError(f"{folder}: has no {RECORD}: DICOM SEG is for cases that `brats-seg import` made")
    told = read_json(record)
    try:
        return Path(told["source"]), str(told["series"][REFERENCE]["series_uid"])
    except (KeyError, TypeError):
        raise InputError(f"{record}: names no DICOM series of the {REFERENCE}; import it again") from None
