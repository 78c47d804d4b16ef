"""A page to look at a case: one file that opens offline in any browser, shown by NiiVue as an installed
package brings it.
"""

import base64
import gzip
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
from jaxtyping import UInt8

from brats_seg.core.errors import InputError, UsageError, refuse
from brats_seg.core.files import write_text
from brats_seg.core.shapes import Mask, TissueMap, Volume
from brats_seg.evaluation.surface import grown, joint_crop
from brats_seg.reporting.bundle import Bundle, find_bundle
from brats_seg.reporting.pages import shared_templates
from brats_seg.reporting.style import color_of, viewer_colors, words
from brats_seg.scans.case import MODALITIES, Case, ScanFile
from brats_seg.scans.geometry import Geometry, same_grid
from brats_seg.scans.labels import (
    GROSS_TUMOR,
    MERGED,
    SCHEMAS,
    TUMOR_CORE,
    WHOLE_TUMOR,
    common_classes,
    region_classes,
    regions_of,
    schema_named,
    schema_option,
    to_tissue,
)
from brats_seg.scans.predictions import TABLE, written_schema
from brats_seg.scans.volume import read_volume, read_volumes

GRAY_PERCENTILES = (0.5, 99.5)
"""The percentiles of the brain's voxels that a scan shows as black and as white."""
WHITE = 127
"""The brightest gray level: half of what a byte holds, less than the noise of a scan, makes a page of 7.1 MB
one of 6.0 MB.
"""
_NAMES = {"t1n": "T1", "t1c": "T1c", "t2w": "T2", "t2f": "FLAIR"}
_TITLES = {"t1n": "native T1", "t1c": "T1 with contrast agent", "t2w": "T2", "t2f": "T2-FLAIR"}
_REGION_NAMES = {"whole": "Whole tumor", "core": "Tumor core", "active": "Enhancing tumor"}
# From the outside in, as tumors grow: of two classes side by side the deeper one draws the line between them.
_INWARD = (
    "healthy", "edema", "enhancing_core", "non_enhancing_core", MERGED, "necrotic_core", "resection_cavity",
    WHOLE_TUMOR, GROSS_TUMOR, TUMOR_CORE,
)  # fmt: skip
_MARGIN_VOX = 3
Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Overlay:
    """A label map shown over the scans.

    Attributes:
        id: "prediction" or "reference".
        tissue: class index of every voxel (Z, Y, X).
        style: how the page shows it at first.
    """

    id: str
    tissue: TissueMap
    style: Literal["Filled", "Outline"]

    @property
    def name(self) -> str:
        """As a heading."""
        return self.id.capitalize()

    @property
    def key(self) -> str:
        """The key that turns it on and off."""
        return self.name[0]

    @property
    def opacity(self) -> int:
        """In percent, at first."""
        return 90 if self.style == "Outline" else 30


def write_page(
    case: Case,
    *,
    prediction: Path | None,
    reference: Path | None,
    output: Path,
    prediction_schema: str | None = None,
    neighbors: tuple[str, str] = ("", ""),
) -> Path:
    """Write one self-contained HTML page that shows a case: three planes, its modalities, label maps laid
    over them, volumes in ml.

    The scans are cropped to the brain and kept as 127 gray levels: the page is for looking, not for measuring
    intensities.

    Args:
        case: what to show; modalities that it lacks are left out.
        prediction: a label map in the label schema that `written_schema` tells, on the grid of its scans;
            None leaves it out.
        reference: likewise; None takes the label the case comes with, if any.
        output: the page, ending in `.html`; its folder has to exist.
        prediction_schema: the label schema of a prediction that no `predictions.csv` beside it tells.
        neighbors: addresses of the previous and the next case's page, "" for none.

    Returns:
        `output`.

    Raises:
        UsageError: the extra `view` is not installed, `output` is not an `.html` file, or `prediction_schema`
            is unknown or not what `predictions.csv` says.
        InputError: a label map whose name says another case, no modality, no voxel above 0, an unreadable
            file, a file on another grid, values outside the schema.
    """
    if output.suffix.lower() != ".html":
        raise UsageError(f"--output {output}: the page is HTML; give it a name that ends in .html")
    bundle = find_bundle()
    names, scans, geometry = _read_scans(case)
    schemas = _schemas(case, prediction, reference, prediction_schema=prediction_schema)
    classes = common_classes(schema_named(name) for name in schemas.values())
    overlays = _read_overlays(
        case, prediction, reference, schemas=schemas, geometry=geometry, classes=classes
    )
    write_text(
        output,
        _render(
            case,
            names,
            scans,
            overlays,
            geometry=geometry,
            classes=classes,
            bundle=bundle,
            neighbors=neighbors,
        ),
    )
    return output


def _schemas(
    case: Case, prediction: Path | None, reference: Path | None, *, prediction_schema: str | None
) -> dict[str, str]:
    """The label schema of each label map there is, or of the case where there is none."""
    schema_told = schema_option(prediction_schema, option="--prediction-schema")
    schemas = {}
    if prediction is not None:
        schemas["prediction"] = written_schema(case, prediction, untold=schema_told)
        if schema_told and schemas["prediction"] != schema_told:
            raise UsageError(
                f"--prediction-schema {schema_told}: {TABLE} beside {prediction} says {schemas['prediction']}"
                "; leave the option out"
            )
    if case.label is not None or reference is not None or prediction is None:
        schemas["reference"] = case.schema or (
            "" if case.label is not None or reference is not None else next(iter(SCHEMAS))
        )
    for name, schema in schemas.items():
        if not schema:
            raise InputError(
                f"case {case.id}: nothing says which tissue each value of the {name} is; give --schema NAME"
            )
    return schemas


def _read_scans(case: Case) -> tuple[list[str], list[Volume], Geometry]:
    names = [name for name in MODALITIES if name in case.modalities]
    if not names:
        raise InputError(
            f"case {case.id}: no scan in {case.folder}; a page needs at least one of {', '.join(MODALITIES)}"
        )
    read = read_volumes([case.modalities[name] for name in names])
    geometry = read[0][1]
    for name, (_, other) in zip(names, read, strict=True):
        _check_grid(case, case.modalities[name], other, geometry)
    return names, [np.nan_to_num(volume, copy=False, posinf=0, neginf=0) for volume, _ in read], geometry


def _read_overlays(
    case: Case,
    prediction: Path | None,
    reference: Path | None,
    *,
    schemas: Mapping[str, str],
    geometry: Geometry,
    classes: Sequence[str],
) -> list[Overlay]:
    """The existing label maps. A single one is an outline; of two, the reference is an outline over the
    filled prediction, because two outlines of the same colors could not be distinguished.
    """
    for path in (prediction, reference):
        named = other_case_in(path.name, case.id) if path is not None else None
        if named:
            raise InputError(
                f"case {case.id}: {path}: its name says case {named}; give the label map of {case.id}, or "
                f"the folder of {named}"
            )
    expert = case.label if reference is None else ScanFile(reference)
    sources = {"prediction": None if prediction is None else ScanFile(prediction), "reference": expert}
    given = {name: source for name, source in sources.items() if source is not None}
    return [
        Overlay(
            id=name,
            tissue=_read_labels(source, case, geometry, classes, schema=schemas[name]),
            style="Filled" if name == "prediction" and len(given) > 1 else "Outline",
        )
        for name, source in given.items()
    ]


def _read_labels(
    source: ScanFile, case: Case, geometry: Geometry, classes: Sequence[str], *, schema: str
) -> TissueMap:
    values, own_geometry = read_volume(source)
    _check_grid(case, source, own_geometry, geometry)
    try:
        return to_tissue(values, schema_named(schema), classes)
    except InputError as error:
        raise InputError(f"case {case.id}: {source}: {error}") from None


def other_case_in(name: str, case: str) -> str | None:
    """Another case's id in a file's name, written as the id of this case is but with other numbers; None
    where there is none.

    All cases of a BraTS release have one grid, so the grid of a label map does not tell whose it is.
    """
    if not re.search(r"[A-Za-z]", case):
        return None
    pattern = "".join(r"\d+" if part.isdecimal() else re.escape(part) for part in re.split(r"(\d+)", case))
    ids = re.findall(rf"(?<![A-Za-z0-9]){pattern}(?!\d)", name)
    return ids[0] if ids and case not in ids else None


def _check_grid(case: Case, source: ScanFile, own: Geometry, expected: Geometry) -> None:
    refuse(
        (
            own.shape != expected.shape,
            f"case {case.id}: {source}: shape {own.shape} (Z, Y, X); the scans have {expected.shape}",
        ),
        (
            not same_grid(own, expected, tolerance_mm=0.01),
            f"case {case.id}: {source}: its affine puts the voxels elsewhere; write it with the affine of "
            "the scans",
        ),
        error=InputError,
    )


def _render(
    case: Case,
    names: Sequence[str],
    scans: Sequence[Volume],
    overlays: Sequence[Overlay],
    *,
    geometry: Geometry,
    classes: Sequence[str],
    bundle: Bundle,
    neighbors: tuple[str, str],
) -> str:
    brain = np.logical_or.reduce([scan != 0 for scan in scans])
    if not brain.any():
        raise InputError(f"case {case.id}: every voxel of its scans is 0; a page needs a brain to show")
    box = _box(np.logical_or.reduce([brain, *(overlay.tissue > 0 for overlay in overlays)]))
    affine = _page_affine(geometry, box)
    tissues = {overlay.id: overlay.tissue[box] for overlay in overlays}
    return (
        shared_templates()
        .get_template("viewer.html")
        .render(
            case=case,
            facts=_facts(case, geometry),
            neighbors=neighbors,
            to_voxel=np.linalg.inv(geometry.affine_mm).round(6).tolist(),
            modalities=[{"name": _NAMES[name], "title": _TITLES[name]} for name in names],
            overlays=overlays,
            **_legend(overlays, geometry=geometry, classes=classes),
            start_mm=[
                round(float(v), 3) for v in affine[:3] @ (*_start_vox(brain[box], list(tissues.values())), 1)
            ],
            white=WHITE,
            look=viewer_colors(),
            percentiles=GRAY_PERCENTILES,
            bundle=bundle,
            niivue=_base64(bundle.module.encode()),
            scans=_packed([_gray(scan[box], brain[box]) for scan in scans], affine),
            volumes={
                name: _packed([tissue, _outline(tissue, classes)], affine) for name, tissue in tissues.items()
            },
        )
    )


def _legend(
    overlays: Sequence[Overlay], *, geometry: Geometry, classes: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """The rows of the table: tissue classes with their color, and regions, with the ml of each overlay."""
    ml_per_vox = float(np.prod(geometry.spacing_mm)) / 1000
    counts = [np.bincount(overlay.tissue.ravel(), minlength=len(classes)) for overlay in overlays]

    def row(name: str, members: Sequence[int]) -> dict[str, Any]:
        return {
            "name": name,
            "ml": [_ml_text(float(count[list(members)].sum()) * ml_per_vox) for count in counts],
        }

    return {
        "classes": [
            row(words(name), [i]) | {"value": i, "color": color_of(name)}
            for i, name in enumerate(classes)
            if i > 0
        ],
        "regions": [
            row(_REGION_NAMES[region], region_classes(region, classes)) for region in regions_of(classes)
        ],
    }


def _facts(case: Case, geometry: Geometry) -> str:
    voxels = " × ".join(str(n) for n in geometry.shape[::-1])
    spacing = " × ".join(f"{mm:.3g}" for mm in geometry.spacing_mm[::-1])
    return f"{voxels} voxels of {spacing} mm" + (f" · label values of {case.schema}" if case.schema else "")


def _ml_text(ml: float) -> str:
    return "–" if ml == 0 else "< 0.1" if ml < 0.05 else f"{ml:.1f}"


def _gray(scan: Volume, brain: Mask) -> UInt8[np.ndarray, "z y x"]:
    """Gray levels 1 to `WHITE` inside the brain, 0 outside."""
    low, high = np.percentile(scan[brain], GRAY_PERCENTILES)
    share = np.clip((scan.astype(np.float32) - np.float32(low)) / np.float32(max(high - low, 1e-6)), 0, 1)
    return np.where(brain, np.round(share * (WHITE - 1)) + 1, 0).astype(np.uint8)


def _outline(tissue: TissueMap, classes: Sequence[str]) -> TissueMap:
    """One line at every border: the voxels of a class that share a face with a class farther out; 0
    elsewhere.
    """
    depth = np.array([_INWARD.index(name) for name in classes], np.int8)[tissue]
    padded = np.pad(depth, 1)
    border = np.zeros(tissue.shape, bool)
    for axis in range(3):
        for step in (-1, 1):
            border |= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1] < depth
    return np.where(border, tissue, 0).astype(np.uint8)


def _box(mask: Mask) -> Box:
    as_map = mask.view(np.uint8)
    z, y, x = grown(joint_crop(as_map, as_map), mask.shape, by=_MARGIN_VOX)
    return z, y, x


def _start_vox(brain: Mask, tissues: Sequence[TissueMap]) -> tuple[int, int, int]:
    """(x, y, z) to open the page at: inside the largest axial slice of tumor, near its middle; without tumor,
    the middle.
    """
    tumor = np.logical_or.reduce([tissue > 0 for tissue in tissues]) if tissues else np.zeros_like(brain)
    if not tumor.any():
        z, y, x = (n // 2 for n in brain.shape)
        return x, y, z
    z = int(tumor.sum(axis=(1, 2)).argmax())
    spots = np.argwhere(tumor[z])
    y, x = spots[((spots - spots.mean(axis=0)) ** 2).sum(axis=1).argmin()]
    return int(x), int(y), z


def _page_affine(geometry: Geometry, box: Box) -> np.ndarray:
    """Index (x, y, z, 1) in the crop -> (R, A, S, 1) in mm, shape (4, 4) float64."""
    affine = geometry.lps_affine.copy()
    affine[:3, 3] = affine[:3] @ (*(s.start for s in reversed(box)), 1)
    return affine


def _packed(frames: Sequence[UInt8[np.ndarray, "z y x"]], affine: np.ndarray) -> str:
    """Volumes on one grid as the base64 text of a 4-D `.nii.gz`, its header without a word of the
    source's.
    """
    image = nibabel.Nifti1Image(np.stack(frames).transpose(3, 2, 1, 0), affine)
    image.header.set_xyzt_units("mm")
    return _base64(image.to_bytes())


def _base64(content: bytes) -> str:
    """Gzipped without a time, so that one case always gives one page."""
    return base64.b64encode(gzip.compress(content, compresslevel=6, mtime=0)).decode("ascii")
