"""Lesions of a case: connected tumor voxels."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from brats_seg.bank.lesions import number_lesions


def test_voxels_that_share_a_corner_are_one_lesion():
    volume = np.zeros((4, 5, 6), bool)
    volume[1, 1, 1] = volume[2, 2, 2] = volume[2, 2, 5] = True
    positions = np.flatnonzero(volume).astype(np.uint32)
    assert number_lesions(positions, shape=volume.shape).tolist() == [0, 0, 1]
    assert number_lesions(positions[::-1], shape=volume.shape).tolist() == [1, 0, 0]


def test_a_case_without_tumor_has_no_lesion():
    assert number_lesions(np.zeros(0, np.uint32), shape=(3, 3, 3)).tolist() == []


@given(arrays(bool, (4, 5, 6), elements=st.booleans()))
def test_the_lesions_are_those_of_the_whole_volume(volume):
    labels, n = ndimage.label(volume, np.ones((3, 3, 3)))
    positions = np.flatnonzero(volume).astype(np.uint32)
    numbers = number_lesions(positions, shape=volume.shape)
    assert numbers.tolist() == (labels.ravel()[positions] - 1).tolist()
    assert len(np.unique(numbers)) == n
