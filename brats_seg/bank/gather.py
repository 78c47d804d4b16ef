"""Voxel ids -> a batch of patches; the only rule for patches at the border.

The center of a patch is at index size // 2 of each axis. Voxels of a patch outside the crop have image 0 and
label 255 (outside the brain). So every voxel of the brain can be a center, at the edges too.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from queue import SimpleQueue
from threading import Thread
from time import sleep

import numpy as np
import torch
from jaxtyping import Float16, Float32, Int64, UInt8
from torch import Tensor

from brats_seg.bank.blend_kernels import FRACTION_BITS
from brats_seg.bank.float16 import widen_numpy
from brats_seg.bank.gather_kernels import gather_planes, wait_for
from brats_seg.bank.mapped import Volumes
from brats_seg.core.errors import UsageError
from brats_seg.core.shapes import Counts, Ids
from brats_seg.core.tensors import Inputs, Targets
from brats_seg.scans.labels import OUTSIDE

_SHARE_PER_THREAD = 1 << 18
"""Number of values below which a further thread costs more time than it saves: waking a thread takes about 30
microseconds.
"""
_PATIENCE = 100_000
"""Number of checks whether the other threads are done, some nanoseconds each, before this thread sleeps."""
Table = UInt8[np.ndarray, "256"]
"""Class of each tissue class, as in `Grouping.table`."""
_AS_THEY_ARE = np.zeros(0, np.uint8)
_HALF_STEPS = float(1 << FRACTION_BITS - 1)
_LARGEST_ENTRY, _LARGEST_OFFSET = 1024, 1 << 31
_NO_MAPS = (np.zeros((0, 3), np.int64), np.zeros((0, 3, 3), np.int64))


@dataclass(frozen=True)
class PatchMaps:
    """An affine map for each patch of a batch: the position in the volume at which each voxel of the patch is
    read.

    Let c be the drawn voxel plus the offset, i an index in the patch, and m = (size - 1) / 2 the middle of
    the patch, all (z, y, x). The voxel at index i is read at c + m - size // 2 + A (i - m). The identity
    gives the patch without a map; -1 in place of a 1 flips an axis. A 2-D patch stays in its slice: only the
    y and x rows and columns of its matrix are used.

    Attributes:
        offsets: in voxels, from the drawn voxel to the voxel at index size // 2 of the patch, if the matrix
            is the identity.
        matrices: A, from patch axes to volume axes. Entries above 1 make structures smaller in the patch.
    """

    offsets: Int64[np.ndarray, "b 3"]
    matrices: Float32[np.ndarray, "b 3 3"]


@dataclass(frozen=True)
class Batch:
    """Patches of one step.

    Attributes:
        inputs: float32 (B, M, [Z,] Y, X), channels last in memory; with n slices around: (B, (2 n + 1) M, Y,
            X), slice -n first.
        targets: class of each voxel (B, [Z,] Y, X), 255 outside the brain and for classes that a grouped bank
            leaves out.
        counts: (K + 1,) int64, voxels of each class in these patches; voxels outside the brain are counted in
            the last entry. A NumPy array for a bank on the CPU, else a tensor on the bank's device, which the
            CPU does not wait for.
    """

    inputs: Inputs
    targets: Targets
    counts: Counts | Int64[Tensor, " k"]


def gather_patches(
    volumes: Volumes,
    ids: Ids,
    *,
    patch_size: tuple[int, ...],
    out: Batch,
    table: Table | None = None,
    maps: PatchMaps | None = None,
    slices_around: int = 0,
    threads: int = 1,
) -> None:
    """Gather the patches around voxels into a batch of the caller, on the CPU (inputs channels last).

    A patch with a map is read at positions between voxels: the image by linear interpolation, where a voxel
    outside the volume counts as 0; the class is that of the nearest voxel, and of two equally near voxels the
    one with the higher index. Where the class is 255 (outside the brain) the image is exactly 0: air stays
    exactly 0, as a bank stores it. At the edge of the brain, neighboring air counts as 0 in the
    interpolation.

    Args:
        volumes: images and labels of the cases.
        ids: case << 32 | flat position, one for each patch.
        patch_size: (Y, X) or (Z, Y, X) in voxels.
        out: the batch to write.
        table: the class of each tissue class, and of 255; None does not change the classes.
        maps: one map for each patch; None reads all patches without a map.
        slices_around: n, for 2-D patches: the channels are those of 2 n + 1 slices, the modalities of slice
            -n first. Targets and counts are of the middle slice.
        threads: largest number of threads; with 1 no other thread is started, which a forked worker process
            needs.

    Raises:
        InputError: an id outside all cases.
        UsageError: a map that is not finite or too large; slices around a 3-D patch.
    """
    volumes.check(ids)
    _check(maps, n_patches=len(ids), patch_size=patch_size, slices_around=slices_around)
    patch = _three(patch_size)
    n_planes, counts_out = len(ids) * patch[0], np.asarray(out.counts)
    values, targets = out.inputs.movedim(1, -1).numpy().reshape(-1), out.targets.numpy().reshape(-1)
    threads = max(1, min(threads, values.size // _SHARE_PER_THREAD))
    progress = np.zeros(2, np.int64)
    counts = np.zeros((threads, len(counts_out)), np.int64)
    n_at_once = max(1, n_planes // (1 if threads == 1 else 4 * threads))
    where = (volumes.image_addresses, volumes.label_addresses, volumes.shapes)
    offsets, matrices = _NO_MAPS if maps is None else (maps.offsets, _in_half_steps(maps))
    moves = (offsets, matrices, len(patch_size) == 2)
    how = (volumes.n_channels, OUTSIDE, slices_around, _AS_THEY_ARE if table is None else table)

    def work(thread: int) -> None:
        to = (values, targets, counts[thread])
        gather_planes(where, ids, patch, moves, how, (progress.ctypes.data, n_at_once), to)

    for thread in range(1, threads):
        _helpers(threads - 1).put(partial(work, thread))
    work(0)
    while not wait_for(progress.ctypes.data, n_planes, _PATIENCE):
        sleep(1e-5)  # another thread waits for a core
    counts_out[:] = counts.sum(axis=0)


@dataclass(frozen=True)
class ResidentVolumes:
    """Cases one after the other in memory, on one device.

    Attributes:
        images, labels: voxels of all cases.
        firsts: position of each case's first voxel; -1 for a case that is not resident.
        shapes: (Z, Y, X) of each case.
        as_float32: the float32 value of each float16, indexed by the bits of the float16.
    """

    images: Float16[Tensor, " voxels m"]
    labels: UInt8[Tensor, " voxels"]
    firsts: Int64[Tensor, " cases"]
    shapes: Int64[Tensor, " cases 3"]
    as_float32: Float32[Tensor, "65536"]


def make_resident(volumes: Volumes, cases: tuple[int, ...], *, device: torch.device) -> ResidentVolumes:
    """Copy cases to a device, one by one: (2 M + 1) bytes for each voxel."""
    firsts = np.full(len(volumes.shapes), -1, np.int64)
    stops = np.cumsum(volumes.n_voxels[list(cases)])
    firsts[list(cases)] = stops - volumes.n_voxels[list(cases)]
    images = torch.empty((int(stops[-1]), volumes.n_channels), dtype=torch.float16, device=device)
    labels = torch.empty(int(stops[-1]), dtype=torch.uint8, device=device)
    for case in cases:
        image, label = volumes.pair(case)
        place = slice(int(firsts[case]), int(firsts[case] + volumes.n_voxels[case]))
        images[place] = torch.from_numpy(np.array(image)).reshape(-1, volumes.n_channels).to(device)
        labels[place] = torch.from_numpy(np.array(label)).reshape(-1).to(device)
    table = np.empty(65536, np.float32)
    widen_numpy(np.arange(65536, dtype=np.uint16), table)
    firsts_there, shapes_there, table_there = (
        torch.from_numpy(a).to(device) for a in (firsts, volumes.shapes, table)
    )
    return ResidentVolumes(images, labels, firsts_there, shapes_there, table_there)


def gather_patches_torch(
    volumes: ResidentVolumes,
    ids: Ids,
    *,
    patch_size: tuple[int, ...],
    n_classes: int,
    table: UInt8[Tensor, "256"] | None = None,
    maps: PatchMaps | None = None,
    slices_around: int = 0,
) -> tuple[Inputs, Targets, Int64[Tensor, " k"]]:
    """`gather_patches` by index arithmetic on the device of the volumes; `ids` are not checked.

    The result is equal to the bit for a patch without a map or with the identity. With another map, targets
    and counts are equal, and the image differs only by rounding. The CPU never waits for the device: ids and
    maps are sent in one copy.
    """
    _check(maps, n_patches=len(ids), patch_size=patch_size, slices_around=slices_around)
    columns, n_plain = [np.arange(len(ids))[:, None], ids[:, None]], len(ids)
    if maps is not None:
        matrices = _in_half_steps(maps).reshape(-1, 9)
        is_mapped = (matrices != np.eye(3).ravel() * _HALF_STEPS).any(axis=1)
        order, n_plain = np.argsort(is_mapped, kind="stable"), len(ids) - int(is_mapped.sum())
        columns = [column[order] for column in (*columns, maps.offsets, matrices)]
    sent = send(np.concatenate(columns, axis=1), volumes.labels.device)
    shape = (len(ids), *_three(patch_size))
    n_channels, n_slices = volumes.images.shape[1], 2 * slices_around + 1
    values = torch.empty((*shape, n_slices, n_channels), device=sent.device)
    targets = torch.empty(shape, dtype=torch.uint8, device=sent.device)
    for part, read in ((sent[:n_plain], _read_straight), (sent[n_plain:], _read_mapped)):
        for number in range(n_slices if len(part) else 0):
            image, label = read(volumes, part, shape[1:], number - slices_around, len(patch_size) == 2)
            values[part[:, 0], :, :, :, number] = image
            if number == slices_around:
                targets[part[:, 0]] = label
    if table is not None:
        targets = table[targets.int()]
    inside = torch.stack([(targets == k).sum() for k in range(n_classes)])
    counts = torch.cat([inside, targets.numel() - inside.sum(keepdim=True, dim=0)])
    return values.view(len(ids), *patch_size, -1).movedim(-1, 1), targets.view(len(ids), *patch_size), counts


def send(array: Int64[np.ndarray, "*shape"], device: torch.device) -> Int64[Tensor, "*shape"]:
    """Copy numbers to a device; to a CUDA device without waiting for the copy."""
    here = torch.from_numpy(array)
    return here.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else here.to(device)


def _read_straight(
    volumes: ResidentVolumes, sent: Tensor, patch: tuple[int, int, int], slices_up: int, is_flat: bool
) -> tuple[Tensor, Tensor]:
    case, sizes, center = _centers(volumes, sent, slices_up)
    steps = [
        _along(axis, center[:, axis, None] - n // 2 + torch.arange(n, device=sent.device))
        for axis, n in enumerate(patch)
    ]
    places, inside = _places(volumes, case, sizes, steps)
    bits = volumes.images[places].view(torch.int16).int() & 0xFFFF
    return volumes.as_float32[bits].masked_fill_(~inside[..., None], 0), volumes.labels[places].masked_fill_(
        ~inside, OUTSIDE
    )


def _read_mapped(
    volumes: ResidentVolumes, sent: Tensor, patch: tuple[int, int, int], slices_up: int, is_flat: bool
) -> tuple[Tensor, Tensor]:
    """Interpolate at fixed-point positions, the same numbers as in the kernel. The eight neighboring voxels
    are added one by one, because all at once would need eight times the memory.
    """
    case, sizes, center = _centers(volumes, sent, slices_up)
    matrices, one, half = sent[:, 5:14].view(-1, 3, 3), 1 << FRACTION_BITS, 1 << FRACTION_BITS - 1
    moving = (1, 2) if is_flat else (0, 1, 2)
    positions = []
    for axis, n in enumerate(patch):
        position = _along(0, ((center[:, axis] << FRACTION_BITS) - (1 - n % 2) * half)[:, None])
        for other in moving if axis in moving else ():
            to_middle = 2 * torch.arange(patch[other], device=sent.device) + 1 - patch[other]
            position = position + _along(other, matrices[:, axis, other, None] * to_middle)
        positions.append(position)
    places, inside = _places(
        volumes, case, sizes, [(position + half) >> FRACTION_BITS for position in positions]
    )
    label = volumes.labels[places].masked_fill_(~inside, OUTSIDE)
    image = torch.zeros((*label.shape, volumes.images.shape[1]), device=sent.device)
    below = [position >> FRACTION_BITS for position in positions]
    upper = [(position & (one - 1)).float() / one for position in positions]
    for taps in product((0,) if is_flat else (0, 1), (0, 1), (0, 1)):
        places, inside = _places(
            volumes, case, sizes, [low + tap for low, tap in zip(below, taps, strict=True)]
        )
        weight = inside.float()
        for share, tap in zip(upper, taps, strict=True):
            weight = weight * (share if tap else 1 - share)
        image.addcmul_(weight[..., None], volumes.images[places].float())
    return image.masked_fill_((label == OUTSIDE)[..., None], 0), label


def _centers(volumes: ResidentVolumes, sent: Tensor, slices_up: int) -> tuple[Tensor, Tensor, Tensor]:
    """Case (B,), its sizes (B, 3), and the center (B, 3) of each patch with its offset, moved by `slices_up`
    along z.
    """
    case, position = sent[:, 1] >> 32, sent[:, 1] & 0xFFFFFFFF
    sizes = volumes.shapes[case]
    n_y, n_x = sizes[:, 1], sizes[:, 2]
    center = torch.stack([position // (n_y * n_x) + slices_up, position // n_x % n_y, position % n_x], dim=1)
    return case, sizes, center + sent[:, 2:5] if sent.shape[1] > 2 else center


def _along(axis: int, numbers: Tensor) -> Tensor:
    """Numbers (B, n) as (B, n, 1, 1), (B, 1, n, 1) or (B, 1, 1, n)."""
    return numbers.view(len(numbers), *[-1 if i == axis else 1 for i in range(3)])


def _places(
    volumes: ResidentVolumes, case: Tensor, sizes: Tensor, steps: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Flat positions of voxels among all cases, and which voxels lie in their volume; the others get any
    position of the volume.
    """
    one = torch.ones_like(case)
    strides = (sizes[:, 1] * sizes[:, 2], sizes[:, 2], one)
    places, inside = _along(0, volumes.firsts[case][:, None]), _along(0, one[:, None].bool())
    for step, n, stride in zip(steps, sizes.unbind(1), strides, strict=True):
        end = _along(0, n[:, None])
        inside = inside & (step >= 0) & (step < end)
        places = places + step.clamp(min=0).minimum(end - 1) * _along(0, stride[:, None])
    return places, inside


def _check(
    maps: PatchMaps | None, *, n_patches: int, patch_size: tuple[int, ...], slices_around: int
) -> None:
    if slices_around and (slices_around < 0 or len(patch_size) != 2):
        raise UsageError(
            f"slices_around {slices_around}: must be 0 or more, and 0 for 3-D patches; the patch is "
            f"{patch_size}"
        )
    if maps is None:
        return
    if len(maps.offsets) != n_patches or len(maps.matrices) != n_patches:
        raise UsageError(
            f"{len(maps.offsets)} offsets and {len(maps.matrices)} matrices for {n_patches} patches: give "
            "one for each"
        )
    is_small = n_patches == 0 or (
        np.abs(maps.matrices).max() <= _LARGEST_ENTRY
        and maps.offsets.max() <= _LARGEST_OFFSET
        and maps.offsets.min() >= -_LARGEST_OFFSET
    )
    if not is_small:
        raise UsageError(
            f"a matrix with an entry that is not within {_LARGEST_ENTRY} of 0, or an offset not within "
            f"{_LARGEST_OFFSET}"
        )


def _in_half_steps(maps: PatchMaps) -> Int64[np.ndarray, "b 3 3"]:
    """The matrices in units of 2**-23, in which twice the distance to the middle of a patch is a whole number
    of 2**-24 voxels.
    """
    return np.rint(maps.matrices.astype(np.float64) * _HALF_STEPS).astype(np.int64)


def _three(patch_size: tuple[int, ...]) -> tuple[int, int, int]:
    depth, height, width = (1, *patch_size) if len(patch_size) == 2 else patch_size
    return depth, height, width


@lru_cache
def _helpers(n_threads: int) -> "SimpleQueue[Callable[[], None]]":
    """Jobs for waiting threads. `ThreadPoolExecutor` took 100 of the 330 microseconds of a batch to report
    its end.
    """
    jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()

    def work_forever() -> None:
        while True:
            jobs.get()()

    for _ in range(n_threads):
        Thread(target=work_forever, name="gather", daemon=True).start()
    return jobs


if hasattr(os, "register_at_fork"):  # a forked process has no threads of its parent; Windows has no fork
    os.register_at_fork(after_in_child=_helpers.cache_clear)
