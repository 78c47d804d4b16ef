"""Loops over voxels by numba, each with a NumPy twin of equal result."""

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

AnyArray = NDArray[Any]


@numba.njit(cache=True, nogil=True)
def joint_counts(a: AnyArray, b: AnyArray, words_a: AnyArray, words_b: AnyArray, n_classes: int) -> AnyArray:
    """Count pairs of classes (n_classes, n_classes) of two byte arrays of one length, given also as 64-bit words.

    The entry [0, 0] of a pair with a class of `n_classes` or more is not counted: the counts then sum to less than the length.
    Eight voxels that are healthy in both are one comparison: 98 % of a head is that, so this runs at the speed of reading.
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


def joint_counts_numpy(a: AnyArray, b: AnyArray, words_a: AnyArray, words_b: AnyArray, n_classes: int) -> AnyArray:
    """Twin of `joint_counts`."""
    valid = (a < n_classes) & (b < n_classes)
    pairs = a[valid].astype(np.int64) * n_classes + b[valid]
    return np.bincount(pairs, minlength=n_classes * n_classes).reshape(n_classes, n_classes)


@numba.njit(cache=True, nogil=True)
def joint_box(a: AnyArray, b: AnyArray) -> AnyArray:
    """Bounds (z0, z1, y0, y1, x0, x1), upper ones exclusive, of the voxels not 0 in `a` or `b` (Z, Y, X); all 0 where none is."""
    n_z, n_y, n_x = a.shape
    z0, z1, y0, y1, x0, x1 = n_z, 0, n_y, 0, n_x, 0
    for z in range(n_z):
        for y in range(n_y):
            row_a, row_b = a[z, y], b[z, y]
            any_set = np.uint8(0)
            for x in range(n_x):
                any_set |= row_a[x] | row_b[x]
            if any_set == 0:
                continue
            z0, z1, y0, y1 = min(z0, z), z + 1, min(y0, y), max(y1, y + 1)
            first = 0
            while row_a[first] | row_b[first] == 0:
                first += 1
            last = n_x - 1
            while row_a[last] | row_b[last] == 0:
                last -= 1
            x0, x1 = min(x0, first), max(x1, last + 1)
    if z1 == 0:
        return np.zeros(6, np.int64)
    return np.array([z0, z1, y0, y1, x0, x1], np.int64)


def joint_box_numpy(a: AnyArray, b: AnyArray) -> AnyArray:
    """Twin of `joint_box`."""
    either = (a | b) != 0
    bounds: list[int] = []
    for others in ((1, 2), (0, 2), (0, 1)):
        hit = np.flatnonzero(either.any(axis=others))
        bounds += [int(hit[0]), int(hit[-1]) + 1] if hit.size else [0, 0]
    return np.array(bounds, np.int64)


@numba.njit(cache=True, nogil=True)
def surface_voxels(mask: AnyArray) -> AnyArray:
    """Voxels of a mask (Z, Y, X) with a face on a voxel that is not in it; beyond the array nothing is."""
    n_z, n_y, n_x = mask.shape
    surface = np.zeros(mask.shape, np.bool_)
    for z in range(n_z):
        for y in range(n_y):
            row = mask[z, y]
            edge = z == 0 or z == n_z - 1 or y == 0 or y == n_y - 1
            for x in range(n_x):
                if row[x]:
                    surface[z, y, x] = (
                        edge
                        or x == 0
                        or x == n_x - 1
                        or not (row[x - 1] and row[x + 1] and mask[z, y - 1, x] and mask[z, y + 1, x])
                        or not (mask[z - 1, y, x] and mask[z + 1, y, x])
                    )
    return surface


def surface_voxels_numpy(mask: AnyArray) -> AnyArray:
    """Twin of `surface_voxels`."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1, 1:-1] & padded[2:, 1:-1, 1:-1] & padded[1:-1, :-2, 1:-1] & padded[1:-1, 2:, 1:-1]
    return mask & ~(inner & padded[1:-1, 1:-1, :-2] & padded[1:-1, 1:-1, 2:])


@numba.njit(cache=True, nogil=True)
def largest_class(logits: AnyArray, inside: AnyArray, shift: AnyArray, out: AnyArray) -> bool:
    """Write the class of the largest shifted logit of every voxel inside, and 0 outside; False where a logit is NaN.

    logits (n, Y', X', K) float32 with Y' >= Y, X' >= X; inside (n, Y, X) bool; shift (K,) float32; out (n, Y, X) uint8. Of equal
    logits the first wins. torch.argmax over five interleaved classes takes 80 ns a voxel, a third of the network's own time.
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


def largest_class_numpy(logits: AnyArray, inside: AnyArray, shift: AnyArray, out: AnyArray) -> bool:
    """Twin of `largest_class`."""
    _, n_y, n_x = out.shape
    shifted = logits[:, :n_y, :n_x] + shift
    out[...] = np.where(inside, shifted.argmax(axis=-1), 0)
    return not np.isnan(shifted).any()


@numba.njit(cache=True, nogil=True)
def mark_nonzero(values: AnyArray, marks: AnyArray) -> None:
    """Set to 1 the bytes of `marks` (n,) where `values` (n,) is not 0."""
    for i in range(values.size):
        marks[i] |= np.uint8(values[i] != 0)


def mark_nonzero_numpy(values: AnyArray, marks: AnyArray) -> None:
    """Twin of `mark_nonzero`."""
    marks |= (values != 0).astype(np.uint8)


@numba.njit(cache=True, nogil=True)
def histogram16(values: AnyArray) -> AnyArray:
    """How often each of the 65,536 values occurs in `values` (n,) uint16.

    Even and odd places are counted apart: neighbors are alike, and adding to one number twice in a row has to wait.
    """
    counts = np.zeros((2, 65536), np.int64)
    for i in range(0, values.size - 1, 2):
        counts[0, values[i]] += 1
        counts[1, values[i + 1]] += 1
    if values.size % 2:
        counts[0, values[-1]] += 1
    return counts[0] + counts[1]


def histogram16_numpy(values: AnyArray) -> AnyArray:
    """Twin of `histogram16`."""
    return np.bincount(values, minlength=65536)


@numba.njit(cache=True, nogil=True)
def look_up16(values: AnyArray, table: AnyArray, marks: AnyArray, image: AnyArray, channel: int) -> None:
    """Write `table[values]` (n,) uint16 into one channel of `image` (n, M) uint16, and 0 where `marks` is 0 (it is 0 or 1)."""
    for i in range(values.size):
        image[i, channel] = table[values[i]] * np.uint16(marks[i])


def look_up16_numpy(values: AnyArray, table: AnyArray, marks: AnyArray, image: AnyArray, channel: int) -> None:
    """Twin of `look_up16`."""
    image[:, channel] = table[values] * marks.astype(np.uint16)


@numba.njit(cache=True, nogil=True)
def group_positions(labels: AnyArray, n_classes: int) -> tuple[AnyArray, AnyArray]:
    """Count (n_classes,) int64 the classes of `labels` (n,) uint8, and list their positions (uint32) class by class, in order.

    A label of `n_classes` or more is in no class.
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


def group_positions_numpy(labels: AnyArray, n_classes: int) -> tuple[AnyArray, AnyArray]:
    """Twin of `group_positions`."""
    groups = [np.flatnonzero(labels == k).astype(np.uint32) for k in range(n_classes)]
    return np.array([len(group) for group in groups], np.int64), np.concatenate(groups)
