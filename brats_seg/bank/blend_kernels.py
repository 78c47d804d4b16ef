"""Rows of patches at positions between voxels: linear interpolation of the image, nearest label; by numba."""

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from brats_seg.bank.float16 import CPU_WIDENS, as_pointer, prefetch, widen_one

_U = np.uint64  # unsigned indices: numba tests whether a signed index is negative; that took 3 times as long

FRACTION_BITS = 24
"""Positions between voxels are whole numbers of 2**-24 voxels: the same on every machine, in any order of
addition.
"""
ONE = 1 << FRACTION_BITS
HALF = ONE >> 1
_STEP = np.float32(1 / ONE)


def _load_two_voxels(builder: Any, address: Any) -> Any:
    """Eight float32 from the eight float16 of two neighboring voxels of 4 modalities."""
    halves = ir.VectorType(ir.HalfType(), 8)
    pointer = builder.inttoptr(address, halves.as_pointer())
    return builder.fpext(builder.load(pointer, align=2), ir.VectorType(ir.FloatType(), 8))


def _between(builder: Any, low: Any, high: Any, fraction: Any) -> Any:
    """Vector `low + fraction * (high - low)`."""
    n = low.type.count
    first = builder.insert_element(
        ir.Constant(low.type, ir.Undefined), fraction, ir.Constant(ir.IntType(32), 0)
    )
    everywhere = builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(ir.IntType(32), n), [0] * n))
    step = builder.fmul(everywhere, builder.fsub(high, low), flags=("contract",))
    return builder.fadd(low, step, flags=("contract",))


def _write_between_columns(builder: Any, both: Any, fraction: Any, to: Any) -> None:
    places = ir.VectorType(ir.IntType(32), 4)
    left, right = (
        builder.shuffle_vector(both, both, ir.Constant(places, [*range(n, n + 4)])) for n in (0, 4)
    )
    values = _between(builder, left, right, fraction)
    builder.store(values, builder.inttoptr(to, values.type.as_pointer()), align=4)


def _code_blend_4(typingctx: Any, source: Any, row: Any, y: Any, x: Any, to: Any) -> Any:
    """Write 4 modalities between 2 x 2 voxels; the addresses are those of the first voxel, of the next row,
    and of the result.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, row, y, x, to = args
        rows = [_load_two_voxels(builder, address) for address in (source, builder.add(source, row))]
        _write_between_columns(builder, _between(builder, rows[0], rows[1], y), x, to)
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, types.float32, types.float32, types.uint64), generate


def _code_blend_8(typingctx: Any, source: Any, plane: Any, row: Any, z: Any, y: Any, x: Any, to: Any) -> Any:
    """`_code_blend_4` between 2 x 2 x 2 voxels; the second four voxels are `plane` bytes further."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, plane, row, z, y, x, to = args
        below = builder.add(source, plane)
        starts = (source, below, builder.add(source, row), builder.add(below, row))
        rows = [_load_two_voxels(builder, address) for address in starts]
        between_planes = [_between(builder, rows[i], rows[i + 1], z) for i in (0, 2)]
        _write_between_columns(builder, _between(builder, between_planes[0], between_planes[1], y), x, to)
        return context.get_dummy_value()

    numbers = (types.float32, types.float32, types.float32)
    return types.void(types.uint64, types.uint64, types.uint64, *numbers, types.uint64), generate


_blend_4: Any = intrinsic(_code_blend_4)
_blend_8: Any = intrinsic(_code_blend_8)


@numba.njit(cache=True, nogil=True, inline="always")
def ask_for(ahead: Any, y: Any, width: Any, n_m: Any) -> None:
    """Prefetch row `y` of a plane; with a map only every eighth position, because the neighboring rows
    prefetch the positions between.
    """
    (image, label), shape, first, by_row, step, is_mapped = ahead
    z_at, y_at, x_at = first[0] + y * by_row[0], first[1] + y * by_row[1], first[2] + y * by_row[2]
    place = _U(
        max(
            ((z_at >> FRACTION_BITS) * shape[1] + (y_at >> FRACTION_BITS)) * shape[2]
            + (x_at >> FRACTION_BITS),
            0,
        )
    )
    if is_mapped:
        for x in range((y & 1) * 4, width, 8):
            row = ((z_at + x * step[0]) >> FRACTION_BITS) * shape[1] + ((y_at + x * step[1]) >> FRACTION_BITS)
            place = _U(row * shape[2] + ((x_at + x * step[2]) >> FRACTION_BITS))
            prefetch(image + place * n_m * _U(2))
            if x % 16 < 8:
                prefetch(label + place)
    else:
        for offset in range(_U(0), _U(width) * n_m * _U(2) + _U(63), _U(64)):
            prefetch(image + place * n_m * _U(2) + offset)
        for offset in range(_U(0), _U(width) + _U(63), _U(64)):
            prefetch(label + place + offset)


@numba.njit(cache=True, nogil=True, inline="always")
def _clip(first: Any, stop: Any, start: Any, step: Any, end: Any) -> Any:
    """The part of the range `first` to `stop` in which 0 <= start + step * x < end."""
    if step == 0:
        return (first, stop) if 0 <= start < end else (first, first)
    if step > 0:
        return max(first, -(start // step)), min(stop, -((start - end) // step))
    return max(first, (start - end) // -step + 1), min(stop, start // -step + 1)


@numba.njit(cache=True, nogil=True)
def _blend(image_address: Any, shape: Any, place: Any, is_flat: bool, n_m: Any, to_address: Any) -> None:
    """Write the modalities at a position between voxels; a voxel outside the volume counts as 0."""
    image = carray(as_pointer(image_address), (shape[0] * shape[1] * shape[2] * np.int64(n_m),), np.uint16)
    values = carray(as_pointer(to_address), (int(n_m),), np.float32)
    for m in range(n_m):
        values[m] = np.float32(0)
    z, y, x = place
    for d_z in range(1 if is_flat else 2):
        for d_y in range(2):
            for d_x in range(2):
                i, j, k = (z >> FRACTION_BITS) + d_z, (y >> FRACTION_BITS) + d_y, (x >> FRACTION_BITS) + d_x
                if 0 <= i < shape[0] and 0 <= j < shape[1] and 0 <= k < shape[2]:
                    weight = _weight(z, d_z) * _weight(y, d_y) * _weight(x, d_x)
                    source = _U((i * shape[1] + j) * shape[2] + k) * n_m
                    for m in range(n_m):
                        values[m] += weight * widen_one(image[source + m])


@numba.njit(cache=True, nogil=True, inline="always")
def _weight(place: Any, which: Any) -> Any:
    """Weight of the lower (0) or upper (1) of the two neighboring voxels of a position."""
    upper = np.float32(place & (ONE - 1)) * _STEP
    return upper if which else np.float32(1) - upper


@numba.njit(cache=True, nogil=True)
def _blend_row(
    volume: Any, shape: Any, line: Any, is_flat: bool, part: Any, channels: Any, outside: Any, to: Any
) -> None:
    """Write the voxels of a `part` of a row, whose nearest voxels lie in the volume. `line`: the position of
    the first voxel of the row, and the step from voxel to voxel.

    Volumes and results are passed as addresses: numba counts the references to an array argument, which takes
    as long as a short row. `volume`: image and label. `channels`: values to write, and values of a voxel.
    `to`: values and nearest labels of the whole row.
    """
    (n_m, n_all), (at, step) = channels, line
    label = carray(as_pointer(volume[1]), (shape[0] * shape[1] * shape[2],), np.uint8)
    nearest = carray(as_pointer(to[1]), (part[1],), np.uint8)
    for x in range(part[0], part[1]):
        z_at, y_at, x_at = at[0] + x * step[0], at[1] + x * step[1], at[2] + x * step[2]
        z_near, y_near, x_near = (
            (z_at + HALF) >> FRACTION_BITS,
            (y_at + HALF) >> FRACTION_BITS,
            (x_at + HALF) >> FRACTION_BITS,
        )
        found = label[_U((z_near * shape[1] + y_near) * shape[2] + x_near)]
        nearest[_U(x)] = found
        if found != outside:
            _blend(volume[0], shape, (z_at, y_at, x_at), is_flat, n_m, to[0] + _U(x) * n_all * _U(4))


@numba.njit(cache=True, nogil=True)
def _blend_row_of_4(
    volume: Any, shape: Any, line: Any, is_flat: bool, part: Any, n_all: Any, to: Any, scratch: Any
) -> None:
    """`_blend_row` for 4 modalities if all neighboring voxels lie in the volume; it does not read the labels.

    It makes several passes over the row: a processor computes several positions at once, but reads them one
    by one.
    """
    (n_y, n_x), (at, step) = (shape[1], shape[2]), line
    z, y, x = at[0] + part[0] * step[0], at[1] + part[0] * step[1], at[2] + part[0] * step[2]
    length = part[1] - part[0]
    n = _U(length)
    label = carray(as_pointer(volume[1]), (shape[0] * n_y * n_x,), np.uint8)
    nearest = carray(as_pointer(to[1] + _U(part[0])), (length,), np.uint8)
    low = carray(as_pointer(scratch), (length,), np.uint32)
    near = carray(as_pointer(scratch + n * _U(4)), (length,), np.uint32)
    f_z = carray(as_pointer(scratch + n * _U(8)), (length,), np.float32)
    f_y = carray(as_pointer(scratch + n * _U(12)), (length,), np.float32)
    f_x = carray(as_pointer(scratch + n * _U(16)), (length,), np.float32)
    row_bytes = _U(n_x) * _U(8)
    plane_bytes, voxel_bytes = _U(n_y) * row_bytes, n_all * _U(4)
    to_address = to[0] + _U(part[0]) * voxel_bytes
    for i in range(n):
        rest_y, rest_x = np.int32(y & (ONE - 1)), np.int32(x & (ONE - 1))
        place = np.uint32(
            np.uint32(np.uint32(y >> FRACTION_BITS) * np.uint32(n_x)) + np.uint32(x >> FRACTION_BITS)
        )
        low[i] = place
        near[i] = np.uint32(place + np.uint32(rest_y >= HALF) * np.uint32(n_x) + np.uint32(rest_x >= HALF))
        f_y[i], f_x[i] = np.float32(rest_y) * _STEP, np.float32(rest_x) * _STEP
        y += step[1]
        x += step[2]
    if is_flat:
        plane = _U((z >> FRACTION_BITS) * n_y * n_x)
        source = volume[0] + plane * _U(8)
        for i in range(n):
            nearest[i] = label[plane + _U(near[i])]
        for i in range(n):
            _blend_4(source + _U(low[i]) * _U(8), row_bytes, f_y[i], f_x[i], to_address + i * voxel_bytes)
    else:
        n_plane = np.uint32(n_y * n_x)
        for i in range(n):
            rest_z = np.int32(z & (ONE - 1))
            place = np.uint32(np.uint32(z >> FRACTION_BITS) * n_plane)
            low[i] = np.uint32(low[i] + place)
            near[i] = np.uint32(near[i] + place + np.uint32(rest_z >= HALF) * n_plane)
            f_z[i] = np.float32(rest_z) * _STEP
            z += step[0]
        for i in range(n):
            nearest[i] = label[_U(near[i])]
        for i in range(n):
            source = volume[0] + _U(low[i]) * _U(8)
            _blend_8(source, plane_bytes, row_bytes, f_z[i], f_y[i], f_x[i], to_address + i * voxel_bytes)


@numba.njit(cache=True, nogil=True)
def _copy_row(volume: Any, shape: Any, line: Any, part: Any, channels: Any, to: Any) -> None:
    """`_blend_row` if all positions are voxels, one next to the other: `step` is 1 or -1 along x."""
    (n_m, n_all), (at, step) = channels, line
    n = shape[0] * shape[1] * shape[2]
    image = carray(as_pointer(volume[0]), (n * np.int64(n_m),), np.uint16)
    label = carray(as_pointer(volume[1]), (n,), np.uint8)
    values = carray(as_pointer(to[0]), (part[1] * np.int64(n_all),), np.float32)
    nearest = carray(as_pointer(to[1]), (part[1],), np.uint8)
    source = ((at[0] >> FRACTION_BITS) * shape[1] + (at[1] >> FRACTION_BITS)) * shape[2] + (
        at[2] >> FRACTION_BITS
    )
    by = step[2] >> FRACTION_BITS
    for x in range(part[0], part[1]):
        nearest[_U(x)] = label[_U(source + by * x)]
    if n_m == _U(4):
        for x in range(part[0], part[1]):
            for m in range(_U(4)):
                values[_U(x) * n_all + m] = widen_one(image[_U(source + by * x) * _U(4) + m])
    else:
        for x in range(part[0], part[1]):
            for m in range(n_m):
                values[_U(x) * n_all + m] = widen_one(image[_U(source + by * x) * n_m + m])


@numba.njit(cache=True, nogil=True)
def map_slice(
    here: Any, ahead: Any, is_flat: bool, size: Any, channels: Any, outside: int, to_plane: Any, scratch: Any
) -> None:
    """Write a plane of positions between voxels. `here` and `ahead` come from `_locate`; `to_plane` is as in
    `_copy_slice`.
    """
    volume, shape, first, by_row, step, _ = here
    values, targets, base, channel = to_plane
    width, (n_m, n_all) = size[1], channels
    nearest, places = scratch[:width], _U(scratch.ctypes.data) + _U(-(-width // 8) * 8)
    to_nearest, to_values = _U(scratch.ctypes.data), _U(values.ctypes.data)
    is_of_4 = n_m == _U(4) and CPU_WIDENS
    ends = shape[0] << FRACTION_BITS, shape[1] << FRACTION_BITS, shape[2] << FRACTION_BITS
    last = ends[0] if is_flat else ends[0] - ONE, ends[1] - ONE, ends[2] - ONE
    is_straight = step[0] == 0 and step[1] == 0 and abs(step[2]) == ONE
    for y in range(size[0]):
        ask_for(ahead, y, width, n_m)
        at = first[0] + y * by_row[0], first[1] + y * by_row[1], first[2] + y * by_row[2]
        row = base + _U(y * width)
        start, stop, inner_start, inner_stop = 0, width, 0, width
        end = at[0] + (width - 1) * step[0], at[1] + (width - 1) * step[1], at[2] + (width - 1) * step[2]
        if not (_is_within(at, last) and _is_within(end, last)):
            # the part whose nearest voxels lie in the volume; inner: all voxels next to the position lie in
            # the volume
            start, stop = _clip_to(0, width, (at[0] + HALF, at[1] + HALF, at[2] + HALF), step, ends)
            inner_start, inner_stop = _clip_to(start, stop, at, step, last)
        if not is_of_4:
            inner_start = inner_stop = start
        is_copied = is_straight and (at[0] | at[1] | at[2]) & (ONE - 1) == 0
        to = to_values + (row * n_all + channel) * _U(4), to_nearest
        for x in range(start):
            nearest[_U(x)] = outside
        if is_copied:
            _copy_row(volume, shape, (at, step), (start, stop), channels, to)
        else:
            if start < inner_start:
                _blend_row(volume, shape, (at, step), is_flat, (start, inner_start), channels, outside, to)
            if inner_start < inner_stop:
                _blend_row_of_4(
                    volume, shape, (at, step), is_flat, (inner_start, inner_stop), n_all, to, places
                )
            if inner_stop < stop:
                _blend_row(volume, shape, (at, step), is_flat, (inner_stop, stop), channels, outside, to)
        for x in range(stop, width):
            nearest[_U(x)] = outside
        is_air = False
        for x in range(width):
            is_air |= nearest[_U(x)] == outside
        if is_air:  # air stays exactly 0
            for x in range(width):
                if nearest[_U(x)] == outside:
                    for m in range(n_m):
                        values[(row + _U(x)) * n_all + channel + m] = np.float32(0)
        if targets.size:
            for x in range(width):
                targets[row + _U(x)] = nearest[_U(x)]


@numba.njit(cache=True, nogil=True, inline="always")
def _is_within(at: Any, ends: Any) -> Any:
    return 0 <= at[0] < ends[0] and 0 <= at[1] < ends[1] and 0 <= at[2] < ends[2]


@numba.njit(cache=True, nogil=True)
def _clip_to(start: Any, stop: Any, at: Any, step: Any, ends: Any) -> Any:
    """The part of the range `start` to `stop` of a row inside a box; (start, start) if the part is empty."""
    first, last = start, stop
    for axis in range(3):
        first, last = _clip(first, last, at[axis], step[axis], ends[axis])
    return (first, last) if first < last else (start, start)
