"""Case -> brain crop, z-scored volume, and the inverse transform to the native grid.

Brain = any modality non-zero. In each modality the brain is clipped at two of its percentiles and z-scored;
voxels outside the brain are 0.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
from jaxtyping import Bool, Float16, Float32, Float64, Int64, Num, UInt8, UInt16

from brats_seg.core.arrays import read_npy
from brats_seg.core.errors import InputError
from brats_seg.core.files import atomic
from brats_seg.core.kernels import histogram16, joint_box, look_up16, mark_nonzero, mark_outside
from brats_seg.core.shapes import Image, Mask, TissueMap, Volume
from brats_seg.scans.case import MODALITIES, Case
from brats_seg.scans.geometry import Geometry
from brats_seg.scans.labels import OUTSIDE, schema_named, to_tissue
from brats_seg.scans.loaded import LoadedCase

Spacing = tuple[float, float, float]
Shape = tuple[int, int, int]

# the bias field is smooth: fitting it on every fourth voxel is 60 times faster, as in Tustison et al. 2010
_SHRINK = 4
_ITERATIONS = [50, 50, 50, 50]


def resampled_shape(shape: Shape, *, spacing_mm: Spacing, to_mm: Spacing) -> Shape:
    """Shape (Z, Y, X) of the grid with another spacing that covers the same volume of space."""
    z, y, x = (max(1, round(n * old / new)) for n, old, new in zip(shape, spacing_mm, to_mm, strict=True))
    return z, y, x


def resample(
    volume: Volume, *, spacing_mm: Spacing, to_mm: Spacing, shape: Shape, nearest: bool = False
) -> Num[np.ndarray, "new_z new_y new_x"]:
    """The volume on a grid of another spacing; the outer corner of the first voxel stays at the same
    position.

    Args:
        volume: (Z, Y, X), any number type.
        spacing_mm, to_mm: old and new spacing, (Z, Y, X).
        shape: (Z, Y, X) of the result.
        nearest: use the nearest voxel and keep the type (for labels); else interpolate linearly, as float32.
    """
    image = sitk.GetImageFromArray(volume if nearest else volume.astype(np.float32))
    image.SetSpacing(spacing_mm[::-1])
    grid = sitk.ResampleImageFilter()
    grid.SetSize(shape[::-1])
    grid.SetOutputSpacing(to_mm[::-1])
    grid.SetOutputOrigin([(new - old) / 2 for old, new in zip(spacing_mm[::-1], to_mm[::-1], strict=True)])
    grid.SetInterpolator(sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear)
    grid.UseNearestNeighborExtrapolatorOn()
    return sitk.GetArrayFromImage(grid.Execute(image))


def correct_bias(volume: Volume, brain: Mask, *, cache: Path | None = None) -> Float32[np.ndarray, "z y x"]:
    """Divide a volume by its bias field, which N4 (Tustison et al. 2010) fits to the brain.

    N4 takes 90 times as long as the rest of a case's preparation. With `cache`, a folder, the field of the
    same volume and brain is read from the folder, or stored there (a 64th of the volume's voxels).
    """
    field = None
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        told = repr((volume.shape, volume.dtype.name)).encode() + volume.tobytes() + brain.tobytes()
        path = cache / f"{hashlib.sha256(told).hexdigest()}.npy"
        with suppress(InputError):  # missing or damaged: computed again
            field = read_npy(path)
    if field is None:
        field = _fit_log_field(volume.astype(np.float32), brain)
        if cache is not None:
            with atomic(path) as part, part.open("wb") as file:
                np.save(file, field)
    log_field = resample(field, spacing_mm=(float(_SHRINK),) * 3, to_mm=(1.0, 1.0, 1.0), shape=volume.shape)
    return volume.astype(np.float32) / np.exp(log_field)


def _fit_log_field(volume: Float32[np.ndarray, "z y x"], brain: Mask) -> Float32[np.ndarray, "a b c"]:
    shrink = [_SHRINK] * 3
    image = sitk.Shrink(sitk.GetImageFromArray(volume), shrink)
    mask = sitk.Shrink(sitk.GetImageFromArray(brain.astype(np.uint8)), shrink)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(_ITERATIONS)
    n4.SetNumberOfThreads(1)  # the same sums in the same order on every machine; modalities run in parallel
    n4.Execute(image, mask)
    return sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image))


SPACING_TOLERANCE = 0.05
"""Largest allowed difference of a voxel's edge from the wanted edge, as a share of the wanted edge."""

# slices that a thread marks at a time: their marks (0.9 MB) stay in the cache for all modalities
_SLAB = 16


@dataclass(frozen=True)
class NormalizedCase:
    """The normalized brain of a case: the input of a network.

    Attributes:
        case_id: id of the case.
        image: float16 (Z, Y, X, M), 0 outside the brain.
        label: tissue class (Z, Y, X), 255 outside the brain; None if no label was read.
        origin: (z, y, x) of the crop's first voxel in the uncropped LPS grid.
        grid_shape, spacing_mm: (Z, Y, X) of the uncropped grid: the native grid, or the resampled grid.
        geometry: the native grid.
        warnings: warnings about the case, a line each.
    """

    case_id: str
    image: Image
    label: TissueMap | None
    origin: tuple[int, int, int]
    grid_shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    geometry: Geometry
    warnings: tuple[str, ...] = ()


def normalize(
    loaded: LoadedCase,
    *,
    modalities: Sequence[str] = MODALITIES,
    classes: Sequence[str] | None = None,
    percentiles: tuple[float, float] = (0.5, 99.5),
    n4_cache: Path | None = None,
    resample_to_mm: Spacing | None = None,
    threads: int = 2,
) -> NormalizedCase:
    """Crop a case to the brain (and all annotated voxels) and normalize it.

    Args:
        loaded: the volumes of the case; `check_case` found no error in them.
        modalities: names, in the order of the channels.
        classes: tissue classes of its label; None for no label.
        percentiles: of the brain's intensities, at which each modality is clipped.
        n4_cache: a folder for bias fields: correct each modality by N4 first. None: no correction.
        resample_to_mm: spacing (Z, Y, X) to which a case is resampled if its spacing differs by more
            than 5 %: scans linearly, the label by nearest voxel. None: never.
        threads: number of modalities normalized at the same time.

    Raises:
        InputError: no brain, or a label value that is not in the label schema.
    """
    case, geometry = loaded.case, loaded.volumes[modalities[0]][1]
    images = [loaded.volumes[name][0] for name in modalities]
    label = loaded.label[0] if loaded.label is not None and classes is not None else None
    spacing_mm = geometry.spacing_mm
    tissue, n_outside = None, 0
    with ThreadPoolExecutor(threads) as pool:
        if resample_to_mm is not None and off_spacing(spacing_mm, wanted_mm=resample_to_mm):
            images, label = _resample(images, label, geometry, to_mm=resample_to_mm, pool=pool)
            spacing_mm = resample_to_mm
        brain = _brain(images, pool)
        box = _box(case, brain, label, pool)
        marks = np.ascontiguousarray(brain[box])
        if n4_cache is not None:
            images = list(
                pool.map(lambda image: correct_bias(image, brain.astype(bool), cache=n4_cache), images)
            )
        image = np.empty((*marks.shape, len(images)), np.float16)
        annotated = (
            None
            if label is None or classes is None
            else pool.submit(_tissue, label[box], case, classes, marks)
        )
        varies = list(
            pool.map(lambda i: _normalize(images[i][box], marks, image, i, percentiles), range(len(images)))
        )
        if annotated is not None:
            tissue, n_outside = annotated.result()
    warnings = [
        f"{name} has the same value in the whole brain: it has no information"
        for name, does in zip(modalities, varies, strict=True)
        if not does
    ]
    warnings += (
        [f"{n_outside} annotated voxels lie outside the brain; they keep their class"] if n_outside else []
    )
    z, y, x = (axis.start for axis in box)
    return NormalizedCase(
        case.id, image, tissue, (z, y, x), brain.shape, spacing_mm, geometry, tuple(warnings)
    )


def off_spacing(spacing_mm: Spacing, *, wanted_mm: Spacing) -> bool:
    """Whether a voxel's edge differs by more than 5 % from the wanted edge (Z, Y, X): such a case is refused
    or resampled.
    """
    rounding = 1e-6  # headers store float32
    return any(
        abs(have - want) > (SPACING_TOLERANCE + rounding) * want
        for have, want in zip(spacing_mm, wanted_mm, strict=True)
    )


def uncrop(label_map: Num[np.ndarray, "z y x"], normalized: NormalizedCase) -> Num[np.ndarray, "a b c"]:
    """Put a map of the crop back on the whole native grid (Z, Y, X) in LPS, 0 outside the crop; by nearest
    voxel if the case was resampled.
    """
    full = np.zeros(normalized.grid_shape, label_map.dtype)
    place = tuple(
        slice(first, first + n) for first, n in zip(normalized.origin, label_map.shape, strict=True)
    )
    full[place] = label_map
    geometry = normalized.geometry
    if normalized.spacing_mm == geometry.spacing_mm:
        return full
    return resample(
        full, spacing_mm=normalized.spacing_mm, to_mm=geometry.spacing_mm, shape=geometry.shape, nearest=True
    )


def normalize_numpy(
    values: Num[np.ndarray, "*grid"], brain: Bool[np.ndarray, "*grid"], *, percentiles: tuple[float, float]
) -> Float16[np.ndarray, "*grid"]:
    """The definition: clip at the brain's percentiles, subtract its mean, divide by its standard deviation; 0
    outside the brain; 0 if all values are equal.
    """
    inside = values[brain].astype(np.float64)
    low, high = np.percentile(inside, percentiles)
    out = np.zeros(values.shape, np.float16)
    if low < high:  # the standard deviation of equal fractions is not 0, because their mean is rounded
        inside = inside.clip(low, high)
        out[brain] = (inside - inside.mean()) / inside.std()
    return out


def _normalize(
    values: Volume, marks: TissueMap, image: Image, channel: int, percentiles: tuple[float, float]
) -> bool:
    """Normalize one modality of a crop into its channel; False if all its brain voxels are equal."""
    bits = _as_bits(values)
    if bits is None:
        image[..., channel] = normalize_numpy(values, marks.astype(bool), percentiles=percentiles)
        return bool(image[..., channel].any())
    counts = np.roll(histogram16(bits.reshape(-1)), 32768)  # as int16, from -32768 on
    counts[32768] -= marks.size - np.count_nonzero(marks)  # voxels outside the brain are 0
    table = _table(counts, percentiles)
    flat = image.view(np.uint16).reshape(-1, image.shape[-1])
    look_up16(bits.reshape(-1), np.roll(table, -32768).view(np.uint16), marks.reshape(-1), flat, channel)
    return bool(table.any())


def _table(
    counts: Int64[np.ndarray, "65536"], percentiles: tuple[float, float]
) -> Float16[np.ndarray, "65536"]:
    """The normalized value of every int16 that occurs in the brain, from the counts of the values."""
    found = np.flatnonzero(counts)  # one or two thousand values
    values, weights = found - 32768.0, counts[found]
    total = np.cumsum(weights)
    low, high = (_percentile(values, total, share) for share in percentiles)
    clipped = values.clip(low, high)
    mean = clipped @ weights / total[-1]
    spread = np.sqrt((clipped - mean) ** 2 @ weights / total[-1])
    table = np.zeros(65536, np.float16)
    if spread > 0:
        table[found] = (clipped - mean) / spread
    return table


def _percentile(
    values: Float64[np.ndarray, " n"], total: Int64[np.ndarray, " n"], percentile: float
) -> float:
    """NumPy's linear percentile of ascending values, from cumulative counts."""
    place = percentile / 100 * (total[-1] - 1)
    below, above = values[
        np.searchsorted(total, [int(place), min(int(place) + 1, int(total[-1]) - 1)], side="right")
    ]
    return float(below + (above - below) * (place - int(place)))


def _as_bits(values: Volume) -> UInt16[np.ndarray, "z y x"] | None:
    """The volume as int16 (bits), or None if it contains other numbers. Released scans stored as float
    contain whole numbers too.
    """
    if values.dtype == np.int16:
        return np.ascontiguousarray(values).view(np.uint16)
    with np.errstate(invalid="ignore"):
        whole = np.ascontiguousarray(values, dtype=np.int16)
    return whole.view(np.uint16) if np.array_equal(whole, values) else None


def _resample(
    images: Sequence[Volume], label: Volume | None, geometry: Geometry, *, to_mm: Spacing, pool: Executor
) -> tuple[list[np.ndarray], np.ndarray | None]:
    """Resample images linearly (0 outside the resampled brain), and the label by nearest voxel."""
    spacing_mm = geometry.spacing_mm
    shape = resampled_shape(geometry.shape, spacing_mm=spacing_mm, to_mm=to_mm)
    brain = resample(_brain(images, pool), spacing_mm=spacing_mm, to_mm=to_mm, shape=shape, nearest=True)
    images = [resample(image, spacing_mm=spacing_mm, to_mm=to_mm, shape=shape) * brain for image in images]
    return images, None if label is None else resample(
        label, spacing_mm=spacing_mm, to_mm=to_mm, shape=shape, nearest=True
    )


def _brain(volumes: Sequence[Volume], pool: Executor) -> UInt8[np.ndarray, "z y x"]:
    brain = np.zeros(volumes[0].shape, np.uint8)

    def mark(part: slice) -> None:
        for volume in volumes:
            mark_nonzero(volume[part].reshape(-1), brain[part].reshape(-1))

    list(pool.map(mark, (slice(z, z + _SLAB) for z in range(0, len(brain), _SLAB))))
    return brain


def _box(
    case: Case, brain: UInt8[np.ndarray, "z y x"], label: Volume | None, pool: Executor
) -> tuple[slice, slice, slice]:
    if not brain.any():
        raise InputError(f"{case.id}: {case.folder}: every modality is 0 everywhere; a brain is needed")
    annotated = brain if label is None else _brain([label], pool)
    z0, z1, y0, y1, x0, x1 = joint_box(brain, annotated).tolist()
    return slice(z0, z1), slice(y0, y1), slice(x0, x1)


def _tissue(
    label: Volume, case: Case, classes: Sequence[str], marks: UInt8[np.ndarray, "z y x"]
) -> tuple[TissueMap, int]:
    """The crop's tissue classes, 255 outside the brain, and the number of annotated voxels outside the brain
    (these keep their class).
    """
    try:
        tissue = to_tissue(label, schema_named(case.schema), classes)
    except InputError as error:
        raise InputError(f"{case.id}: {case.label}: {error}") from None
    return tissue, mark_outside(tissue.reshape(-1), marks.reshape(-1), OUTSIDE)
