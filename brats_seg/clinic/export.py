"""Label maps -> the original grid, in the file types of viewers."""

import re
from pathlib import Path
from typing import Literal

import numpy as np

from brats_seg.clinic.convert import RECORD
from brats_seg.clinic.prepare import REFERENCE, STEPS, Steps, Written, to_original
from brats_seg.clinic.segments import write_dicom_seg, write_seg_nrrd
from brats_seg.clinic.surfaces import stl_bytes
from brats_seg.core.errors import InputError, refuse
from brats_seg.core.files import atomic, read_json, read_model, write_json, write_text
from brats_seg.core.shapes import Volume
from brats_seg.scans.case import Problem, problem_of
from brats_seg.scans.datasets import BIDS_PREDICTION
from brats_seg.scans.geometry import Geometry
from brats_seg.scans.labels import (
    LabelSchema,
    common_classes,
    region_classes,
    regions_of,
    schema_named,
    to_tissue,
)
from brats_seg.scans.predictions import TABLE, read_rows
from brats_seg.scans.volume import SUFFIXES, read_volume, write_label_map

FILE_TYPES = (*SUFFIXES, ".seg.nrrd", ".dcm", ".stl")
"""NIfTI, MetaImage, segments of 3D Slicer, DICOM SEG, a surface for each region."""
Names = Literal["case", "bids"]
_BIDS_CASE = re.compile(r"(?P<subject>sub-[A-Za-z0-9]+)(?:_(?P<session>ses-[A-Za-z0-9]+))?")


def export_labels(
    predictions: Path, scans: Path, out: Path, *, file_type: str = ".nii.gz", names: Names = "case"
) -> Written:
    """Write each label map of a folder of predictions as `OUT/<case><file type>`, a surface as
    `OUT/<case>_<region>.stl`.

    The label map of a case from `prepare` is resampled to the grid of its original T1c; any other keeps its
    grid.

    Args:
        predictions: a folder with `predictions.csv`.
        scans: the folder that was segmented, from `prepare` or `import`: a folder for each case.
        out: created if it does not exist.
        file_type: one of `FILE_TYPES`.
        names: "bids": files are named as BIDS derivatives of BIDS scans, below `OUT/<subject>/`.

    Raises:
        UsageError: another file type or kind of names.
        InputError: no table of predictions.
    """
    refuse(
        (
            file_type not in FILE_TYPES,
            f"--file-type {file_type}: unknown; the types are {', '.join(FILE_TYPES)}",
        ),
        (names not in ("case", "bids"), f"--names {names}: unknown; case or bids"),
    )
    rows = read_rows(predictions)
    if not rows:
        raise InputError(f"{predictions}: has no {TABLE}; give a folder that `brats-seg predict` wrote")
    out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    problems: list[Problem] = []
    for row in rows:
        try:
            schema = schema_named(row["schema"])
            stem = out / (row["case"] if names == "case" else _bids_name(row["case"]))
            labels, geometry = _original(predictions / row["file"], scans / row["case"], names=names)
            written += _write(labels, geometry, scans / row["case"], stem, file_type, schema=schema)
        except InputError as error:
            problems.append(problem_of(error, row["case"], file=predictions / row["file"]))
    if names == "bids" and written:
        _describe_bids(out, [schema_named(row["schema"]) for row in rows])
    return Written(tuple(written), tuple(problems))


def _original(labels_file: Path, folder: Path, *, names: Names) -> tuple[Volume, Geometry]:
    if not folder.is_dir() and names == "case":
        raise InputError(f"{folder}: no such case; give the folder of scans that was segmented")
    labels, geometry = read_volume(labels_file)
    if not (folder / STEPS).is_file():
        return labels, geometry
    return to_original(labels, geometry, read_model(Steps, folder / STEPS, mend="prepare the case again"))


def _write(
    labels: Volume, geometry: Geometry, folder: Path, stem: Path, file_type: str, *, schema: LabelSchema
) -> list[Path]:
    path = stem.with_name(stem.name + file_type)
    path.parent.mkdir(parents=True, exist_ok=True)
    if file_type == ".stl":
        return _write_surfaces(labels, geometry, stem, schema=schema)
    if file_type == ".seg.nrrd":
        write_seg_nrrd(path, labels, geometry, schema=schema)
    elif file_type == ".dcm":
        source, uid = _imported_from(folder)
        write_dicom_seg(path, labels, geometry, schema=schema, source=source, series_uid=uid)
    else:
        write_label_map(path, labels, geometry, dtype="uint8")
    return [path]


def _write_surfaces(labels: Volume, geometry: Geometry, stem: Path, *, schema: LabelSchema) -> list[Path]:
    classes = common_classes([schema])
    tissue = to_tissue(labels, schema, classes)
    written = []
    for region in regions_of(classes):
        mask = np.isin(tissue, region_classes(region, classes))
        if mask.any():
            path = stem.with_name(f"{stem.name}_{region}.stl")
            with atomic(path) as part:
                part.write_bytes(stl_bytes(mask, geometry))
            written.append(path)
    if not written:
        raise InputError("the label map is empty: it has no surface")
    return written


def _bids_name(case: str) -> str:
    match = _BIDS_CASE.fullmatch(case)
    if match is None:
        raise InputError(f"{case}: is not a BIDS subject and session; --names case names the file after it")
    folder = "/".join(part for part in (*match.groups(), "anat") if part)
    return f"{folder}/{case}_{BIDS_PREDICTION}_dseg"


def _describe_bids(out: Path, schemas: list[LabelSchema]) -> None:
    """Write what BIDS requires in a folder of derivatives: its description, and the meaning of each value."""
    about = {
        "Name": "Brain tumor segmentation", "BIDSVersion": "1.9.0", "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "brats-seg"}],
    }  # fmt: skip
    write_json(out / "dataset_description.json", about)
    if len({schema.name for schema in schemas}) == 1:
        rows = [f"{value}\t{tissue}" for value, tissue in sorted(schemas[0].values.items())]
        write_text(out / f"{BIDS_PREDICTION}_dseg.tsv", "\n".join(["index\tname", *rows]) + "\n")


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
