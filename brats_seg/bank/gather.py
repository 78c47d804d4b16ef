"""Voxel ids -> a batch of patches, at memory speed; the one border policy.

The center of a patch is at index size // 2 of each axis. What hangs over the crop is image 0 and label 255 (outside the brain):
every voxel of the brain can be a center, edges included.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from queue import SimpleQueue
from threading import Thread
from time import sleep

import numpy as np
import torch
from jaxtyping import Float16, Float32, Int64, UInt8
from torch import Tensor

from brats_seg.bank.mapped import Volumes
from brats_seg.core.gather_kernels import gather_planes, wait_for, widen_numpy
from brats_seg.core.shapes import Counts, Ids
from brats_seg.core.tensors import Inputs, Targets
from brats_seg.scans.labels import OUTSIDE

_SHARE_PER_THREAD = 1 << 18
"""Values below which a further thread costs more than it saves: waking one takes about 30 microseconds."""
_PATIENCE = 100_000
"""Looks at whether the others are done, some nanoseconds each, before the core is let go."""
Table = UInt8[np.ndarray, "256"]
"""Class by tissue class, as `Grouping.table` has it."""
_AS_THEY_ARE = np.zeros(0, np.uint8)


def gather_patches(
    volumes: Volumes,
    ids: Ids,
    *,
    patch_size: tuple[int, ...],
    inputs_out: Float32[np.ndarray, " b *patch m"],
    targets_out: UInt8[np.ndarray, " b *patch"],
    counts_out: Counts,
    table: Table | None = None,
    threads: int = 1,
) -> None:
    """Gather the patches around voxels into a caller's buffers (C order).

    Args:
        volumes: where from.
        ids: case << 32 | flat position, one for each patch.
        patch_size: (Y, X) or (Z, Y, X) in voxels.
        inputs_out: written.
        targets_out: class of each voxel, 255 outside; written.
        counts_out: (K + 1,) voxels of each class in these patches, and in the last place all others; written.
        table: the class of each tissue class, and of 255; None leaves them as they are.
        threads: how many to use at most; with 1 no other thread is started, as a forked worker process needs it.

    Raises:
        InputError: an id that lies in no case.
    """
    volumes.check(ids)
    patch = _three(patch_size)
    n_planes, values, targets = len(ids) * patch[0], inputs_out.reshape(-1), targets_out.reshape(-1)
    threads = max(1, min(threads, values.size // _SHARE_PER_THREAD))
    progress = np.zeros(2, np.int64)
    counts = np.zeros((threads, len(counts_out)), np.int64)
    n_at_once = max(1, n_planes // (1 if threads == 1 else 4 * threads))
    where = (volumes.image_addresses, volumes.label_addresses, volumes.shapes, ids, patch, volumes.n_channels, OUTSIDE)
    classes = _AS_THEY_ARE if table is None else table

    def work(thread: int) -> None:
        gather_planes(*where, classes, progress.ctypes.data, n_at_once, values, targets, counts[thread])

    for thread in range(1, threads):
        _helpers(threads - 1).put(partial(work, thread))
    work(0)
    while not wait_for(progress.ctypes.data, n_planes, _PATIENCE):
        sleep(1e-5)  # a helper has lost its core
    counts_out[:] = counts.sum(axis=0)


def gather_patches_numpy(
    volumes: Volumes,
    ids: Ids,
    *,
    patch_size: tuple[int, ...],
    inputs_out: Float32[np.ndarray, " b *patch m"],
    targets_out: UInt8[np.ndarray, " b *patch"],
    counts_out: Counts,
    table: Table | None = None,
) -> None:
    """Twin of `gather_patches` by slices."""
    volumes.check(ids)
    patch = _three(patch_size)
    inputs_out[:] = 0
    targets_out[:] = OUTSIDE
    inputs = inputs_out.reshape(len(ids), *patch, volumes.n_channels)
    targets = targets_out.reshape(len(ids), *patch)
    for example, inputs_of, targets_of in zip(ids.tolist(), inputs, targets, strict=True):
        image, label = volumes.pair(example >> 32)
        center = np.unravel_index(example & 0xFFFFFFFF, label.shape)
        firsts = [int(c) - n // 2 for c, n in zip(center, patch, strict=True)]
        source = tuple(slice(max(f, 0), f + n) for f, n in zip(firsts, patch, strict=True))
        to = tuple(slice(max(-f, 0), min(n, size - f)) for f, n, size in zip(firsts, patch, label.shape, strict=True))
        bits = np.ascontiguousarray(image[source]).view(np.uint16)
        values = np.empty(bits.shape, np.float32)
        widen_numpy(bits, values)
        inputs_of[to], targets_of[to] = values, label[source]
    if table is not None:
        targets_out[:] = table[targets_out]
    n_classes = len(counts_out) - 1
    counts_out[:] = np.bincount(np.minimum(targets_out.reshape(-1), n_classes), minlength=n_classes + 1)


@dataclass(frozen=True)
class ResidentVolumes:
    """Cases end to end on one device.

    Attributes:
        images, labels: voxels of all cases.
        firsts: place of each case's first voxel; -1 for a case that is not resident.
        shapes: (Z, Y, X) of each case.
        as_float32: the float32 of each float16, by its bits.
    """

    images: Float16[Tensor, " voxels m"]
    labels: UInt8[Tensor, " voxels"]
    firsts: Int64[Tensor, " cases"]
    shapes: Int64[Tensor, " cases 3"]
    as_float32: Float32[Tensor, "65536"]


def make_resident(volumes: Volumes, cases: tuple[int, ...], *, device: torch.device) -> ResidentVolumes:
    """Copy cases to a device: (2 M + 1) bytes a voxel, case by case."""
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
    firsts_there, shapes_there, table_there = (torch.from_numpy(a).to(device) for a in (firsts, volumes.shapes, table))
    return ResidentVolumes(images, labels, firsts_there, shapes_there, table_there)


def gather_patches_torch(
    volumes: ResidentVolumes, ids: Int64[Tensor, " b"], *, patch_size: tuple[int, ...], n_classes: int, table: Table | None = None
) -> tuple[Inputs, Targets, Int64[Tensor, " k"]]:
    """`gather_patches` by index arithmetic on the device that holds the volumes; equal to the bit. `ids` are not checked."""
    cases, positions = ids >> 32, ids & 0xFFFFFFFF
    n_z, n_y, n_x = volumes.shapes[cases].unbind(1)
    center = (positions // (n_y * n_x), positions // n_x % n_y, positions % n_x)
    places, inside = volumes.firsts[cases].view(-1, 1, 1, 1), torch.ones((), dtype=torch.bool, device=ids.device)
    strides = (n_y * n_x, n_x, torch.ones_like(n_x))
    patch = _three(patch_size)
    for axis, (middle, size, n, stride) in enumerate(zip(center, patch, (n_z, n_y, n_x), strides, strict=True)):
        along = [-1, 1, 1, 1]
        along[1 + axis] = size
        steps = middle[:, None] - size // 2 + torch.arange(size, device=ids.device)
        inside = inside & ((steps >= 0) & (steps < n[:, None])).view(along)
        places = places + (steps.clamp(min=0).minimum(n[:, None] - 1) * stride[:, None]).view(along)
    bits = volumes.images[places].view(torch.int16).int() & 0xFFFF
    values = volumes.as_float32[bits].masked_fill_(~inside[..., None], 0)
    targets = volumes.labels[places].masked_fill_(~inside, OUTSIDE)
    if table is not None:
        targets = torch.from_numpy(table).to(ids.device)[targets.int()]
    counts = torch.bincount(targets.flatten().clamp(max=n_classes), minlength=n_classes + 1)
    shape = (len(ids), *patch_size)
    return values.view(*shape, -1).movedim(-1, 1), targets.view(shape), counts


def _three(patch_size: tuple[int, ...]) -> tuple[int, int, int]:
    depth, height, width = (1, *patch_size) if len(patch_size) == 2 else patch_size
    return depth, height, width


@lru_cache
def _helpers(n_threads: int) -> "SimpleQueue[Callable[[], None]]":
    """Jobs for threads that wait for them. `ThreadPoolExecutor` took 100 of a batch's 330 microseconds to tell that it was done."""
    jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()

    def work_forever() -> None:
        while True:
            jobs.get()()

    for _ in range(n_threads):
        Thread(target=work_forever, name="gather", daemon=True).start()
    return jobs


os.register_at_fork(after_in_child=_helpers.cache_clear)  # a forked process has none of its parent's threads
