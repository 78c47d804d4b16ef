"""Patches: the border policy by hand, two backends that are equal, and maps that read a patch turned, scaled
or flipped.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from brats_seg.bank import gather
from brats_seg.bank.gather import Batch, PatchMaps, gather_patches, gather_patches_torch, make_resident
from brats_seg.bank.mapped import Volumes
from brats_seg.core.errors import InputError, UsageError
from brats_seg.scans.grouping import group_classes

N_CLASSES = 3


def in_memory(pairs: list[tuple[np.ndarray, np.ndarray]]) -> Volumes:
    """Volumes of float16 images (Z, Y, X, M) and uint8 labels (Z, Y, X), each pair of its own shape."""
    shapes = np.array([label.shape for _, label in pairs], np.int64).reshape(-1, 3)
    return Volumes(shapes, n_channels=pairs[0][0].shape[-1], load=lambda case: pairs[case])


def volumes_of(shapes: list[tuple[int, int, int]], *, n_channels: int, seed: int) -> Volumes:
    """Cases of random bits: every float16 there is, and labels of three classes and 255."""
    rng = np.random.default_rng(seed)
    return in_memory(
        [
            (
                rng.integers(0, 65536, (*shape, n_channels)).astype(np.uint16).view(np.float16),
                rng.choice(np.array([0, 1, 2, 255], np.uint8), shape),
            )
            for shape in shapes
        ]
    )


def gathered(
    function: object,
    volumes: Volumes,
    ids: np.ndarray,
    size: tuple[int, ...],
    *,
    slices_around: int = 0,
    **more: object,
) -> tuple[np.ndarray, ...]:
    """Bits of the inputs, targets and counts, from buffers full of something else."""
    inputs = np.full((len(ids), *size, volumes.n_channels * (2 * slices_around + 1)), 7, np.float32)
    targets, counts = np.full((len(ids), *size), 7, np.uint8), np.full(N_CLASSES + 1, 7, np.int64)
    out = Batch(torch.from_numpy(inputs).movedim(-1, 1), torch.from_numpy(targets), counts)
    gather: Any = function
    gather(volumes, ids, patch_size=size, out=out, slices_around=slices_around, **more)
    return inputs.view(np.uint32), targets, counts


def by_torch(
    volumes: Volumes,
    ids: np.ndarray,
    size: tuple[int, ...],
    *,
    table: np.ndarray | None = None,
    **more: object,
) -> tuple[np.ndarray, ...]:
    resident = make_resident(volumes, tuple(range(len(volumes.shapes))), device=torch.device("cpu"))
    there = None if table is None else torch.from_numpy(table)
    inputs, targets, counts = gather_patches_torch(
        resident, ids, patch_size=size, n_classes=N_CLASSES, table=there, **more  # type: ignore[arg-type]
    )  # fmt: skip
    return inputs.movedim(1, -1).contiguous().numpy().view(np.uint32), targets.numpy(), counts.numpy()


def by_slices(volumes: Volumes, ids: np.ndarray, size: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets by plain slices of a volume with a margin of 0 and 255 around it."""
    patch, inputs, targets = (1, *size)[-3:], [], []
    for example in ids.tolist():
        image, label = volumes.pair(example >> 32)
        center = np.unravel_index(example & 0xFFFFFFFF, label.shape)
        around = [(n, n) for n in patch]
        place = tuple(
            slice(int(c) + n - n // 2, int(c) + n - n // 2 + n) for c, n in zip(center, patch, strict=True)
        )
        inputs.append(np.pad(image.view(np.uint16), [*around, (0, 0)])[place].view(np.float16))
        targets.append(np.pad(label, around, constant_values=255)[place])
    shape = (len(ids), *size)
    return np.array(inputs).reshape(*shape, volumes.n_channels), np.array(targets).reshape(shape)


def finite(volumes: Volumes) -> Volumes:
    """The same cases with finite images, 0 where the label is 255."""
    rng = np.random.default_rng(0)
    pairs = [volumes.pair(case) for case in range(len(volumes.shapes))]
    images = [rng.normal(size=image.shape) * (label != 255)[..., None] for image, label in pairs]
    return in_memory(
        [(image.astype(np.float16), label) for image, (_, label) in zip(images, pairs, strict=True)]
    )


def random_maps(n: int, *, seed: int, reach: int = 3) -> PatchMaps:
    """Matrices of all kinds: nearly none, turned, scaled, sheared, and each third the identity."""
    rng = np.random.default_rng(seed)
    matrices = np.eye(3) + rng.normal(size=(n, 3, 3)) * rng.choice([1e-3, 0.3, 1.0], (n, 1, 1))
    matrices[::3] = np.eye(3)
    return PatchMaps(rng.integers(-reach, reach + 1, (n, 3)), matrices.astype(np.float32))


def constant_maps(
    n: int, diagonal: tuple[float, float, float], offset: tuple[int, int, int] = (0, 0, 0)
) -> PatchMaps:
    return PatchMaps(
        np.tile(np.array(offset, np.int64), (n, 1)), np.tile(np.diag(diagonal).astype(np.float32), (n, 1, 1))
    )


sizes = st.one_of(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)),
)


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 7), st.integers(1, 8)), min_size=1, max_size=4),
    st.integers(1, 5),
    sizes,
    st.integers(0, 2**31),
    st.sampled_from(["as stored", "healthy_or_tumor", "tumor"]),
)
def test_all_backends_are_equal_to_the_bit(
    shapes: list[tuple[int, int, int]], n_channels: int, size: tuple[int, ...], seed: int, kind: str
) -> None:
    volumes = volumes_of(shapes, n_channels=n_channels, seed=seed)
    rng = np.random.default_rng(seed)
    cases = rng.integers(0, len(shapes), 7)
    ids = (cases << 32) | rng.integers(0, volumes.n_voxels[cases])
    table = None if kind == "as stored" else group_classes(kind, ("healthy", "edema", "core")).table  # type: ignore[arg-type]
    ours, twin = (
        gathered(gather_patches, volumes, ids, size, table=table),
        by_torch(volumes, ids, size, table=table),
    )
    for a, b in zip(ours, twin, strict=True):
        assert np.array_equal(a, b)
    image, label = by_slices(volumes, ids, size)
    assert np.array_equal(
        np.nan_to_num(twin[0].view(np.float32)), np.nan_to_num(image.astype(np.float32), posinf=None)
    )
    assert np.array_equal(twin[1], label if table is None else table[label])
    assert np.array_equal(
        twin[2], np.bincount(np.minimum(twin[1].ravel(), N_CLASSES), minlength=N_CLASSES + 1)
    )


def test_every_float16_comes_through_both_backends() -> None:
    image = np.arange(65536, dtype=np.uint16).view(np.float16).reshape(1, 128, 128, 4)
    volumes = in_memory([(image, np.zeros((1, 128, 128), np.uint8))])
    ids = np.array([64 * 128 + 64], np.int64)
    twin = by_torch(volumes, ids, (128, 128))
    assert np.array_equal(gathered(gather_patches, volumes, ids, (128, 128))[0], twin[0])
    finite = np.isfinite(image)
    assert np.array_equal(twin[0].view(np.float32)[0][finite[0]], image[finite].astype(np.float32))


def test_the_corner_voxel_lies_at_the_center_and_the_rest_is_air() -> None:
    label = np.arange(27, dtype=np.uint8).reshape(3, 3, 3) % 3
    image = np.arange(1, 28, dtype=np.float16).reshape(3, 3, 3, 1)
    volumes = in_memory([(image, label)])
    bits, targets, counts = gathered(gather_patches, volumes, np.array([0], np.int64), (4, 4))
    assert bits.view(np.float32)[0, ..., 0].tolist() == [
        [0, 0, 0, 0],
        [0, 0, 0, 0],
        [0, 0, 1, 2],
        [0, 0, 4, 5],
    ]
    assert targets[0].tolist() == [[255] * 4, [255] * 4, [255, 255, 0, 1], [255, 255, 0, 1]]
    assert counts.tolist() == [2, 2, 0, 12]
    _, targets, _ = gathered(gather_patches, volumes, np.array([26], np.int64), (3, 3, 3))
    assert targets[0, 2].tolist() == [[255] * 3] * 3
    assert targets[0, 1].tolist() == [[1, 2, 255], [1, 2, 255], [255] * 3]


def test_a_table_changes_targets_and_counts_and_never_the_image() -> None:
    label = np.array([[[0, 1, 2], [0, 2, 255]]], np.uint8)
    volumes = in_memory([(np.ones((1, 2, 3, 1), np.float16), label)])
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
        twin = by_torch(volumes, ids, size)
        for a, b in zip(gathered(gather_patches, volumes, ids, size, threads=threads), twin, strict=True):
            assert np.array_equal(a, b)


def test_a_forked_process_gathers_with_threads_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
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
    volumes = in_memory([(np.zeros((1, 300, 300, 1), np.float16), label)])
    assert gathered(gather_patches, volumes, np.array([150 * 300 + 150]), (300, 300))[2].tolist() == [
        90000,
        0,
        0,
        0,
    ]


def test_no_ids_give_an_empty_batch() -> None:
    volumes = volumes_of([(2, 3, 4)], n_channels=4, seed=0)
    assert gathered(gather_patches, volumes, np.empty(0, np.int64), (4, 4))[2].tolist() == [0] * 4


@pytest.mark.parametrize(
    ("voxel", "message"),
    [
        (1 << 32, "case number 1; the bank has 1"),
        (-1, "case number -1"),
        (24, "position 24 of case number 0, which has 24"),
    ],
)
def test_an_id_in_no_case_is_an_error(voxel: int, message: str) -> None:
    volumes = volumes_of([(2, 3, 4)], n_channels=4, seed=0)
    with pytest.raises(InputError, match=message):
        gathered(gather_patches, volumes, np.array([0, voxel]), (4, 4))


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 7), st.integers(1, 8)), min_size=1, max_size=4),
    st.integers(1, 5),
    sizes,
    st.integers(0, 2**31),
    st.integers(0, 2),
)
def test_mapped_patches_of_all_backends_are_equal(
    shapes: list[tuple[int, int, int]], n_channels: int, size: tuple[int, ...], seed: int, slices_around: int
) -> None:
    volumes = finite(volumes_of(shapes, n_channels=n_channels, seed=seed))
    rng = np.random.default_rng(seed)
    cases = rng.integers(0, len(shapes), 7)
    ids = (cases << 32) | rng.integers(0, volumes.n_voxels[cases])
    how = {"maps": random_maps(7, seed=seed), "slices_around": slices_around if len(size) == 2 else 0}
    ours, twin = gathered(gather_patches, volumes, ids, size, **how), by_torch(volumes, ids, size, **how)  # type: ignore[arg-type]
    np.testing.assert_allclose(ours[0].view(np.float32), twin[0].view(np.float32), atol=1e-5)
    assert np.array_equal(ours[1], twin[1])
    assert np.array_equal(ours[2], twin[2])
    assert np.array_equal(
        ours[2], np.bincount(np.minimum(ours[1].ravel(), N_CLASSES), minlength=N_CLASSES + 1)
    )
    n = n_channels * how["slices_around"]  # type: ignore[operator]
    middle = ours[0].view(np.float32)[..., n : n + n_channels]
    assert (middle[ours[1] == 255] == 0).all()


BACKENDS = {"numba": lambda *args, **more: gathered(gather_patches, *args, **more), "torch": by_torch}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(8, 8), (7, 6), (4, 8, 8), (3, 6, 7)])
def test_the_identity_changes_no_bit_and_an_offset_moves_the_center(
    backend: str, size: tuple[int, ...]
) -> None:
    volumes, gather_by = volumes_of([(5, 12, 15)], n_channels=4, seed=0), BACKENDS[backend]
    ids = np.random.default_rng(0).integers(0, 900, 9)
    for a, b in zip(
        gather_by(volumes, ids, size, maps=constant_maps(9, (1, 1, 1))),
        gather_by(volumes, ids, size),
        strict=True,
    ):
        assert np.array_equal(a, b)
    center = (2 * 12 + 6) * 15 + 7
    moved = gather_by(volumes, np.array([center]), size, maps=constant_maps(1, (1, 1, 1), (1, -2, 3)))
    for a, b in zip(moved, gather_by(volumes, np.array([center + (12 - 2) * 15 + 3]), size), strict=True):
        assert np.array_equal(a, b)
    beyond = gather_by(volumes, ids, size, maps=constant_maps(9, (1, 1, 1), (0, -(1 << 31), 1 << 31)))
    assert beyond[0].max() == 0
    assert beyond[1].min() == 255


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("size", "signs"),
    [((8, 8), (1, -1, 1)), ((7, 6), (1, -1, -1)), ((4, 8, 8), (-1, 1, -1)), ((3, 6, 7), (-1, -1, -1))],
)
def test_a_negative_diagonal_is_the_flipped_patch(
    backend: str, size: tuple[int, ...], signs: tuple[int, int, int]
) -> None:
    volumes, gather_by = finite(volumes_of([(5, 12, 15)], n_channels=4, seed=0)), BACKENDS[backend]
    ids = np.random.default_rng(0).integers(0, 900, 9)
    ours, plain = gather_by(volumes, ids, size, maps=constant_maps(9, signs)), gather_by(volumes, ids, size)
    axes = tuple(1 + i for i, sign in enumerate(signs[-len(size) :]) if sign < 0)
    assert np.array_equal(ours[0].view(np.float32), np.flip(plain[0].view(np.float32), axes))
    assert np.array_equal(ours[1], np.flip(plain[1], axes))


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_the_size_between_voxels_by_hand(backend: str) -> None:
    image = np.arange(16, dtype=np.float16).reshape(1, 4, 4, 1)
    label = np.array([[[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 0, 0], [2, 2, 0, 255]]], np.uint8)
    volumes, center = in_memory([(image, label)]), np.array([2 * 4 + 2])
    inputs, targets, counts = BACKENDS[backend](volumes, center, (2, 2), maps=constant_maps(1, (1, 2, 2)))
    # read at 0.5 and 2.5 along each axis: means of four voxels; of the four the last one is the nearest
    assert inputs.view(np.float32)[0, ..., 0].tolist() == [[2.5, 4.5], [10.5, 0]]
    assert targets[0].tolist() == [[0, 1], [2, 255]]
    assert counts.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_quarter_turn_is_a_turned_patch(backend: str) -> None:
    volumes = finite(volumes_of([(5, 12, 15)], n_channels=4, seed=0))
    ids, turn = np.arange(9) * 100, np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], np.float32)
    turned = BACKENDS[backend](
        volumes, ids, (7, 7), maps=PatchMaps(np.zeros((9, 3), np.int64), np.tile(turn, (9, 1, 1)))
    )
    plain = BACKENDS[backend](volumes, ids, (7, 7))
    assert np.array_equal(turned[0].view(np.float32), np.rot90(plain[0].view(np.float32), axes=(1, 2)))
    assert np.array_equal(turned[1], np.rot90(plain[1], axes=(1, 2)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(16, 16), (8, 9, 10)])
def test_no_patch_has_air_that_the_volume_has_not(backend: str, size: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    image = rng.uniform(1, 2, (60, 60, 60, 4)).astype(np.float16)
    volumes = in_memory([(image, rng.integers(0, 3, (60, 60, 60)).astype(np.uint8))])
    ids = (30 * 60 + 30) * 60 + 30 + rng.integers(-3, 4, 20)
    maps = random_maps(20, seed=4)
    inputs, targets, _ = BACKENDS[backend](
        volumes, ids, size, maps=PatchMaps(maps.offsets, np.clip(maps.matrices, -1.1, 1.1))
    )
    assert inputs.view(np.float32).min() >= 1
    assert targets.max() < 3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("maps", [None, random_maps(6, seed=1)])
def test_slices_around_are_the_patches_of_those_slices(backend: str, maps: PatchMaps | None) -> None:
    volumes, gather_by = finite(volumes_of([(7, 12, 15)], n_channels=3, seed=0)), BACKENDS[backend]
    ids = (np.array([0, 1, 3, 3, 5, 6]) * 12 + 6) * 15 + np.arange(6)
    inputs, targets, counts = gather_by(volumes, ids, (8, 8), maps=maps, slices_around=2)
    assert inputs.shape == (6, 8, 8, 15)
    for number, up in enumerate((-2, -1, 0, 1, 2)):
        plain = maps or constant_maps(6, (1, 1, 1))
        moved = PatchMaps(plain.offsets + np.array([up, 0, 0]), plain.matrices)
        of_slice = gather_by(volumes, ids, (8, 8), maps=moved)
        assert np.array_equal(
            inputs[..., number * 3 : number * 3 + 3].view(np.float32), of_slice[0].view(np.float32)
        )
        if up == 0:
            assert np.array_equal(targets, of_slice[1])
            assert np.array_equal(counts, of_slice[2])
    if maps is None:
        assert inputs[0, ..., :6].max() == 0  # two slices below the first there is nothing


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_share_a_mapped_batch(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "_SHARE_PER_THREAD", 1)
    volumes, ids = (
        finite(volumes_of([(5, 40, 30)], n_channels=4, seed=1)),
        np.random.default_rng(0).integers(0, 6000, 11),
    )
    for size in ((16, 16), (3, 16, 16)):
        alone = gathered(gather_patches, volumes, ids, size, maps=random_maps(11, seed=2))
        for a, b in zip(
            gathered(gather_patches, volumes, ids, size, maps=random_maps(11, seed=2), threads=threads),
            alone,
            strict=True,
        ):
            assert np.array_equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_maps_that_cannot_be_are_refused(backend: str) -> None:
    volumes, ids, gather_by = volumes_of([(2, 9, 9)], n_channels=4, seed=0), np.arange(3), BACKENDS[backend]
    with pytest.raises(UsageError, match="2 offsets and 2 matrices for 3 patches"):
        gather_by(volumes, ids, (4, 4), maps=constant_maps(2, (1, 1, 1)))
    for entry in (np.nan, np.inf, 2000.0):
        with pytest.raises(UsageError, match="not within 1024 of 0"):
            gather_by(volumes, ids, (4, 4), maps=constant_maps(3, (1, 1, entry)))
    with pytest.raises(UsageError, match="0 for 3-D patches"):
        gather_by(volumes, ids, (2, 4, 4), slices_around=1)
