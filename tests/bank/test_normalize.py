"""The brain crop, its z-scores, and the way back."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_scans import BRAIN, SHAPE, small_scan, write_scan

from brats_seg.bank.normalize import (
    NormalizedCase,
    correct_bias,
    normalize,
    normalize_numpy,
    off_spacing,
    uncrop,
)
from brats_seg.core.errors import InputError
from brats_seg.scans.case import MODALITIES, Case, ScanFile
from brats_seg.scans.geometry import make_geometry
from brats_seg.scans.labels import from_tissue, schema_named
from brats_seg.scans.layouts import find_cases
from brats_seg.scans.loaded import LoadedCase, load_case
from brats_seg.scans.volume import read_volume, write_volume

CLASSES = ("healthy", "necrotic_or_non_enhancing", "edema", "enhancing_core")


def the_case(data: Path) -> Case:
    (case,) = find_cases(data).cases
    return case


def read_and_normalize(case: Case, **how: Any) -> NormalizedCase:
    return normalize(load_case(case), **how)


def normalize_arrays(volumes: dict[str, np.ndarray], **how: Any) -> NormalizedCase:
    case = Case("c", "p", "l", "brats2017", {}, None, Path())
    grid = make_geometry(next(iter(volumes.values())).shape)
    loaded = LoadedCase(case, {name: (volume, grid) for name, volume in volumes.items()}, None, ())
    return normalize(loaded, modalities=tuple(volumes), **how)


def ulps(a: np.ndarray, b: np.ndarray) -> int:
    """Largest distance of two float16 arrays of like sign, in steps of a float16."""
    return int(np.abs(a.view(np.int16).astype(int) - b.view(np.int16)).max(initial=0))


def test_the_crop_is_the_brain_and_lies_where_it_was(tmp_path: Path) -> None:
    write_scan(tmp_path, "BraTS2021_00000")
    normalized = read_and_normalize(the_case(tmp_path), classes=CLASSES)
    assert normalized.image.shape == (10, 12, 15, 4)
    assert normalized.origin == (1, 2, 3)
    assert normalized.label is not None
    assert np.bincount(normalized.label.ravel()).tolist() == [1800 - 48, 8, 36, 4]
    assert normalized.warnings == ()


def test_the_label_map_goes_back_to_the_same_voxels(tmp_path: Path) -> None:
    write_scan(tmp_path, "BraTS2021_00000", outside=5)
    normalized = read_and_normalize(the_case(tmp_path), classes=CLASSES)
    assert normalized.label is not None
    back = uncrop(from_tissue(normalized.label, schema_named("brats2017"), CLASSES), normalized)
    _, label = small_scan(0)
    label[0, 0, :5] = 2
    assert np.array_equal(back, label)


def test_z_scores_equal_the_definition(tmp_path: Path) -> None:
    write_scan(tmp_path, "BraTS2021_00000", seed=3)
    normalized = read_and_normalize(the_case(tmp_path))
    volumes, _ = small_scan(3)
    for channel, volume in enumerate(volumes.values()):
        plain = normalize_numpy(volume, volume != 0, percentiles=(0.5, 99.5))
        assert ulps(normalized.image[..., channel], plain[BRAIN]) <= 1
        assert abs(float(normalized.image[..., channel].astype(np.float64).mean())) < 1e-3


@given(
    st.integers(0, 2**32), st.sampled_from(["int16", "uint16", "uint8", "int32", "float32"]), st.booleans()
)
def test_any_number_type_gives_the_definition(seed: int, dtype: str, fractions: bool) -> None:
    rng = np.random.default_rng(seed)
    low, high = {"int16": (-32768, 32768), "uint16": (0, 65536), "uint8": (0, 256)}.get(
        dtype, (-(10**5), 10**5)
    )
    volume = rng.integers(low, high, (3, 4, 5)).astype(dtype) * (rng.random((3, 4, 5)) < 0.8).astype(dtype)
    if fractions and dtype == "float32":
        volume = volume + np.float32(0.25) * (volume != 0)
    other = rng.integers(0, 2, (3, 4, 5)).astype(np.int16)  # where this is 1, a voxel of value 0 is brain too
    other[0, 0, 0] = volume[-1, -1, -1] = other[-1, -1, -1] = 1  # so that the box is the whole
    normalized = normalize_arrays({"a": volume, "b": other})
    brain = (volume != 0) | (other != 0)
    assert ulps(normalized.image[..., 0], normalize_numpy(volume, brain, percentiles=(0.5, 99.5))) <= 1
    assert not normalized.image[~brain].any()


def test_clipping_by_hand() -> None:
    values = np.array([0, 1, 2, 3, 4, 1000])
    brain = values > 0
    out = normalize_numpy(
        values, brain, percentiles=(0.0, 75.0)
    )  # 1 2 3 4 4, of which the mean is 2.8 and the variance 1.36
    assert np.allclose(out[1:], (np.array([1, 2, 3, 4, 4]) - 2.8) / np.sqrt(1.36), atol=1e-3)
    assert out[0] == 0


def test_annotation_outside_the_brain_keeps_its_class_and_is_said(tmp_path: Path) -> None:
    write_scan(tmp_path, "BraTS2021_00000", outside=5)
    normalized = read_and_normalize(the_case(tmp_path), classes=CLASSES)
    assert normalized.origin == (0, 0, 0)
    assert normalized.label is not None
    assert normalized.label[0, 0].tolist() == [2] * 5 + [255] * 13
    assert np.count_nonzero(normalized.label == 255) == normalized.label.size - 1800 - 5
    assert normalized.warnings == ("5 annotated voxels lie outside the brain; they keep their class",)


def test_a_modality_that_says_nothing_is_said_and_is_0() -> None:
    volumes, _ = small_scan(0)
    volumes["t2"][BRAIN] = 7
    normalized = normalize_arrays(volumes)
    assert not normalized.image[..., 2].any()
    assert normalized.warnings == ("t2 has the same value in the whole brain: it has no information",)


def test_equal_fractions_are_0_too() -> None:
    """The mean of 0.1 taken 1,800 times is not 0.1: a z-score of that rounding would be 1 all over."""
    volumes, _ = small_scan(0)
    constant = np.zeros(SHAPE, np.float32)
    constant[BRAIN] = 0.1
    normalized = normalize_arrays(volumes | {"t2": constant})
    assert not normalized.image[..., 2].any()
    assert len(normalized.warnings) == 1


def test_no_brain_is_an_error() -> None:
    with pytest.raises(InputError, match="0 everywhere"):
        normalize_arrays({name: np.zeros((2, 2, 2), np.int16) for name in MODALITIES})


def test_spacing_is_off_beyond_5_percent() -> None:
    assert not off_spacing((1.0, 1.05, 0.95), wanted_mm=(1.0, 1.0, 1.0))
    assert off_spacing((1.0, 1.06, 1.0), wanted_mm=(1.0, 1.0, 1.0))


def test_a_resampled_case_comes_back_to_its_grid(tmp_path: Path) -> None:
    write_scan(tmp_path, "BraTS2021_00000", spacing_mm=(2.0, 1.0, 1.0))
    normalized = read_and_normalize(the_case(tmp_path), classes=CLASSES, resample_to_mm=(1.0, 1.0, 1.0))
    assert normalized.image.shape == (20, 12, 15, 4)
    assert normalized.grid_shape == (24, 16, 20)
    assert normalized.spacing_mm == (1.0, 1.0, 1.0)
    assert normalized.label is not None
    back = uncrop(np.where(normalized.label == 255, 0, normalized.label), normalized)
    _, label = small_scan(0)
    assert back.shape == SHAPE
    assert np.array_equal(back, np.where(label == 4, 3, label))


def test_channels_of_one_4d_file(tmp_path: Path) -> None:
    volumes, _ = small_scan(0)
    write_volume(
        tmp_path / "a.nii.gz", np.stack(list(volumes.values()), axis=-1), make_geometry(SHAPE), dtype="int16"
    )
    files = {name: ScanFile(tmp_path / "a.nii.gz", channel) for channel, name in enumerate(MODALITIES)}
    stacked = read_and_normalize(Case("c", "p", "msd", "msd", files, None, tmp_path))
    write_scan(tmp_path / "apart", "BraTS2021_00000")
    assert np.array_equal(stacked.image, read_and_normalize(the_case(tmp_path / "apart")).image)


def test_bias_correction_flattens_a_field_and_is_read_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    field = np.exp(np.linspace(-0.5, 0.5, 48))[None, None, :]
    flat = np.zeros((48, 48, 48))
    flat[6:42, 6:42, 6:42] = (
        400 + 20 * rng.standard_normal((36, 36, 36)) + 200 * (rng.random((36, 36, 36)) < 0.5)
    )
    volume = np.rint(flat * field).astype(np.int16)
    before, after, again = (
        normalize_arrays({"a": volume}, n4_cache=cache) for cache in (None, tmp_path / "n4", tmp_path / "n4")
    )

    def slope(image: np.ndarray) -> float:
        return abs(float(np.polyfit(np.arange(36), image[..., 0].astype(np.float64).mean(axis=(0, 1)), 1)[0]))

    assert slope(after.image) < 0.4 * slope(before.image)
    assert np.array_equal(after.image, again.image)
    assert len(list((tmp_path / "n4").iterdir())) == 1
    correct_bias(volume, volume > 500, cache=tmp_path / "n4")  # the field of another brain is another field
    assert len(list((tmp_path / "n4").iterdir())) == 2


def test_real_cases_equal_the_definition(real_data: Path) -> None:
    case = find_cases(real_data).cases[0]
    normalized = read_and_normalize(case, classes=CLASSES)
    volumes = [read_volume(case.modalities[name])[0] for name in MODALITIES]
    brain = np.logical_or.reduce([volume != 0 for volume in volumes])
    place = tuple(slice(o, o + n) for o, n in zip(normalized.origin, normalized.image.shape[:3], strict=True))
    for channel, volume in enumerate(volumes):
        plain = normalize_numpy(volume, brain, percentiles=(0.5, 99.5))
        assert ulps(normalized.image[..., channel], plain[place]) <= 1
