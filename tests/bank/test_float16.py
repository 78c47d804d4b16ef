"""The widening of float16 that the gather rests on, against its NumPy twin: equal to the bit."""

import numba
import numpy as np
import pytest

from brats_seg.bank import float16 as kernels

ALL_FLOAT16 = np.arange(65536, dtype=np.uint16)


@numba.njit
def widen_by_bits(bits, values):
    """`widen` as a processor does it that cannot convert float16."""
    for i in range(bits.size):
        values[i] = kernels.widen_one_by_bits(bits[i])


@pytest.mark.parametrize("widen", [kernels.widen, widen_by_bits])
def test_every_float16_widens_as_numpy_does_it(widen: object) -> None:
    ours, twin = np.empty(65536, np.float32), np.empty(65536, np.float32)
    widen(ALL_FLOAT16, ours)  # type: ignore[operator]
    kernels.widen_numpy(ALL_FLOAT16, twin)
    assert np.array_equal(ours.view(np.uint32), twin.view(np.uint32))


def test_numbers_a_person_knows_widen_to_themselves() -> None:
    known = np.array(
        [0.0, -0.0, 1.0, -2.5, 65504.0, 2.0**-24, -(2.0**-24), 2.0**-14, np.inf, -np.inf], np.float16
    )
    values = np.empty(len(known), np.float32)
    kernels.widen(known.view(np.uint16), values)
    assert np.array_equal(values, known.astype(np.float32))
    assert np.array_equal(np.signbit(values), np.signbit(known))


def test_a_nan_stays_one_keeps_sign_and_payload_and_becomes_quiet() -> None:
    signaling = np.array([0x7C01, 0xFC01], np.uint16)
    values = np.empty(2, np.float32)
    kernels.widen(signaling, values)
    assert [hex(v) for v in values.view(np.uint32)] == ["0x7fc02000", "0xffc02000"]
