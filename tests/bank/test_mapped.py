"""Maps without descriptors."""

import os
from pathlib import Path

import numpy as np
import pytest

from brats_seg.bank.mapped import Volumes, map_array
from brats_seg.core.errors import InputError


def _npy(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00\x76\x00" + header.ljust(0x76).encode()[:0x76]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.float16).reshape(2, 3, 4),
        np.arange(5, dtype=np.uint32),
        np.zeros((0, 3), np.uint8),
    ],
)
def test_a_mapped_file_is_what_was_saved_and_cannot_be_written(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    mapped = map_array(tmp_path / "a.npy")
    assert mapped.dtype == array.dtype
    assert np.array_equal(mapped, array)
    with pytest.raises(ValueError, match="read-only"):
        mapped[...] = 1


def test_a_map_holds_no_descriptor(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones(10000))
    before = len(os.listdir("/proc/self/fd"))
    mapped = [map_array(tmp_path / "a.npy") for _ in range(20)]
    assert len(os.listdir("/proc/self/fd")) == before
    assert all(m[-1] == 1 for m in mapped)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"", "not a .npy"),
        (b"text", "not a .npy"),
        (b"\x93NUMPY", "not a .npy"),
        (b"\x93NUMPY\x01\x00", "has a damaged header"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"[" * 70_000, "has a damaged header"),
        (b"\x93NUMPY\x03\x00\xff\xff\xff\x7f", "has a damaged header"),
        (_npy("{'descr': '<f2', 'fortran_order': False, 'shape': ('3',), }"), "has a damaged header"),
        (_npy("{'descr': '<f2', 'fortran_order': False, 'shape': (-3,), }"), "has a damaged header"),
        (_npy("{'descr': '|O', 'fortran_order': False, 'shape': (3,), }"), "has a damaged header"),
        (_npy("{'descr': '<f3', 'fortran_order': False, 'shape': (3,), }"), "has a damaged header"),
        (
            _npy("{'descr': '<f2', 'fortran_order': False, 'shape': (999999999999, 999999999999), }"),
            "128 bytes do not hold",
        ),
        (_npy("{'descr': [('a', '<f2')], 'fortran_order': False, 'shape': (3,), }"), "has a damaged header"),
    ],
)
def test_what_is_no_array_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(InputError, match=rf"a\.npy: {message}"):
        map_array(tmp_path / "a.npy")


def test_a_truncated_or_fortran_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones(100))
    os.truncate(tmp_path / "a.npy", 500)
    np.save(tmp_path / "b.npy", np.asfortranarray(np.ones((3, 4))))
    for name in ("a.npy", "b.npy"):
        with pytest.raises(InputError, match="do not hold"):
            map_array(tmp_path / name)


def test_a_damaged_header_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones(10))
    raw = bytearray((tmp_path / "a.npy").read_bytes())
    raw[12] = ord("(")
    (tmp_path / "a.npy").write_bytes(raw)
    with pytest.raises(InputError, match=r"a\.npy: has a damaged header"):
        map_array(tmp_path / "a.npy")


def test_volumes_are_loaded_once_and_only_when_asked_for() -> None:
    asked = []

    def load(case: int) -> tuple[np.ndarray, np.ndarray]:
        asked.append(case)
        return np.zeros((1, 2, 3, 4), np.float16), np.zeros((1, 2, 3), np.uint8)

    volumes = Volumes(np.array([[1, 2, 3]] * 3), n_channels=4, load=load)
    volumes.check(np.array([1 << 32, (1 << 32) + 5]))
    volumes.check(np.array([1 << 32]))
    assert asked == [1]
    assert np.flatnonzero(volumes.image_addresses).tolist() == [1]


def test_a_volume_of_another_shape_is_refused() -> None:
    pair = (np.zeros((1, 2, 3, 4), np.float16), np.zeros((1, 2, 3), np.uint8))
    volumes = Volumes(np.array([[1, 2, 4]]), n_channels=4, load=lambda case: pair)
    with pytest.raises(InputError, match=r"not \(1, 2, 4\)"):
        volumes.pair(0)
