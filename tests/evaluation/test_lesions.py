import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from brats_seg.evaluation.lesions import match_lesions
from brats_seg.evaluation.surface import hd95_mm

MM = (1.0, 1.0, 1.0)


def block(*corners: tuple[int, int, int], side: int = 4, shape=(24, 24, 40)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for z, y, x in corners:
        mask[z : z + side, y : y + side, x : x + side] = True
    return mask


def test_found_missed_and_false():
    reference = block((2, 2, 2), (2, 2, 20))
    found = match_lesions(reference, block((2, 2, 2), (16, 16, 30)), spacing_mm=MM)
    assert (found.dice, found.hd95_mm, found.n_missed, found.n_false, found.n_counted) == (
        (1.0,),
        (0.0,),
        1,
        1,
        3,
    )
    nothing = match_lesions(reference, np.zeros_like(reference), spacing_mm=MM)
    assert (nothing.dice, nothing.n_missed, nothing.n_false) == ((), 2, 0)


def test_lesions_that_meet_when_grown_are_one():
    """Grown three times each, blocks six voxels apart touch; eight apart they do not (26-connected: seven
    still touch).
    """
    for gap, n in ((6, 1), (8, 2)):
        reference = block((2, 2, 2), (2, 2, 6 + gap))
        assert match_lesions(reference, reference, spacing_mm=MM).n_counted == n


def test_fifty_mm3_is_left_out_and_what_touches_it_is_not_false():
    small = np.zeros((24, 24, 40), bool)
    small[2:7, 2:7, 2:4] = True  # 50 voxels
    assert match_lesions(small, small, spacing_mm=MM).n_counted == 0
    assert match_lesions(small, np.zeros_like(small), spacing_mm=MM).n_counted == 0
    assert match_lesions(small, small, spacing_mm=(1, 1, 1.01)).dice == (1.0,)


def test_one_prediction_counts_for_both_lesions_it_touches():
    reference = block((2, 2, 2), (2, 2, 20))
    bridge = np.zeros_like(reference)
    bridge[2:6, 2:6, 2:24] = True
    result = match_lesions(reference, bridge, spacing_mm=MM)
    assert result.dice == pytest.approx((2 * 64 / (64 + 352),) * 2)
    assert result.n_false == 0


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.02, 0.05]), st.sampled_from([0.0, 0.02, 0.05]))
def test_equal_to_the_published_loop(seed, density, other_density):
    """The challenge's procedure over whole images, lesion by lesion, without our crops."""
    rng = np.random.default_rng(seed)
    reference, prediction = (
        ndimage.binary_dilation(rng.random((12, 14, 26)) < d / 6, iterations=2)
        for d in (density, other_density)
    )
    grow = ndimage.generate_binary_structure(3, 2)
    predicted, n_predicted = ndimage.label(prediction, np.ones((3, 3, 3)))
    merged = (
        ndimage.label(ndimage.binary_dilation(reference, grow, iterations=3), np.ones((3, 3, 3)))[0]
        * reference
    )
    dice, hd95, n_missed, touched = [], [], 0, set()
    for lesion in range(1, int(merged.max(initial=0)) + 1):
        own = merged == lesion
        hits = set(np.unique(predicted[ndimage.binary_dilation(own, grow, iterations=3)])) - {0}
        touched |= hits
        if own.sum() <= 50:
            continue
        if not hits:
            n_missed += 1
            continue
        answer = np.isin(predicted, list(hits))
        dice.append(2 * (own & answer).sum() / (own.sum() + answer.sum()))
        hd95.append(hd95_mm(own, answer, spacing_mm=MM, definition="surface_weighted"))
    ours = match_lesions(reference, prediction, spacing_mm=MM)
    assert ours.dice == pytest.approx(dice)
    assert ours.hd95_mm == pytest.approx(hd95)
    assert (ours.n_missed, ours.n_false) == (n_missed, n_predicted - len(touched))
