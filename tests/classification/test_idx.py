"""IDX files."""

import gzip
import os

import numpy as np
import pytest
from set_files import write_idx

from brats_seg.classification.idx import read_idx
from brats_seg.core.errors import InputError

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
CONTENT = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, *range(24)])


@pytest.mark.parametrize("name", ["images", "images.gz"])
def test_packed_or_not(tmp_path, name):
    write_idx(tmp_path / name, IMAGES)
    assert np.array_equal(read_idx(tmp_path / name, n_axes=3), IMAGES)
    write_idx(tmp_path / name, IMAGES[:, 0, 0])
    assert read_idx(tmp_path / name, n_axes=1).tolist() == [0, 12]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (CONTENT[:-1], "its header says 2 x 3 x 4 = 24 bytes, and 23 follow; download it again"),
        (CONTENT + b"\0", "its header says 2 x 3 x 4 = 24 bytes, and more follow; download it again"),
        (CONTENT[:9], "9 bytes are not an IDX header of 16; download it again"),
        (b"", "0 bytes are not an IDX header of 16; download it again"),
        (
            CONTENT[:3] + b"\1" + CONTENT[4:],
            "begins with 00000801; an IDX file of bytes with 3 axes begins with 00000803",
        ),
        (b"<html>" + CONTENT, "begins with 3c68746d; an IDX file of bytes with 3 axes begins with 00000803"),
        (
            CONTENT[:4] + bytes([0, 0, 4, 0]) * 3,
            "its header says 1024 x 1024 x 1024 = 1073741824 bytes, and 0 follow; download it again",
        ),
        (CONTENT[:4] + b"\xff" * 12, f"its header asks for {(2**32 - 1) ** 3} bytes; the most is 4294967296"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_damaged_file_is_named_in_one_line(tmp_path, content, said, packed):
    path = tmp_path / ("images.gz" if packed else "images")
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(InputError) as refused:
        read_idx(path, n_axes=3)
    assert str(refused.value) == f"{path}: {said}"


def test_a_packed_file_cut_short(tmp_path):
    path = tmp_path / "images.gz"
    packed = gzip.compress(CONTENT[:16] + np.random.default_rng(0).bytes(5000))
    path.write_bytes(packed[:2000])
    with pytest.raises(InputError, match=r"images\.gz: .*download it again") as refused:
        read_idx(path, n_axes=3)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_packed_and_one_that_is_not_there(tmp_path):
    (tmp_path / "images.gz").write_bytes(CONTENT)
    for name in ("images.gz", "none"):
        with pytest.raises(InputError, match=f"{name}: cannot be read: "):
            read_idx(tmp_path / name, n_axes=3)


def test_memory_is_not_asked_for_beyond_what_a_file_can_hold(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "brats_seg.core.arrays.np.empty", lambda n, kind: asked.append(n) or np.zeros(n, kind)
    )
    for name, pack in (("images", bytes), ("images.gz", gzip.compress)):
        (tmp_path / name).write_bytes(pack(CONTENT[:4] + bytes([0, 0, 4, 0]) * 3))
        with pytest.raises(InputError, match="and 0 follow"):
            read_idx(tmp_path / name, n_axes=3)
    assert asked == [16, 1040 * (tmp_path / "images.gz").stat().st_size]


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "images")
    with pytest.raises(InputError, match="images: cannot be read: not a regular file"):
        read_idx(tmp_path / "images", n_axes=3)
