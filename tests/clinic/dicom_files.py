"""Small DICOM series for the tests, classic and enhanced, in shuffled files or frames."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

AXIAL = np.eye(3)
"""Rows of directions: of the column number, the row number and the slices, (L, P, S)."""
SAGITTAL = np.array([[0.0, 1, 0], [0, 0, -1], [-1, 0, 0]])


def oblique(degrees: float) -> np.ndarray:
    """Axial slices turned about the axis from right to left."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[1, 0, 0], [0, c, s], [0, -s, c]])


def write_series(
    folder: Path,
    stack: np.ndarray,
    *,
    description: str,
    number: int,
    directions: np.ndarray = AXIAL,
    spacing_mm: Sequence[float] = (3.0, 1.0, 1.0),
    origin: Sequence[float] = (-20.0, -30.0, 5.0),
    study: str = "1.2.3",
    patient: str = "DOE^JANE",
    form: str = "classic",
    leave_out: Sequence[int] = (),
    **tags: Any,
) -> list[Path]:
    """Write (slice, row, column) int16; the files, in the order of the slices.

    Args:
        spacing_mm: between slices, rows, columns.
        leave_out: numbers of slices that are not written.
        tags: further DICOM keywords.
    """
    folder.mkdir(parents=True, exist_ok=True)
    between, row_mm, column_mm = spacing_mm
    kept = [n for n in range(len(stack)) if n not in leave_out]
    place = {n: [float(v) for v in np.asarray(origin) + n * between * directions[2]] for n in kept}
    facts = {
        "SeriesDescription": description, "SeriesNumber": number, "PatientName": patient,
        "PatientID": patient, "StudyInstanceUID": study, "SeriesInstanceUID": f"{study}.{number}",
        "Modality": "MR", "FrameOfReferenceUID": f"{study}.9",
        "ImageType": ["ORIGINAL", "PRIMARY", "M"], **tags,
    }  # fmt: skip
    orientation = [float(v) for v in directions[:2].ravel()]
    shuffled = np.random.default_rng(number).permutation(kept)
    if form == "enhanced":
        data = _dataset(folder / "image.dcm", EnhancedMRImageStorage, stack[shuffled], facts)
        shared = Dataset()
        shared.PlaneOrientationSequence = Items([_item(ImageOrientationPatient=orientation)])
        measures = _item(
            PixelSpacing=[row_mm, column_mm], SpacingBetweenSlices=between, SliceThickness=between
        )
        shared.PixelMeasuresSequence = Items([measures])
        data.SharedFunctionalGroupsSequence = Items([shared])
        data.PerFrameFunctionalGroupsSequence = Items(
            [_item(PlanePositionSequence=Items([_item(ImagePositionPatient=place[n])])) for n in shuffled]
        )
        data.save_as(folder / "image.dcm", enforce_file_format=True)
        return [folder / "image.dcm"]
    files = []
    for name, n in enumerate(shuffled):
        path = folder / f"IM{name:04d}.dcm"
        data = _dataset(path, MRImageStorage, stack[n][None], facts)
        data.ImagePositionPatient, data.ImageOrientationPatient = place[n], orientation
        data.PixelSpacing, data.SliceThickness = [row_mm, column_mm], between
        data.save_as(path, enforce_file_format=True)
        files.append((n, path))
    return [path for _, path in sorted(files)]


def _item(**tags: Any) -> Dataset:
    item = Dataset()
    for name, value in tags.items():
        setattr(item, name, value)
    return item


def _dataset(path: Path, sop_class: str, frames: np.ndarray, facts: dict[str, Any]) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    data.SOPClassUID, data.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    for name, value in facts.items():
        setattr(data, name, value)
    if len(frames) > 1:
        data.NumberOfFrames = len(frames)
    data.Rows, data.Columns = frames.shape[1:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.PixelData = frames.astype("<i2").tobytes()
    return data
