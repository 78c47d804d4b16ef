"""Patches: the border policy by hand, and two backends and a twin that are equal to the bit."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brats_seg.bank import gather
from brats_seg.bank.gather import gather_patches, gather_patches_numpy, gather_patches_torch, make_resident
from brats_seg.bank.grouping import group_classes
from brats_seg.bank.mapped import Volumes
from brats_seg.errors import InputError

N_CLASSES = 3


def volumes_of(shapes: list[tuple[int, int, int]], *, n_channels: int, seed: int) -> Volumes:
    """Cases of random bits: every float16 there is, and labels of three classes and 255."""
    rng = np.random.default_rng(seed)
    return Volumes.from_arrays(
        [
            (
                rng.integers(0, 65536, (*shape, n_channels)).astype(np.uint16).view(np.float16),
                rng.choice(np.array([0, 1, 2, 255], np.uint8), shape),
            )
            for shape in shapes
        ]
    )


def gathered(function: object, volumes: Volumes, ids: np.ndarray, size: tuple[int, ...], **more: object) -> tuple[np.ndarray, ...]:
    """Bits of the inputs, targets and counts, from buffers full of something else."""
    inputs = np.full((len(ids), *size, volumes.n_channels), 7, np.float32)
    targets, counts = np.full((len(ids), *size), 7, np.uint8), np.full(N_CLASSES + 1, 7, np.int64)
    function(volumes, ids, patch_size=size, inputs_out=inputs, targets_out=targets, counts_out=counts, **more)  # type: ignore[operator]
    return inputs.view(np.uint32), targets, counts


def by_torch(volumes: Volumes, ids: np.ndarray, size: tuple[int, ...], table: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
    resident = make_resident(volumes, tuple(range(len(volumes.shapes))), device=torch.device("cpu"))
    there = torch.from_numpy(ids)
    inputs, targets, counts = gather_patches_torch(resident, there, patch_size=size, n_classes=N_CLASSES, table=table)
    return inputs.movedim(1, -1).contiguous().numpy().view(np.uint32), targets.numpy(), counts.numpy()


sizes = st.one_of(st.tuples(st.integers(1, 9), st.integers(1, 9)), st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)))


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 7), st.integers(1, 8)), min_size=1, max_size=4),
    st.integers(1, 5),
    sizes,
    st.integers(0, 2**31),
    st.sampled_from(["as stored", "healthy_or_tumor", "tumor"]),
)
@settings(max_examples=80, deadline=None)
def test_all_backends_are_equal_to_the_bit(
    shapes: list[tuple[int, int, int]], n_channels: int, size: tuple[int, ...], seed: int, kind: str
) -> None:
    volumes = volumes_of(shapes, n_channels=n_channels, seed=seed)
    rng = np.random.default_rng(seed)
    cases = rng.integers(0, len(shapes), 7)
    ids = (cases << 32) | rng.integers(0, volumes.n_voxels[cases])
    table = None if kind == "as stored" else group_classes(kind, ("healthy", "edema", "core")).table  # type: ignore[arg-type]
    twin = gathered(gather_patches_numpy, volumes, ids, size, table=table)
    for ours in (gathered(gather_patches, volumes, ids, size, table=table), by_torch(volumes, ids, size, table)):
        for a, b in zip(ours, twin, strict=True):
            assert np.array_equal(a, b)
    assert twin[2].sum() == twin[1].size


def test_every_float16_comes_through_both_backends() -> None:
    image = np.arange(65536, dtype=np.uint16).view(np.float16).reshape(1, 128, 128, 4)
    volumes = Volumes.from_arrays([(image, np.zeros((1, 128, 128), np.uint8))])
    ids = np.array([64 * 128 + 64], np.int64)
    twin = gathered(gather_patches_numpy, volumes, ids, (128, 128))
    assert np.array_equal(gathered(gather_patches, volumes, ids, (128, 128))[0], twin[0])
    assert np.array_equal(by_torch(volumes, ids, (128, 128))[0], twin[0])
    finite = np.isfinite(image)
    assert np.array_equal(twin[0].view(np.float32)[0][finite[0]], image[finite].astype(np.float32))


def test_the_corner_voxel_lies_at_the_center_and_the_rest_is_air() -> None:
    label = np.arange(27, dtype=np.uint8).reshape(3, 3, 3) % 3
    image = np.arange(1, 28, dtype=np.float16).reshape(3, 3, 3, 1)
    volumes = Volumes.from_arrays([(image, label)])
    bits, targets, counts = gathered(gather_patches, volumes, np.array([0], np.int64), (4, 4))
    assert bits.view(np.float32)[0, ..., 0].tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 2], [0, 0, 4, 5]]
    assert targets[0].tolist() == [[255] * 4, [255] * 4, [255, 255, 0, 1], [255, 255, 0, 1]]
    assert counts.tolist() == [2, 2, 0, 12]
    _, targets, _ = gathered(gather_patches, volumes, np.array([26], np.int64), (3, 3, 3))
    assert targets[0, 2].tolist() == [[255] * 3] * 3
    assert targets[0, 1].tolist() == [[1, 2, 255], [1, 2, 255], [255] * 3]


def test_a_table_changes_targets_and_counts_and_never_the_image() -> None:
    label = np.array([[[0, 1, 2], [0, 2, 255]]], np.uint8)
    volumes = Volumes.from_arrays([(np.ones((1, 2, 3, 1), np.float16), label)])
    table = np.full(256, 255, np.uint8)
    table[[1, 2]] = 0, 1  # class 0 is left out
    inputs, targets, counts = gathered(gather_patches, volumes, np.array([4], np.int64), (2, 3), table=table)
    assert inputs.view(np.float32).min() == 1
    assert targets[0].tolist() == [[255, 0, 1], [255, 1, 255]]
    assert counts.tolist() == [1, 2, 0, 3]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_a_batch(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "_SHARE_PER_THREAD", 1)
    volumes = volumes_of([(5, 40, 30)], n_channels=4, seed=1)
    ids = np.random.default_rng(0).integers(0, 6000, 11)
    for size in ((16, 16), (3, 16, 16)):
        twin = gathered(gather_patches_numpy, volumes, ids, size)
        for a, b in zip(gathered(gather_patches, volumes, ids, size, threads=threads), twin, strict=True):
            assert np.array_equal(a, b)


def test_a_forked_process_gathers_with_threads_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gather, "_SHARE_PER_THREAD", 1)
    volumes, ids = volumes_of([(5, 40, 30)], n_channels=4, seed=1), np.arange(8)
    here = gathered(gather_patches, volumes, ids, (16, 16), threads=2)
    child = os.fork()
    if child == 0:
        np.save(tmp_path / "there.npy", gathered(gather_patches, volumes, ids, (16, 16), threads=2)[0])
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert np.array_equal(np.load(tmp_path / "there.npy"), here[0])


def test_a_long_plane_counts_past_16_bits() -> None:
    label = np.zeros((1, 300, 300), np.uint8)
    volumes = Volumes.from_arrays([(np.zeros((1, 300, 300, 1), np.float16), label)])
    assert gathered(gather_patches, volumes, np.array([150 * 300 + 150]), (300, 300))[2].tolist() == [90000, 0, 0, 0]


def test_no_ids_give_an_empty_batch() -> None:
    volumes = volumes_of([(2, 3, 4)], n_channels=4, seed=0)
    assert gathered(gather_patches, volumes, np.empty(0, np.int64), (4, 4))[2].tolist() == [0] * 4


@pytest.mark.parametrize(
    ("voxel", "message"),
    [(1 << 32, "case number 1; the bank has 1"), (-1, "case number -1"), (24, "position 24 of case number 0, which has 24")],
)
def test_an_id_in_no_case_is_an_error(voxel: int, message: str) -> None:
    volumes = volumes_of([(2, 3, 4)], n_channels=4, seed=0)
    with pytest.raises(InputError, match=message):
        gathered(gather_patches, volumes, np.array([0, voxel]), (4, 4))
