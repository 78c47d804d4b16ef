import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from brats_seg.evaluation.calibration import (
    N_BINS,
    calibration_tree,
    read_probabilities,
    reliability,
    score_probabilities,
)
from brats_seg.scans.geometry import ScanError, make_geometry
from brats_seg.scans.predictions import CLASSES, PROBABILITIES
from brats_seg.scans.volume import write_volume

FIVE = ("healthy", "necrotic_core", "edema", "non_enhancing_core", "enhancing_core")
FOUR = ("healthy", "necrotic_or_non_enhancing", "edema", "enhancing_core")


def test_ten_voxels_by_hand():
    found = reliability(np.array([0.9] * 5 + [0.1] * 5, np.float32), np.array([True] * 4 + [False] * 6))
    assert found.n_voxels[13] == found.n_voxels[1] == 5
    assert found.n_inside[13] == 4
    assert found.ece == pytest.approx((5 * 0.1 + 5 * 0.1) / 10)  # 0.9 where 0.8 are inside, 0.1 where none is
    tree = found.to_dict()
    assert [(b["from"], b["n_voxels"], b["share_inside"]) for b in tree["bins"]] == [
        (0.0667, 5, 0.0),
        (0.8667, 5, 0.8),
    ]


def test_a_certain_and_right_network_has_no_error_and_a_certain_and_wrong_one_has_all():
    inside = np.array([True, False, True])
    assert reliability(inside.astype(np.float32), inside).ece == 0
    assert reliability((~inside).astype(np.float32), inside).ece == 1
    assert np.isnan(reliability(np.empty(0, np.float32), np.empty(0, bool)).ece)


@given(st.integers(0, 1000), st.integers(1, 400))
def test_bins_are_those_of_scikit_learn_and_parts_add_up(seed, n):
    random = np.random.default_rng(seed)
    probability = random.random(n).astype(np.float32)
    inside = random.random(n) < probability
    whole = reliability(probability, inside)
    share, mean = calibration_curve(inside, probability, n_bins=N_BINS)
    bins = whole.to_dict()["bins"]
    np.testing.assert_allclose([b["share_inside"] for b in bins], share)
    np.testing.assert_allclose([b["mean_probability"] for b in bins], mean, rtol=1e-5)
    parts = reliability(probability[::2], inside[::2]) + reliability(probability[1::2], inside[1::2])
    assert np.array_equal(parts.n_voxels, whole.n_voxels)
    assert parts.ece == pytest.approx(whole.ece)


def test_regions_are_compared_across_class_sets_and_air_is_left_out():
    reference = np.zeros((1, 2, 4), np.uint8)
    reference[0, 0] = [1, 2, 3, 0]
    probabilities = np.zeros((5, 1, 2, 4), np.float32)
    probabilities[0] = 1  # air and a certain healthy voxel ...
    probabilities[:, 0, 0, 0] = [0.5, 0.25, 0, 0.25, 0]
    probabilities[:, 0, 0, 1] = [0, 0, 1, 0, 0]
    probabilities[:, 0, 0, 2] = [1, 0, 0, 0, 0]  # ... and a missed voxel of enhancing core, which counts
    found = score_probabilities(probabilities, FIVE, reference=reference, classes=FOUR)
    assert {region: int(r.n_voxels.sum()) for region, r in found.items()} == {
        "whole": 3,
        "core": 3,
        "active": 3,
    }
    assert found["whole"].ece == pytest.approx((0.5 + 0 + 1) / 3)
    assert found["core"].ece == pytest.approx(
        (0.5 + 1) / 3
    )  # the two voxels at 0 share a bin with a share inside of 1/2
    assert found["active"].ece == pytest.approx(1 / 3 + 0 / 3)
    tree = calibration_tree([found, found])
    assert tree["n_cases"] == 2
    assert tree["regions"]["whole"]["ece"] == pytest.approx(found["whole"].ece)


def test_saved_probabilities_are_read_back_or_named(tmp_path):
    grid = make_geometry((3, 4, 5))
    assert read_probabilities(tmp_path, "case", grid=grid) is None
    folder = tmp_path / PROBABILITIES
    folder.mkdir()
    stack = np.random.default_rng(0).random((3, 4, 5, 4)).astype(np.float32)
    write_volume(folder / "case.nii.gz", stack, grid, dtype="float32")
    with pytest.raises(ScanError, match=r"has no classes\.txt in its folder"):
        read_probabilities(tmp_path, "case", grid=grid)
    (folder / CLASSES).write_text("\n".join(FOUR) + "\n")
    volumes, names = read_probabilities(tmp_path, "case", grid=grid)
    assert names == FOUR
    assert np.array_equal(volumes, np.moveaxis(stack, -1, 0))
    with pytest.raises(ScanError, match="another grid"):
        read_probabilities(tmp_path, "case", grid=make_geometry((3, 4, 6)))
