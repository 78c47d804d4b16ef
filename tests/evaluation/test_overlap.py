import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from monai.metrics import DiceMetric

from brats_seg.core.errors import InputError
from brats_seg.evaluation.overlap import joint_histogram, overlap_scores

SHAPES = array_shapes(min_dims=3, max_dims=3, max_side=7)


def test_four_voxels_by_hand():
    reference = np.array([[[0, 1, 1, 2]]], np.uint8)
    prediction = np.array([[[0, 1, 2, 2]]], np.uint8)
    histogram = joint_histogram(reference, prediction, 3)
    assert histogram.tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 1]]
    one = overlap_scores(histogram, (1,))
    assert (one.dice, one.iou, one.sensitivity, one.precision, one.specificity) == (2 / 3, 0.5, 0.5, 1.0, 1.0)
    whole = overlap_scores(histogram, (1, 2))
    assert (whole.dice, whole.n_reference, whole.n_prediction, whole.n_voxels) == (1.0, 3, 3, 4)


def test_an_empty_region_has_no_score_here():
    nothing = overlap_scores(
        joint_histogram(np.zeros((2, 2, 2), np.uint8), np.zeros((2, 2, 2), np.uint8), 2), (1,)
    )
    assert math.isnan(nothing.dice)
    assert math.isnan(nothing.sensitivity)
    assert math.isnan(nothing.precision)
    assert nothing.specificity == 1.0


def test_specificity_counts_the_whole_image():
    reference, prediction = np.zeros((1, 10, 10), np.uint8), np.zeros((1, 10, 10), np.uint8)
    prediction[0, 0, 0] = 1
    assert overlap_scores(joint_histogram(reference, prediction, 2), (1,)).specificity == 0.99


def test_other_shape_and_unknown_class_are_refused():
    with pytest.raises(InputError, match=r"shape \(1, 1, 2\); its reference has \(1, 1, 1\)"):
        joint_histogram(np.zeros((1, 1, 1), np.uint8), np.zeros((1, 1, 2), np.uint8), 2)
    for n in (1, 9):  # in the last voxels and in a word of eight
        with pytest.raises(InputError, match=r"class index 5 found; 4 classes have indices 0 to 3"):
            joint_histogram(np.zeros((1, 1, n), np.uint8), np.full((1, 1, n), 5, np.uint8), 4)


@given(st.data())
def test_dice_is_monais(data):
    shape = data.draw(SHAPES)
    a, b = (data.draw(arrays(np.uint8, shape, elements=st.integers(0, 3), fill=st.just(0))) for _ in range(2))
    histogram = joint_histogram(a, b, 4)
    stacked = [
        torch.from_numpy(np.stack([np.isin(m, r) for r in ((1, 2, 3), (1, 3), (3,))]))[None].float()
        for m in (b, a)
    ]
    theirs = DiceMetric(include_background=True, reduction="none")(*stacked).numpy()[0]
    for region, value in zip(((1, 2, 3), (1, 3), (3,)), theirs, strict=True):
        ours = overlap_scores(histogram, region)
        if ours.n_reference:  # MONAI has NaN for an empty reference, whatever was predicted
            assert ours.dice == pytest.approx(value, abs=1e-4)
