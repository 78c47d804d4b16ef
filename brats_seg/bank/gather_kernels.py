"""The gather of patches as one loop, compiled by numba."""

from typing import Any

import numba
import numpy as np
from numba import carray

from brats_seg.bank.blend_kernels import FRACTION_BITS, HALF, ONE, ask_for, map_slice
from brats_seg.bank.float16 import AnyArray, add_shared, as_pointer, widen_one

_U = np.uint64  # unsigned indices: numba tests whether a signed index is negative; that took 3 times as long


@numba.njit(cache=True, nogil=True)
def _locate(volumes: Any, ids: AnyArray, patch: Any, maps: Any, plane: Any, slices_up: Any) -> Any:
    """The source of a plane of the batch: plane p lies in patch p // depth.

    Addresses of the image and the label, their shape, the first position, the steps to the next row and
    column, in 2**-24 voxels, and whether the plane has a map. Twice the distance to the middle of a patch is
    a whole number, and matrices are in 2**-23, so no number is rounded.
    """
    (images, labels, shapes), (offsets, matrices, is_flat) = volumes, maps
    number, depth = plane // patch[0], plane % patch[0]
    case, position = ids[number] >> 32, ids[number] & 0xFFFFFFFF
    shape = shapes[case, 0], shapes[case, 1], shapes[case, 2]
    z = position // (shape[1] * shape[2])
    y = position // shape[2] - z * shape[1]
    x = position - (z * shape[1] + y) * shape[2]
    volume = images[case], labels[case]
    if offsets.size:
        z, y, x = z + offsets[number, 0], y + offsets[number, 1], x + offsets[number, 2]
    z += slices_up
    if not matrices.size or _is_identity(matrices, number):
        first = (
            (z - patch[0] // 2 + depth) << FRACTION_BITS,
            (y - patch[1] // 2) << FRACTION_BITS,
            (x - patch[2] // 2) << FRACTION_BITS,
        )
        return volume, shape, first, (0, ONE, 0), (0, 0, ONE), False
    z_at = (z << FRACTION_BITS) - (1 - patch[0] % 2) * HALF
    y_at = (y << FRACTION_BITS) - (1 - patch[1] % 2) * HALF
    x_at = (x << FRACTION_BITS) - (1 - patch[2] % 2) * HALF
    to_z, to_y, to_x = 2 * depth + 1 - patch[0], 1 - patch[1], 1 - patch[2]
    of_z, of_y, of_x = matrices[number, 0], matrices[number, 1], matrices[number, 2]
    y_at += of_y[1] * to_y + of_y[2] * to_x
    x_at += of_x[1] * to_y + of_x[2] * to_x
    if is_flat:
        return (
            volume,
            shape,
            (z_at, y_at, x_at),
            (0, 2 * of_y[1], 2 * of_x[1]),
            (0, 2 * of_y[2], 2 * of_x[2]),
            True,
        )
    z_at += of_z[0] * to_z + of_z[1] * to_y + of_z[2] * to_x
    first = z_at, y_at + of_y[0] * to_z, x_at + of_x[0] * to_z
    return (
        volume,
        shape,
        first,
        (2 * of_z[1], 2 * of_y[1], 2 * of_x[1]),
        (2 * of_z[2], 2 * of_y[2], 2 * of_x[2]),
        True,
    )


@numba.njit(cache=True, nogil=True)
def _is_identity(matrices: AnyArray, number: Any) -> Any:
    for i in range(3):
        for j in range(3):
            if matrices[number, i, j] != (HALF if i == j else 0):
                return False
    return True


@numba.njit(cache=True, nogil=True, inline="always")
def _blank(
    values: AnyArray,
    targets: AnyArray,
    first: Any,
    stop: Any,
    n_m: Any,
    n_all: Any,
    channel: Any,
    outside: Any,
) -> None:
    """Set `n_m` of the `n_all` values of each voxel to 0, from `channel` on, and the targets to `outside`.
    An empty `targets` stays as it is.
    """
    if n_m == n_all:
        for i in range(first * n_m, stop * n_m):
            values[i] = np.float32(0)
    else:
        for i in range(first, stop):
            for m in range(n_m):
                values[i * n_all + channel + m] = np.float32(0)
    if targets.size:
        for i in range(first, stop):
            targets[i] = outside


@numba.njit(cache=True, nogil=True, inline="always")
def _count(targets: AnyArray, first: Any, n: Any, counts: AnyArray) -> None:
    """Add the classes of a range of targets to `counts`. Voxels outside the brain are counted in the last
    entry.

    It makes one pass over the range for each class: the range stays in the first-level cache, and one
    instruction makes 64 comparisons.
    """
    for start in range(_U(0), n, _U(32768)):  # so that 16-bit sums cannot overflow
        stop = min(start + _U(32768), n)
        n_inside = np.int64(0)
        for k in range(counts.size - 1):
            of_class = np.uint16(0)
            for i in range(start, stop):
                of_class = np.uint16(of_class + np.uint16(targets[first + i] == np.uint8(k)))
            counts[k] += of_class
            n_inside += np.int64(of_class)
        counts[-1] += np.int64(stop - start) - n_inside


@numba.njit(cache=True, nogil=True, inline="always")
def _copy_slice(here: Any, ahead: Any, size: Any, channels: Any, outside: int, to_plane: Any) -> None:
    """Copy a plane of voxels. `here` and `ahead` come from `_locate`.

    `to_plane`: values, targets (empty: not written), the position of the plane's first voxel in the batch,
    and its first channel. `channels`: values to write, and values of a voxel.
    """
    volume, (n_z, n_y, n_x), first, _, _, _ = here
    values, targets, base, channel = to_plane
    z, y0, x0 = first[0] >> FRACTION_BITS, first[1] >> FRACTION_BITS, first[2] >> FRACTION_BITS
    (n_m, n_all), height, width = channels, _U(size[0]), _U(size[1])
    image = carray(as_pointer(volume[0]), (n_z * n_y * n_x * np.int64(n_m),), np.uint16)
    label = carray(as_pointer(volume[1]), (n_z * n_y * n_x,), np.uint8)
    left, right = _U(max(0, min(size[1], -x0))), _U(max(0, min(size[1], n_x - x0)))
    top, bottom = _U(max(0, min(size[0], -y0))), _U(max(0, min(size[0], n_y - y0)))
    if z < 0 or z >= n_z or right <= left:
        top = bottom = _U(0)
    _blank(values, targets, base, base + top * width, n_m, n_all, channel, outside)
    _blank(values, targets, base + bottom * width, base + height * width, n_m, n_all, channel, outside)
    for y in range(top, bottom):
        ask_for(ahead, np.int64(y), size[1], n_m)
        row = base + y * width
        if right - left < width:
            _blank(values, targets, row, row + left, n_m, n_all, channel, outside)
            _blank(values, targets, row + right, row + width, n_m, n_all, channel, outside)
        source = _U((z * n_y + y0) * n_x + x0 + np.int64(y) * n_x + np.int64(left))
        to = (row + left) * n_all + channel
        if n_m == n_all:
            for i in range((right - left) * n_m):
                values[to + i] = widen_one(image[source * n_m + i])
        else:
            for i in range(right - left):
                for m in range(n_m):
                    values[to + i * n_all + m] = widen_one(image[(source + i) * n_m + m])
        if targets.size:
            for i in range(right - left):
                targets[row + left + i] = label[source + i]


@numba.njit(cache=True, nogil=True, inline="always")
def _gather_plane(
    volumes: Any, ids: AnyArray, patch: Any, maps: Any, how: Any, planes: Any, out: Any, scratch: Any
) -> None:
    """Copy the first of two `planes` of `gather_planes` while the second is prefetched."""
    (n_channels, outside, slices_around, table), (plane, ahead), (values, targets, counts) = how, planes, out
    size, base = (patch[1], patch[2]), _U(plane) * _U(patch[1]) * _U(patch[2])
    channels = _U(n_channels), _U(n_channels * (2 * slices_around + 1))
    no_targets = targets[:0]
    for s in range(-slices_around, slices_around + 1):
        to_targets = targets if s == 0 else no_targets
        to_plane = values, to_targets, base, _U((s + slices_around) * n_channels)
        here = _locate(volumes, ids, patch, maps, plane, s)
        next_plane = _locate(volumes, ids, patch, maps, ahead, s)
        if here[5]:
            map_slice(here, next_plane, maps[2], size, channels, outside, to_plane, scratch)
        else:
            _copy_slice(here, next_plane, size, channels, outside, to_plane)
    n_voxels = _U(size[0]) * _U(size[1])
    if table.size:
        for i in range(base, base + n_voxels):
            targets[i] = table[targets[i]]
    _count(targets, base, n_voxels, counts)


@numba.njit(cache=True, nogil=True)
def gather_planes(
    volumes: tuple[AnyArray, AnyArray, AnyArray],
    ids: AnyArray,
    patch: tuple[int, int, int],
    maps: tuple[AnyArray, AnyArray, bool],
    how: tuple[int, int, int, AnyArray],
    progress: tuple[int, int],
    out: tuple[AnyArray, AnyArray, AnyArray],
) -> None:
    """Copy the planes of a batch of patches out of mapped volumes, and count their classes.

    Any number of threads may call this function for one batch: each thread takes the next planes until no
    plane is left. No thread waits for another: waiting in Python takes half the time of a batch. `wait_for`
    returns when all planes are done. Arguments are tuples, because numba has no dataclasses.

    Args:
        volumes: images and labels, (C,) uint64, the address of each case's first float16 (Z, Y, X, M) and
            byte (Z, Y, X); and shapes (C, 3) int64, (Z, Y, X) of each case. These are not checked: a wrong
            shape reads outside the memory of the volume.
        ids: (B,) int64, case << 32 | flat position of each patch's center.
        patch: (depth, height, width); a 2-D patch has the depth 1.
        maps: offsets (B, 3) int64 added to the centers; matrices (B, 3, 3) int64 in 2**-23; whether the
            patches are 2-D. The arrays are empty if no patch has a map.
        how: M; the target of voxels outside the volume, whose image is 0; n, the number of neighboring slices
            on each side of a 2-D patch; and uint8 (256,), the new value of each target, empty for no change.
        progress: address of two int64, 0 before the batch: planes taken and planes done, of B * depth; and
            the number of planes taken at a time.
        out: values, flat float32 (B * depth * height * width * (2 n + 1) * M,), and targets, uint8 (B * depth
            * height * width,), written; and counts (K + 1,) int64 of this thread, which are increased:
            targets of each class; all other targets in the last entry.
    """
    address, n_at_once = progress
    n_planes, width = ids.size * patch[0], patch[2]
    # of a row: the nearest labels, and positions and weights of the neighbors of each position
    scratch = np.empty(8 + width * 21, np.uint8)
    while True:
        first = add_shared(_U(address), np.int64(n_at_once))
        if first >= n_planes:
            return
        stop = min(first + n_at_once, n_planes)
        for plane in range(first, stop):
            planes = plane, min(plane + 1, stop - 1)
            _gather_plane(volumes, ids, patch, maps, how, planes, out, scratch)
        add_shared(_U(address) + _U(8), np.int64(stop - first))


@numba.njit(cache=True, nogil=True)
def wait_for(progress: int, n_planes: int, patience: int) -> bool:
    """Check, at most `patience` times, whether all planes of a batch are done: a few nanoseconds each,
    without giving up the core.
    """
    for _ in range(patience):  # noqa: SIM110, numba has no any()
        if add_shared(_U(progress) + _U(8), np.int64(0)) >= n_planes:
            return True
    return False
