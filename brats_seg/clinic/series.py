"""DICOM headers -> series: the ordered slices of each series, their grid, and their problems."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    MediaStorageDirectoryStorage,
    RLELossless,
)

from brats_seg.clinic.archives import Listed
from brats_seg.scans.case import Problem
from brats_seg.scans.geometry import Affine

FEWEST_SLICES = 4
"""A series of fewer slices is a localizer or incomplete."""
_PLANE_TOLERANCE = 1e-3
"""The largest difference of direction cosines within a series; released series differ by 1e-5."""
_UNEVEN = 0.05
"""Largest deviation of a slice distance, as a share of the distance; positions that are rounded to 0.1 mm
need 0.02.
"""
_TILT_DEGREES = 1.0
"""Largest angle between the slice normal and the line through the slices."""
_SUFFIXES = (".dcm", ".ima")
_READABLE = (
    ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian,
    RLELossless, *JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes, JPEG2000, JPEG2000Lossless,
)  # fmt: skip
"""Transfer syntaxes that SimpleITK's GDCM unpacks. GDCM treats an unknown transfer syntax as plain pixels,
without an error.
"""

Vector = tuple[float, ...]


@dataclass(frozen=True)
class Plane:
    """One slice: a file, or one frame of a file.

    Attributes:
        file: the file of the slice.
        frame: its number in the file, from 0.
        position: of the center of the first voxel, (L, P, S) in mm; empty where the header lacks it.
        orientation: direction of the columns' number, then of the rows' number, (L, P, S) each; or empty.
        spacing_mm: between rows, between columns; or empty.
        shape: rows, columns.
        echo_ms: echo time; 0 where the header lacks it.
    """

    file: Listed
    frame: int
    position: Vector
    orientation: Vector
    spacing_mm: Vector
    shape: tuple[int, int]
    echo_ms: float

    @property
    def height_mm(self) -> float:
        """Position of the slice along its own normal."""
        row, column = np.array(self.orientation).reshape(2, 3)
        return float(np.dot(np.cross(row, column), self.position))


@dataclass(frozen=True)
class Series:
    """The slices that make one volume.

    Attributes:
        uid, study_uid, patient: DICOM's identifiers; they are never written into a volume.
        number: its name for `--series`: the series number, with `e2` for a second echo.
        description: the text of the scanner; it may hold anything, and is only shown.
        kind: "MR", "CT", ...
        image_type: the words of the tag Image Type.
        contrast_agent: the text of the contrast tags, "" where there is none.
        planes: sorted along their normal if each has a position, else in the order of the files.
        damage: problems of single files or frames.
    """

    uid: str
    study_uid: str
    patient: str
    number: str
    description: str
    kind: str
    image_type: tuple[str, ...]
    contrast_agent: str
    planes: tuple[Plane, ...]
    damage: tuple[str, ...] = ()

    @property
    def folder(self) -> PurePosixPath:
        """The folder of the first file."""
        return self.planes[0].file.name.parent

    @cached_property
    def flaws(self) -> tuple[str, ...]:
        """The reasons why no volume can be made; empty for a valid series."""
        return (*self.damage, *_geometry_flaws(self.planes), *_content_flaws(self))

    @property
    def affine_lps(self) -> Affine:
        """Index (column, row, slice, 1) -> (L, P, S, 1) in mm. Only for a series without flaws."""
        first, last = self.planes[0], self.planes[-1]
        row, column = np.array(first.orientation).reshape(2, 3)
        between_rows, between_columns = first.spacing_mm
        step = (np.array(last.position) - first.position) / (len(self.planes) - 1)
        affine = np.eye(4)
        affine[:3] = np.column_stack([row * between_columns, column * between_rows, step, first.position])
        return affine


def read_series(files: Sequence[Listed]) -> tuple[list[Series], list[Problem]]:
    """The series among files, from their headers only.

    Files without the DICOM mark and without the suffix of a DICOM file are ignored; so are DICOM objects
    without an image.

    Returns:
        The series, in the order of their first file; and a problem for each file that cannot be read. Its
        `case` is the folder of the file.
    """
    series: dict[str, list[Series]] = {}
    problems = []
    for file in files:
        try:
            part = _read_header(file)
        except (InvalidDicomError, _DamagedError) as error:
            what = str(error) if isinstance(error, _DamagedError) else "is not a DICOM file"
            problems.append(
                Problem("error", str(file.name.parent), str(file.name), what, "a whole DICOM file")
            )
            continue
        if part is not None:
            series.setdefault(part.uid, []).append(part)
    return [whole for parts in series.values() for whole in _joined(parts)], problems


class _DamagedError(Exception):
    """A DICOM file that cannot be read."""


def _read_header(file: Listed) -> Series | None:
    """One file as a separate series; None if it is not an image."""
    try:
        with file.path.open("rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns of values that break the standard
            start = stream.read(132)
            stream.seek(0)
            is_marked = start[128:] == b"DICM"
            if not is_marked and file.path.suffix.lower() not in _SUFFIXES:
                return None
            header = pydicom.dcmread(stream, stop_before_pixels=True, force=not is_marked)
            n_left = file.path.stat().st_size - stream.tell()
            if "SOPClassUID" not in header:
                raise _DamagedError("is not a DICOM file, or is truncated in its header")
            if header.SOPClassUID == MediaStorageDirectoryStorage or "Rows" not in header:
                return None
            return _series_of_file(header, file, n_left=n_left)
    except InvalidDicomError:
        raise
    except (OSError, EOFError, ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
        raise _DamagedError(f"cannot be read: {error}") from None


def _series_of_file(header: pydicom.Dataset, file: Listed, *, n_left: int) -> Series:
    def text(name: str) -> str:
        return str(header.get(name) or "").strip()

    return Series(
        uid=text("SeriesInstanceUID") or str(file.name.parent),
        study_uid=text("StudyInstanceUID") or str(file.name.parent),
        patient=text("PatientID"),
        number=text("SeriesNumber") or "?",
        description=text("SeriesDescription") or text("ProtocolName"),
        kind=text("Modality"),
        image_type=tuple(str(word).upper() for word in header.get("ImageType") or ()),
        contrast_agent=_contrast_agent(header),
        planes=_planes(header, file),
        damage=_damage(header, file, n_left=n_left),
    )


def _contrast_agent(header: pydicom.Dataset) -> str:
    agents = [header.get("ContrastBolusAgent")]
    agents += [
        item.get("ContrastBolusAgent") or item.get("CodeMeaning")
        for item in header.get("ContrastBolusAgentSequence") or ()
    ]
    return " ".join(str(agent).strip() for agent in agents if agent)


def _damage(header: pydicom.Dataset, file: Listed, *, n_left: int) -> tuple[str, ...]:
    """The reasons in the header why the pixels of a file are unusable."""
    n_frames = int(header.get("NumberOfFrames") or 1)
    syntax = header.file_meta.get("TransferSyntaxUID", ImplicitVRLittleEndian)
    is_packed = syntax.is_compressed or syntax.is_deflated
    n_left = max(0, n_left - (8 if syntax.is_implicit_VR else 12))  # the head of the pixels
    n_bytes = n_frames * header.Rows * header.Columns * int(header.get("BitsAllocated") or 16) // 8
    positions = header.get("PerFrameFunctionalGroupsSequence") or ()
    flaws = {
        "has text burnt into its pixels": str(header.get("BurnedInAnnotation") or "").upper() == "YES",
        "is a color picture": int(header.get("SamplesPerPixel") or 1) != 1,
        "is a mosaic: many slices in one picture": "MOSAIC"
        in (str(word).upper() for word in header.get("ImageType") or ()),
        f"has {n_frames} frames without a position for each": n_frames > 1 and len(positions) != n_frames,
        f"is stored as {syntax.name}, which cannot be unpacked": syntax not in _READABLE,
        f"{file.name.name} is truncated: {n_left:,} of {n_bytes:,} bytes of pixels": n_left == 0
        or (not is_packed and n_left < n_bytes),
    }
    return tuple(flaw for flaw, is_there in flaws.items() if is_there)


def _planes(header: pydicom.Dataset, file: Listed) -> tuple[Plane, ...]:
    shared = (header.get("SharedFunctionalGroupsSequence") or [None])[0]
    frames = header.get("PerFrameFunctionalGroupsSequence") or [None]
    return tuple(_plane(header, file, number, (frame, shared)) for number, frame in enumerate(frames))


def _plane(
    header: pydicom.Dataset, file: Listed, number: int, groups: Sequence[pydicom.Dataset | None]
) -> Plane:
    def value(group_name: str, name: str) -> Any:
        for group in groups:
            item = (group.get(group_name) or [None])[0] if group is not None else None
            if item is not None and item.get(name) is not None:
                return item.get(name)
        return header.get(name)

    echo = value("MREchoSequence", "EffectiveEchoTime") or header.get("EchoTime")
    return Plane(
        file=file,
        frame=number,
        position=_numbers(value("PlanePositionSequence", "ImagePositionPatient"), n=3),
        orientation=_numbers(value("PlaneOrientationSequence", "ImageOrientationPatient"), n=6),
        spacing_mm=_numbers(value("PixelMeasuresSequence", "PixelSpacing"), n=2),
        shape=(int(header.Rows), int(header.Columns)),
        echo_ms=float(echo or 0),
    )


def _numbers(value: Any, *, n: int) -> Vector:
    numbers = () if value is None else tuple(float(number) for number in value)
    return numbers if len(numbers) == n and all(map(math.isfinite, numbers)) else ()


def _joined(parts: Sequence[Series]) -> list[Series]:
    """One series for each volume: the echoes of a double echo are two volumes at the same places."""
    planes = [plane for part in parts for plane in part.planes]
    damage = tuple(dict.fromkeys(text for part in parts for text in part.damage))
    agent = next((part.contrast_agent for part in parts if part.contrast_agent), "")
    whole = replace(parts[0], damage=damage, contrast_agent=agent)
    echoes = sorted({plane.echo_ms for plane in planes})
    volumes = [[plane for plane in planes if plane.echo_ms == echo] for echo in echoes]
    if len(volumes) == 1 or _n_doubles(planes) == 0 or any(map(_n_doubles, volumes)):
        return [replace(whole, planes=_sorted(planes))]
    return [
        replace(whole, planes=_sorted(volume), number=f"{whole.number}e{number}")
        for number, volume in enumerate(volumes, start=1)
    ]


def _n_doubles(planes: Sequence[Plane]) -> int:
    places = {tuple(round(mm, 2) for mm in plane.position) + plane.orientation for plane in planes}
    return len(planes) - len(places)


def _sorted(planes: Sequence[Plane]) -> tuple[Plane, ...]:
    if not all(plane.position and plane.orientation for plane in planes):
        return tuple(planes)
    return tuple(sorted(planes, key=lambda plane: plane.height_mm))


def _content_flaws(series: Series) -> list[str]:
    n = len(series.planes)
    flaws = {
        f"is {series.kind or 'of an unknown kind'}, not MR": series.kind != "MR",
        f"has {n} slices, fewer than {FEWEST_SLICES}": n < FEWEST_SLICES,
    }
    return [flaw for flaw, is_there in flaws.items() if is_there]


def _geometry_flaws(planes: Sequence[Plane]) -> list[str]:
    """The first reason why the slices do not form a regular grid."""
    if not all(plane.position and plane.orientation and plane.spacing_mm for plane in planes):
        return ["has slices without position, orientation or pixel spacing"]
    first = planes[0]
    if len({plane.shape for plane in planes}) > 1:
        return ["has slices of different sizes"]
    orientations = np.array([plane.orientation for plane in planes])
    if np.abs(orientations - orientations[0]).max() > _PLANE_TOLERANCE:
        n = len(np.unique(np.round(orientations, 2), axis=0))
        return [f"has slices of {n} orientations"]
    row, column = orientations[0].reshape(2, 3)
    lengths = [np.linalg.norm(row), np.linalg.norm(column)]
    if np.abs(np.array([*lengths, np.dot(row, column)]) - (1, 1, 0)).max() > 0.01:
        return ["has rows and columns that are not at right angles"]
    spacings = np.array([plane.spacing_mm for plane in planes])
    if min(first.spacing_mm) <= 0 or np.abs(spacings - spacings[0]).max() > _PLANE_TOLERANCE:
        return ["has slices of different pixel spacing"]
    if len(planes) == 1:
        return []
    return _distance_flaws(planes) or _tilt_flaws(planes)


def _distance_flaws(planes: Sequence[Plane]) -> list[str]:
    steps = np.diff([plane.height_mm for plane in planes])
    if steps.min() < 0.01:
        at = planes[int(steps.argmin()) + 1]
        names = f"{planes[int(steps.argmin())].file.name.name} and {at.file.name.name}"
        return [f"has two slices at one position ({names}), {int((steps < 0.01).sum())} such pairs"]
    usual = float(np.median(steps))
    longest = float(steps.max())
    if longest > 1.5 * usual:
        n_missing = int(np.rint(steps / usual - 1).clip(0).sum())
        after = planes[int(steps.argmax())].file.name.name
        return [
            f"lacks {n_missing} of its slices, the first after {after} ({longest:.3g} mm where {usual:.3g})"
        ]
    if np.abs(steps - usual).max() > _UNEVEN * usual:
        return [f"has uneven distances between slices, {steps.min():.3g} to {longest:.3g} mm"]
    return []


def _tilt_flaws(planes: Sequence[Plane]) -> list[str]:
    row, column = np.array(planes[0].orientation).reshape(2, 3)
    line = np.array(planes[-1].position) - planes[0].position
    cosine = np.dot(np.cross(row, column), line) / np.linalg.norm(line)
    degrees = float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    return [f"has a gantry tilt of {degrees:.1f} degrees"] if degrees > _TILT_DEGREES else []
