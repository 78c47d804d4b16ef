"""The gather of patches as one loop, compiled by numba, and the widening of float16 it rests on."""

import platform
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

AnyArray = NDArray[Any]
_U = np.uint64  # unsigned places: numba checks a signed one for "from the end", which cost 3 times the gather
_F16_TO_F32 = np.float32(2.0**112)  # what the exponent of a float16 lacks when its bits stand in a float32
_QUIET_NAN = np.uint32(0x7FC00000)


def _code_as_pointer(typingctx: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.uint64), generate


_as_pointer: Any = intrinsic(_code_as_pointer)


def _code_prefetch(typingctx: Any, address: Any) -> Any:
    """Ask for the cache line at an address, which need not be valid. Reading a plane ahead made the gather
    1.2 times faster.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        i32 = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, i32, i32, i32])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        to_read, into_every_cache, data = (ir.Constant(i32, n) for n in (0, 3, 1))
        builder.call(
            prefetch, [builder.inttoptr(args[0], cgutils.voidptr_t), to_read, into_every_cache, data]
        )
        return context.get_dummy_value()

    return types.void(types.uint64), generate


_prefetch: Any = intrinsic(_code_prefetch)


def _code_add_shared(typingctx: Any, address: Any, amount: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", place, args[1], "seq_cst")

    return types.int64(types.uint64, types.int64), generate


_add_shared: Any = intrinsic(_code_add_shared)
"""Add to the int64 at an address that threads share, and give what was there before."""


def _code_widen(typingctx: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


@numba.njit(cache=True, nogil=True, inline="always")
def _widen_by_bits(bits: Any) -> Any:
    wide = np.uint32(bits)
    magnitude = wide & np.uint32(0x7FFF)
    sign = (wide & np.uint32(0x8000)) << np.uint32(16)
    moved = magnitude << np.uint32(13)
    if magnitude >= np.uint32(0x7C00):
        special = _QUIET_NAN if magnitude > np.uint32(0x7C00) else np.uint32(0x7F800000)
        return np.uint32(special | moved | sign).view(np.float32)
    return np.float32(np.uint32(moved | sign).view(np.float32) * _F16_TO_F32)


_CPU_WIDENS = bool(get_host_cpu_features().get("f16c", False)) or platform.machine() in ("aarch64", "arm64")
_widen: Any = intrinsic(_code_widen) if _CPU_WIDENS else _widen_by_bits

FRACTION_BITS = 24
"""Positions between voxels are whole numbers of 2**-24 voxels: the same on every machine, in whatever order
they are added.
"""
_ONE = 1 << FRACTION_BITS
_HALF = _ONE >> 1
_STEP = np.float32(1 / _ONE)


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
    """Write 4 modalities between 2 x 2 voxels; the addresses are those of the first voxel, of a row below,
    and of the result.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, row, y, x, to = args
        rows = [_load_two_voxels(builder, address) for address in (source, builder.add(source, row))]
        _write_between_columns(builder, _between(builder, rows[0], rows[1], y), x, to)
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, types.float32, types.float32, types.uint64), generate


def _code_blend_8(typingctx: Any, source: Any, plane: Any, row: Any, z: Any, y: Any, x: Any, to: Any) -> Any:
    """`_code_blend_4` between 2 x 2 x 2 voxels, of which the second four are `plane` bytes further."""

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


@numba.njit(cache=True, nogil=True)
def widen(bits: AnyArray, values: AnyArray) -> None:
    """Write the float16 numbers of `bits` (n,) uint16 as float32 `values` (n,), exactly.

    Subnormal numbers and infinities are exact too; a NaN keeps its sign and payload and becomes quiet, as
    IEEE 754 converts.
    """
    for i in range(bits.size):
        values[i] = _widen(bits[i])


@numba.njit(cache=True, nogil=True)
def widen_by_bits(bits: AnyArray, values: AnyArray) -> None:
    """`widen` by integer arithmetic, for processors that cannot convert float16 (x86 before 2012): 2.1 times
    slower.
    """
    for i in range(bits.size):
        values[i] = _widen_by_bits(bits[i])


def widen_numpy(bits: AnyArray, values: AnyArray) -> None:
    """Twin of `widen`."""
    values[:] = bits.view(np.float16)
    wide = values.view(np.uint32)
    wide |= np.where(np.isnan(values), _QUIET_NAN, np.uint32(0))


@numba.njit(cache=True, nogil=True)
def _locate(
    images: AnyArray,
    labels: AnyArray,
    shapes: AnyArray,
    ids: AnyArray,
    patch: Any,
    maps: Any,
    plane: Any,
    slices_up: Any,
) -> Any:
    """Where a plane of the batch is read: plane p lies in patch p // depth.

    Addresses of the image and the label, their shape, the first position, the steps to the next row and
    column, in 2**-24 voxels, and whether the plane has a map. Twice the way to the middle of a patch is a
    whole number, and matrices are in 2**-23: no number is rounded.
    """
    offsets, matrices, is_flat = maps
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
        return volume, shape, first, (0, _ONE, 0), (0, 0, _ONE), False
    z_at = (z << FRACTION_BITS) - (1 - patch[0] % 2) * _HALF
    y_at = (y << FRACTION_BITS) - (1 - patch[1] % 2) * _HALF
    x_at = (x << FRACTION_BITS) - (1 - patch[2] % 2) * _HALF
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
            if matrices[number, i, j] != (_HALF if i == j else 0):
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
    """Set `n_m` of the `n_all` values of each voxel to 0, from `channel` on, and the targets, unless empty,
    to `outside`.
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
    """Add the classes of a run of targets to `counts`; what is no class goes to the last place.

    One pass over the run for each class: it stays in the nearest cache, and 64 comparisons are one
    instruction.
    """
    for start in range(_U(0), n, _U(32768)):  # 16-bit sums cannot run over
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
def _ask_for(ahead: Any, y: Any, width: Any, n_m: Any) -> None:
    """Prefetch row `y` of a plane; where it is mapped, at every eighth position, as the rows beside it ask
    for what lies between.
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
            _prefetch(image + place * n_m * _U(2))
            if x % 16 < 8:
                _prefetch(label + place)
    else:
        for offset in range(_U(0), _U(width) * n_m * _U(2) + _U(63), _U(64)):
            _prefetch(image + place * n_m * _U(2) + offset)
        for offset in range(_U(0), _U(width) + _U(63), _U(64)):
            _prefetch(label + place + offset)


@numba.njit(cache=True, nogil=True, inline="always")
def _copy_slice(
    image: AnyArray,
    label: AnyArray,
    shape: Any,
    first: Any,
    size: Any,
    n_channels: int,
    n_values: int,
    outside: int,
    base: Any,
    channel: Any,
    ahead: Any,
    values: AnyArray,
    targets: AnyArray,
) -> None:
    """Copy a plane that starts at the voxel `first` (z, y, x); `targets` empty to leave them out."""
    n_z, n_y, n_x = shape
    z, y0, x0 = first
    n_m, n_all, height, width = _U(n_channels), _U(n_values), _U(size[0]), _U(size[1])
    left, right = _U(max(0, min(size[1], -x0))), _U(max(0, min(size[1], n_x - x0)))
    top, bottom = _U(max(0, min(size[0], -y0))), _U(max(0, min(size[0], n_y - y0)))
    if z < 0 or z >= n_z or right <= left:
        top = bottom = _U(0)
    _blank(values, targets, base, base + top * width, n_m, n_all, channel, outside)
    _blank(values, targets, base + bottom * width, base + height * width, n_m, n_all, channel, outside)
    for y in range(top, bottom):
        _ask_for(ahead, np.int64(y), size[1], n_m)
        row = base + y * width
        if right - left < width:
            _blank(values, targets, row, row + left, n_m, n_all, channel, outside)
            _blank(values, targets, row + right, row + width, n_m, n_all, channel, outside)
        source = _U((z * n_y + y0) * n_x + x0 + np.int64(y) * n_x + np.int64(left))
        to = (row + left) * n_all + channel
        if n_m == n_all:
            for i in range((right - left) * n_m):
                values[to + i] = _widen(image[source * n_m + i])
        else:
            for i in range(right - left):
                for m in range(n_m):
                    values[to + i * n_all + m] = _widen(image[(source + i) * n_m + m])
        if targets.size:
            for i in range(right - left):
                targets[row + left + i] = label[source + i]


@numba.njit(cache=True, nogil=True, inline="always")
def _clip(first: Any, stop: Any, start: Any, step: Any, end: Any) -> Any:
    """The part of the range `first` to `stop` whose numbers x fulfil 0 <= start + step * x < end."""
    if step == 0:
        return (first, stop) if 0 <= start < end else (first, first)
    if step > 0:
        return max(first, -(start // step)), min(stop, -((start - end) // step))
    return max(first, (start - end) // -step + 1), min(stop, start // -step + 1)


@numba.njit(cache=True, nogil=True)
def _blend(image_address: Any, shape: Any, place: Any, is_flat: bool, n_m: Any, to_address: Any) -> None:
    """Write the modalities at a position between voxels; a voxel beyond the volume counts as 0."""
    image = carray(_as_pointer(image_address), (shape[0] * shape[1] * shape[2] * np.int64(n_m),), np.uint16)
    values = carray(_as_pointer(to_address), (int(n_m),), np.float32)
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
                        values[m] += weight * _widen(image[source + m])


@numba.njit(cache=True, nogil=True, inline="always")
def _weight(place: Any, which: Any) -> Any:
    """Share of the lower (0) or upper (1) of the two voxels beside a position."""
    upper = np.float32(place & (_ONE - 1)) * _STEP
    return upper if which else np.float32(1) - upper


@numba.njit(cache=True, nogil=True)
def _blend_row(
    volume: Any,
    shape: Any,
    at: Any,
    step: Any,
    is_flat: bool,
    part: Any,
    channels: Any,
    outside: Any,
    to: Any,
) -> None:
    """Write the voxels of a `part` of a row, whose nearest voxels lie in the volume; `at` is the position of
    the row's first voxel.

    Volumes and results are addresses: numba counts the owners of an array argument, which costs as much as a
    short row. `volume`: image and label. `channels`: values to write, and values of a voxel. `to`: values and
    nearest labels of the whole row.
    """
    n_m, n_all = channels
    label = carray(_as_pointer(volume[1]), (shape[0] * shape[1] * shape[2],), np.uint8)
    nearest = carray(_as_pointer(to[1]), (part[1],), np.uint8)
    for x in range(part[0], part[1]):
        z_at, y_at, x_at = at[0] + x * step[0], at[1] + x * step[1], at[2] + x * step[2]
        z_near, y_near, x_near = (
            (z_at + _HALF) >> FRACTION_BITS,
            (y_at + _HALF) >> FRACTION_BITS,
            (x_at + _HALF) >> FRACTION_BITS,
        )
        found = label[_U((z_near * shape[1] + y_near) * shape[2] + x_near)]
        nearest[_U(x)] = found
        if found != outside:
            _blend(volume[0], shape, (z_at, y_at, x_at), is_flat, n_m, to[0] + _U(x) * n_all * _U(4))


@numba.njit(cache=True, nogil=True)
def _blend_row_of_4(
    volume: Any, shape: Any, at: Any, step: Any, is_flat: bool, part: Any, n_all: Any, to: Any, scratch: Any
) -> None:
    """`_blend_row` for 4 modalities where all voxels beside the positions lie in the volume; it does not look
    at the labels.

    In passes over the row: processors do the arithmetic of several positions at once, but not the reading.
    """
    n_y, n_x = shape[1], shape[2]
    z, y, x = at[0] + part[0] * step[0], at[1] + part[0] * step[1], at[2] + part[0] * step[2]
    length = part[1] - part[0]
    n = _U(length)
    label = carray(_as_pointer(volume[1]), (shape[0] * n_y * n_x,), np.uint8)
    nearest = carray(_as_pointer(to[1] + _U(part[0])), (length,), np.uint8)
    low = carray(_as_pointer(scratch), (length,), np.uint32)
    near = carray(_as_pointer(scratch + n * _U(4)), (length,), np.uint32)
    f_z = carray(_as_pointer(scratch + n * _U(8)), (length,), np.float32)
    f_y = carray(_as_pointer(scratch + n * _U(12)), (length,), np.float32)
    f_x = carray(_as_pointer(scratch + n * _U(16)), (length,), np.float32)
    row_bytes = _U(n_x) * _U(8)
    plane_bytes, voxel_bytes = _U(n_y) * row_bytes, n_all * _U(4)
    to_address = to[0] + _U(part[0]) * voxel_bytes
    for i in range(n):
        rest_y, rest_x = np.int32(y & (_ONE - 1)), np.int32(x & (_ONE - 1))
        place = np.uint32(
            np.uint32(np.uint32(y >> FRACTION_BITS) * np.uint32(n_x)) + np.uint32(x >> FRACTION_BITS)
        )
        low[i] = place
        near[i] = np.uint32(place + np.uint32(rest_y >= _HALF) * np.uint32(n_x) + np.uint32(rest_x >= _HALF))
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
            rest_z = np.int32(z & (_ONE - 1))
            place = np.uint32(np.uint32(z >> FRACTION_BITS) * n_plane)
            low[i] = np.uint32(low[i] + place)
            near[i] = np.uint32(near[i] + place + np.uint32(rest_z >= _HALF) * n_plane)
            f_z[i] = np.float32(rest_z) * _STEP
            z += step[0]
        for i in range(n):
            nearest[i] = label[_U(near[i])]
        for i in range(n):
            source = volume[0] + _U(low[i]) * _U(8)
            _blend_8(source, plane_bytes, row_bytes, f_z[i], f_y[i], f_x[i], to_address + i * voxel_bytes)


@numba.njit(cache=True, nogil=True)
def _copy_row(volume: Any, shape: Any, at: Any, step: Any, part: Any, channels: Any, to: Any) -> None:
    """`_blend_row` where all positions are those of voxels, side by side: `step` is 1 or -1 along x."""
    n_m, n_all = channels
    n = shape[0] * shape[1] * shape[2]
    image = carray(_as_pointer(volume[0]), (n * np.int64(n_m),), np.uint16)
    label = carray(_as_pointer(volume[1]), (n,), np.uint8)
    values = carray(_as_pointer(to[0]), (part[1] * np.int64(n_all),), np.float32)
    nearest = carray(_as_pointer(to[1]), (part[1],), np.uint8)
    source = ((at[0] >> FRACTION_BITS) * shape[1] + (at[1] >> FRACTION_BITS)) * shape[2] + (
        at[2] >> FRACTION_BITS
    )
    by = step[2] >> FRACTION_BITS
    for x in range(part[0], part[1]):
        nearest[_U(x)] = label[_U(source + by * x)]
    if n_m == _U(4):
        for x in range(part[0], part[1]):
            for m in range(_U(4)):
                values[_U(x) * n_all + m] = _widen(image[_U(source + by * x) * _U(4) + m])
    else:
        for x in range(part[0], part[1]):
            for m in range(n_m):
                values[_U(x) * n_all + m] = _widen(image[_U(source + by * x) * n_m + m])


@numba.njit(cache=True, nogil=True)
def _map_slice(
    volume: Any,
    shape: Any,
    first: Any,
    by_row: Any,
    step: Any,
    is_flat: bool,
    size: Any,
    channels: Any,
    outside: int,
    base: Any,
    channel: Any,
    ahead: Any,
    values: AnyArray,
    targets: AnyArray,
    scratch: AnyArray,
) -> None:
    """Write a plane of positions between voxels: `first` is the first, `by_row` and `step` lead to the next
    row and column.
    """
    width, (n_m, n_all) = size[1], channels
    nearest, places = scratch[:width], _U(scratch.ctypes.data) + _U(-(-width // 8) * 8)
    to_nearest, to_values = _U(scratch.ctypes.data), _U(values.ctypes.data)
    is_of_4 = n_m == _U(4) and _CPU_WIDENS
    ends = shape[0] << FRACTION_BITS, shape[1] << FRACTION_BITS, shape[2] << FRACTION_BITS
    last = ends[0] if is_flat else ends[0] - _ONE, ends[1] - _ONE, ends[2] - _ONE
    is_straight = step[0] == 0 and step[1] == 0 and abs(step[2]) == _ONE
    for y in range(size[0]):
        _ask_for(ahead, y, width, n_m)
        at = first[0] + y * by_row[0], first[1] + y * by_row[1], first[2] + y * by_row[2]
        row = base + _U(y * width)
        start, stop, inner_start, inner_stop = 0, width, 0, width
        end = at[0] + (width - 1) * step[0], at[1] + (width - 1) * step[1], at[2] + (width - 1) * step[2]
        if not (_is_within(at, last) and _is_within(end, last)):
            # where the nearest voxel lies in the volume, and within it where all voxels beside the position
            # do
            start, stop = _clip_to(0, width, (at[0] + _HALF, at[1] + _HALF, at[2] + _HALF), step, ends)
            inner_start, inner_stop = _clip_to(start, stop, at, step, last)
        if not is_of_4:
            inner_start = inner_stop = start
        is_copied = is_straight and (at[0] | at[1] | at[2]) & (_ONE - 1) == 0
        to = to_values + (row * n_all + channel) * _U(4), to_nearest
        for x in range(start):
            nearest[_U(x)] = outside
        if is_copied:
            _copy_row(volume, shape, at, step, (start, stop), channels, to)
        else:
            if start < inner_start:
                _blend_row(volume, shape, at, step, is_flat, (start, inner_start), channels, outside, to)
            if inner_start < inner_stop:
                _blend_row_of_4(
                    volume, shape, at, step, is_flat, (inner_start, inner_stop), n_all, to, places
                )
            if inner_stop < stop:
                _blend_row(volume, shape, at, step, is_flat, (inner_stop, stop), channels, outside, to)
        for x in range(stop, width):
            nearest[_U(x)] = outside
        is_air = False
        for x in range(width):
            is_air |= nearest[_U(x)] == outside
        if is_air:  # which stays exactly 0
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
    """The part of the range `start` to `stop` of a row that lies in a box; an empty part is (start,
    start).
    """
    first, last = start, stop
    for axis in range(3):
        first, last = _clip(first, last, at[axis], step[axis], ends[axis])
    return (first, last) if first < last else (start, start)


@numba.njit(cache=True, nogil=True, inline="always")
def _gather_plane(
    images: AnyArray,
    labels: AnyArray,
    shapes: AnyArray,
    ids: AnyArray,
    patch: tuple[int, int, int],
    n_channels: int,
    outside: int,
    table: AnyArray,
    maps: Any,
    slices_around: int,
    plane: int,
    ahead: int,
    values: AnyArray,
    targets: AnyArray,
    counts: AnyArray,
    scratch: Any,
) -> None:
    """One plane of `gather_planes`; the plane `ahead` is asked for meanwhile."""
    size, base, n_values = (
        (patch[1], patch[2]),
        _U(plane) * _U(patch[1]) * _U(patch[2]),
        n_channels * (2 * slices_around + 1),
    )
    no_targets = targets[:0]
    for s in range(-slices_around, slices_around + 1):
        to_targets = targets if s == 0 else no_targets
        channel = _U((s + slices_around) * n_channels)
        volume, shape, first, by_row, step, is_mapped = _locate(
            images, labels, shapes, ids, patch, maps, plane, s
        )
        next_plane = _locate(images, labels, shapes, ids, patch, maps, ahead, s)
        if is_mapped:
            _map_slice(
                volume, shape, first, by_row, step, maps[2], size, (_U(n_channels), _U(n_values)), outside,
                base, channel, next_plane, values, to_targets, scratch,
            )  # fmt: skip
        else:
            image = carray(_as_pointer(volume[0]), (shape[0] * shape[1] * shape[2] * n_channels,), np.uint16)
            label = carray(_as_pointer(volume[1]), (shape[0] * shape[1] * shape[2],), np.uint8)
            voxel = first[0] >> FRACTION_BITS, first[1] >> FRACTION_BITS, first[2] >> FRACTION_BITS
            _copy_slice(
                image,
                label,
                shape,
                voxel,
                size,
                n_channels,
                n_values,
                outside,
                base,
                channel,
                next_plane,
                values,
                to_targets,
            )
    n_voxels = _U(size[0]) * _U(size[1])
    if table.size:
        for i in range(base, base + n_voxels):
            targets[i] = table[targets[i]]
    _count(targets, base, n_voxels, counts)


@numba.njit(cache=True, nogil=True)
def gather_planes(
    images: AnyArray,
    labels: AnyArray,
    shapes: AnyArray,
    ids: AnyArray,
    patch: tuple[int, int, int],
    n_channels: int,
    outside: int,
    table: AnyArray,
    maps: tuple[AnyArray, AnyArray, bool],
    slices_around: int,
    progress: int,
    n_at_once: int,
    values: AnyArray,
    targets: AnyArray,
    counts: AnyArray,
) -> None:
    """Copy the planes of a batch of patches out of mapped volumes, and count their classes.

    Any number of threads may call this for one batch: each takes the next planes until none are left. None
    waits for another, which costs as much as half a batch where Python does it; `wait_for` tells when all are
    done.

    Args:
        images, labels: (C,) uint64, the address of each case's first float16 (Z, Y, X, M) and byte (Z, Y, X).
        shapes: (C, 3) int64, (Z, Y, X) of each case. Nothing here is checked: a wrong one reads where it must
            not.
        ids: (B,) int64, case << 32 | flat position of each patch's center.
        patch: (depth, height, width); a 2-D patch has the depth 1.
        n_channels, outside: M; the target where a patch hangs over its volume, whose image is 0 there.
        table: uint8, what each of the 256 targets becomes, `outside` too; empty to leave them as they are.
        maps: offsets (B, 3) int64 added to the centers; matrices (B, 3, 3) int64 in 2**-23; whether the
            patches are 2-D. The arrays are empty where no patch has a map.
        slices_around: n, the slices on either side of a 2-D patch that are gathered too.
        progress: address of two int64, 0 before the batch: planes taken and planes done, of B * depth.
        n_at_once: planes taken at a time.
        values, targets: flat float32 (B * depth * height * width * (2 n + 1) * M,) and uint8 (B * depth *
            height * width,), written.
        counts: (K + 1,) int64 of this thread, added to: targets of each class, and in the last place all
            others.
    """
    n_planes, width = ids.size * patch[0], patch[2]
    scratch = np.empty(
        8 + width * 21, np.uint8
    )  # of a row: the nearest labels, and places and shares beside each position
    while True:
        first = _add_shared(_U(progress), np.int64(n_at_once))
        if first >= n_planes:
            return
        stop = min(first + n_at_once, n_planes)
        for plane in range(first, stop):
            ahead = min(plane + 1, stop - 1)
            _gather_plane(
                images,
                labels,
                shapes,
                ids,
                patch,
                n_channels,
                outside,
                table,
                maps,
                slices_around,
                plane,
                ahead,
                values,
                targets,
                counts,
                scratch,
            )
        _add_shared(_U(progress) + _U(8), np.int64(stop - first))


@numba.njit(cache=True, nogil=True)
def wait_for(progress: int, n_planes: int, patience: int) -> bool:
    """Look, at most `patience` times, whether all planes of a batch are done: a few nanoseconds each, without
    letting go of the core.
    """
    for _ in range(patience):  # noqa: SIM110, numba has no any()
        if _add_shared(_U(progress) + _U(8), np.int64(0)) >= n_planes:
            return True
    return False
