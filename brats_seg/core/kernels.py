"""Loops over voxels, compiled by numba. The tests compare each loop with plain NumPy."""

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

AnyArray = NDArray[Any]


@numba.njit(cache=True, nogil=True)
def joint_counts(a: AnyArray, b: AnyArray, words_a: AnyArray, words_b: AnyArray, n_classes: int) -> AnyArray:
    """Count pairs of classes (n_classes, n_classes) of two byte arrays of one length, given also as 64-bit
    words.

    Pairs with a class of `n_classes` or more are not counted, so the counts then sum to less than the length.
    Eight voxels that are healthy in both arrays need one comparison. This holds for 98 % of a head, so the
    loop is as fast as reading the memory.
    """
    counts = np.zeros((n_classes, n_classes), np.int64)
    n_healthy = 0
    for w in range(words_a.size):
        if (words_a[w] | words_b[w]) == 0:
            n_healthy += 8
            continue
        for i in range(8 * w, 8 * w + 8):
            if a[i] < n_classes and b[i] < n_classes:
                counts[a[i], b[i]] += 1
    for i in range(8 * words_a.size, a.size):
        if a[i] < n_classes and b[i] < n_classes:
            counts[a[i], b[i]] += 1
    counts[0, 0] += n_healthy
    return counts


@numba.njit(cache=True, nogil=True)
def joint_box(a: AnyArray, b: AnyArray) -> AnyArray:
    """Bounds (z0, z1, y0, y1, x0, x1), upper ones exclusive, of the voxels that are not 0 in `a` or `b` (Z,
    Y, X) uint8; all bounds are 0 if there is no such voxel.
    """
    n_z, n_y, n_x = a.shape
    columns = np.zeros(n_x, np.uint8)
    z0, z1, y0, y1, x0, x1 = n_z, 0, n_y, 0, 0, n_x
    for z in range(n_z):
        for y in range(n_y):
            row_a, row_b = a[z, y], b[z, y]
            any_set = np.uint8(0)
            for x in range(n_x):
                any_set |= row_a[x] | row_b[x]
            if any_set != 0:
                z0, z1, y0, y1 = min(z0, z), z + 1, min(y0, y), max(y1, y + 1)
                for x in range(
                    n_x
                ):  # without a branch; searching for the two ends of each row took three times as long
                    columns[x] |= row_a[x] | row_b[x]
    if z1 == 0:
        return np.zeros(6, np.int64)
    while columns[x0] == 0:
        x0 += 1
    while columns[x1 - 1] == 0:
        x1 -= 1
    return np.array([z0, z1, y0, y1, x0, x1], np.int64)


@numba.njit(cache=True, nogil=True)
def surface_voxels(labels: AnyArray, inside: AnyArray) -> AnyArray:
    """Voxels of a region that share a face with a voxel outside the region. Voxels outside the array are
    outside the region.

    labels (Z, Y, X) uint8; inside (256,) bool, whether a label belongs to the region. No mask is created,
    because that alone took longer.
    """
    n_z, n_y, n_x = labels.shape
    surface = np.zeros(labels.shape, np.bool_)
    for z in range(n_z):
        for y in range(n_y):
            row, to = labels[z, y], surface[z, y]
            if z == 0 or z == n_z - 1 or y == 0 or y == n_y - 1:
                for x in range(n_x):
                    to[x] = inside[row[x]]
                continue
            below, above, front, back = labels[z - 1, y], labels[z + 1, y], labels[z, y - 1], labels[z, y + 1]
            for x in range(n_x):
                if inside[row[x]]:
                    to[x] = (
                        x == 0
                        or x == n_x - 1
                        or not (
                            inside[row[x - 1]] and inside[row[x + 1]] and inside[front[x]] and inside[back[x]]
                        )
                        or not (inside[below[x]] and inside[above[x]])
                    )
    return surface


@numba.njit(cache=True, nogil=True)
def steps_along_x(surface: AnyArray) -> AnyArray:
    """Distance in voxels from each voxel of (Z, Y, X) bool to the nearest set voxel in its row, int32; -1 in
    a row without a set voxel.
    """
    n_z, n_y, n_x = surface.shape
    steps = np.empty(surface.shape, np.int32)
    for z in range(n_z):
        for y in range(n_y):
            row, to = surface[z, y], steps[z, y]
            last = -1
            for x in range(n_x):
                if row[x]:
                    for i in range(0 if last < 0 else (last + x + 1) // 2, x):
                        to[i] = x - i
                    last = x
                to[x] = x - last if last >= 0 else -1
    return steps


@numba.njit(cache=True, nogil=True)
def nearest_in_rows(points: AnyArray, steps: AnyArray, spacing: AnyArray, reach: float) -> AnyArray:
    """Distance from each point (Z, Y, X) bool, in order, to the nearest set voxel, from `steps`
    (`steps_along_x`); inf for a distance of `reach` or more.

    spacing (3,) float64 along (Z, Y, X); the distance and `reach` are in its unit. Rows are searched from the
    row of the point outward, until a row is farther away than the nearest voxel found. For a distance of d
    voxels these are about 3 d^2 rows, with one number read in each.
    """
    n_z, n_y, _ = points.shape
    distances = np.full(points.sum(), np.inf)
    n = 0
    for z in range(n_z):
        for y in range(n_y):
            for x in range(points.shape[2]):
                if not points[z, y, x]:
                    continue
                best = reach * reach
                for dz in range(n_z):
                    off_z = (dz * spacing[0]) ** 2
                    if off_z >= best:
                        break
                    for dy in range(n_y):
                        off = off_z + (dy * spacing[1]) ** 2
                        if off >= best:
                            break
                        for to_z in (z - dz, z + dz):
                            if to_z < 0 or to_z >= n_z:
                                continue
                            for to_y in (y - dy, y + dy):
                                if to_y < 0 or to_y >= n_y or steps[to_z, to_y, x] < 0:
                                    continue
                                best = min(best, off + (steps[to_z, to_y, x] * spacing[2]) ** 2)
                if best < reach * reach:
                    distances[n] = np.sqrt(best)
                n += 1
    return distances


@numba.njit(cache=True, nogil=True)
def largest_class(logits: AnyArray, inside: AnyArray, shift: AnyArray, out: AnyArray) -> bool:
    """Write the class of the largest shifted logit of every voxel inside, and 0 outside. Return False if a
    logit is NaN.

    logits (n, Y', X', K) float32 with Y' >= Y, X' >= X; inside (n, Y, X) bool; shift (K,) float32; out (n, Y,
    X) uint8. If logits are equal, the first class is used. torch.argmax over five interleaved classes takes
    80 ns per voxel, which is a third of the time of the network.
    """
    n, n_y, n_x = out.shape
    n_classes = shift.size
    sound = True
    for i in range(n):
        for y in range(n_y):
            row, within, to = logits[i, y], inside[i, y], out[i, y]
            for x in range(n_x):
                best, winner = row[x, 0] + shift[0], 0
                for k in range(1, n_classes):
                    value = row[x, k] + shift[k]
                    sound &= value == value
                    if value > best:
                        best, winner = value, k
                sound &= best == best
                to[x] = winner if within[x] else 0
    return sound


@numba.njit(cache=True, nogil=True)
def mark_nonzero(values: AnyArray, marks: AnyArray) -> None:
    """Set to 1 the bytes of `marks` (n,) where `values` (n,) is not 0."""
    for i in range(values.size):
        marks[i] |= np.uint8(values[i] != 0)


@numba.njit(cache=True, nogil=True)
def histogram16(values: AnyArray) -> AnyArray:
    """How often each of the 65,536 values occurs in `values` (n,) uint16.

    Even and odd positions are counted separately. Neighbor values are often equal, and two additions to the
    same number in a row are slow.
    """
    counts = np.zeros((2, 65536), np.int64)
    for i in range(0, values.size - 1, 2):
        counts[0, values[i]] += 1
        counts[1, values[i + 1]] += 1
    if values.size % 2:
        counts[0, values[-1]] += 1
    return counts[0] + counts[1]


@numba.njit(cache=True, nogil=True)
def look_up16(values: AnyArray, table: AnyArray, marks: AnyArray, image: AnyArray, channel: int) -> None:
    """Write `table[values]` (n,) uint16 into one channel of `image` (n, M) uint16, and 0 where `marks` is 0
    (it is 0 or 1).
    """
    for i in range(values.size):
        image[i, channel] = table[values[i]] * np.uint16(marks[i])


@numba.njit(cache=True, nogil=True)
def mark_outside(tissue: AnyArray, marks: AnyArray, outside: int) -> int:
    """Set the healthy voxels (0) of `tissue` (n,) uint8 to `outside` where `marks` (n,) is 0. Voxels of other
    classes stay; return their number.
    """
    n_others = 0
    for i in range(tissue.size):
        if marks[i] == 0:
            if tissue[i] == 0:
                tissue[i] = outside
            else:
                n_others += 1
    return n_others


@numba.njit(cache=True, nogil=True)
def group_positions(labels: AnyArray, n_classes: int) -> tuple[AnyArray, AnyArray]:
    """Count the classes of `labels` (n,) uint8, (n_classes,) int64, and list the positions (uint32) class by
    class, in order.

    A label of `n_classes` or more belongs to no class.
    """
    counts = np.zeros(256, np.int64)
    for i in range(labels.size):
        counts[labels[i]] += 1
    places = np.cumsum(counts) - counts
    positions = np.empty(counts[:n_classes].sum(), np.uint32)
    for i in range(labels.size):
        k = labels[i]
        if k < n_classes:
            positions[places[k]] = i
            places[k] += 1
    return counts[:n_classes].copy(), positions
