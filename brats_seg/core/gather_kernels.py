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
    """Ask for the cache line at an address, which need not be valid. Reading a plane ahead made the gather 1.2 times faster."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        i32 = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, i32, i32, i32])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        to_read, into_every_cache, data = (ir.Constant(i32, n) for n in (0, 3, 1))
        builder.call(prefetch, [builder.inttoptr(args[0], cgutils.voidptr_t), to_read, into_every_cache, data])
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
"""Positions between voxels are whole numbers of 2**-24 voxels: the same on every machine, in whatever order they are added."""
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
    first = builder.insert_element(ir.Constant(low.type, ir.Undefined), fraction, ir.Constant(ir.IntType(32), 0))
    everywhere = builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(ir.IntType(32), n), [0] * n))
    flags = ("contract",)
    return builder.fadd(low, builder.fmul(everywhere, builder.fsub(high, low, flags), flags), flags)


def _write_between_columns(builder: Any, both: Any, fraction: Any, to: Any) -> None:
    places = ir.VectorType(ir.IntType(32), 4)
    left, right = (builder.shuffle_vector(both, both, ir.Constant(places, [*range(n, n + 4)])) for n in (0, 4))
    values = _between(builder, left, right, fraction)
    builder.store(values, builder.inttoptr(to, values.type.as_pointer()), align=4)


def _code_blend_4(typingctx: Any, source: Any, row: Any, y: Any, x: Any, to: Any) -> Any:
    """Write 4 modalities between 2 x 2 voxels; the addresses are those of the first voxel, of a row below, and of the result."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, row, y, x, to = args
        rows = [_load_two_voxels(builder, address) for address in (source, builder.add(source, row))]
        _write_between_columns(builder, _between(builder, *rows, y), x, to)
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
        _write_between_columns(builder, _between(builder, *between_planes, y), x, to)
        return context.get_dummy_value()

    numbers = (types.float32, types.float32, types.float32)
    return types.void(types.uint64, types.uint64, types.uint64, *numbers, types.uint64), generate


_blend_4: Any = intrinsic(_code_blend_4)
_blend_8: Any = intrinsic(_code_blend_8)


@numba.njit(cache=True, nogil=True)
def widen(bits: AnyArray, values: AnyArray) -> None:
    """Write the float16 numbers of `bits` (n,) uint16 as float32 `values` (n,), exactly.

    Subnormal numbers and infinities are exact too; a NaN keeps its sign and payload and becomes quiet, as IEEE 754 converts.
    """
    for i in range(bits.size):
        values[i] = _widen(bits[i])


@numba.njit(cache=True, nogil=True)
def widen_by_bits(bits: AnyArray, values: AnyArray) -> None:
    """`widen` by integer arithmetic, for processors that cannot convert float16 (x86 before 2012): 2.1 times slower."""
    for i in range(bits.size):
        values[i] = _widen_by_bits(bits[i])


def widen_numpy(bits: AnyArray, values: AnyArray) -> None:
    """Twin of `widen`."""
    values[:] = bits.view(np.float16)
    wide = values.view(np.uint32)
    wide |= np.where(np.isnan(values), _QUIET_NAN, np.uint32(0))


@numba.njit(cache=True, nogil=True, inline="always")
def _center(example: Any, shapes: AnyArray) -> Any:
    """Case, z, y and x of a voxel id."""
    case, position = example >> 32, example & 0xFFFFFFFF
    n_y, n_x = shapes[case, 1], shapes[case, 2]
    z = position // (n_y * n_x)
    y = position // n_x - z * n_y
    return case, z, y, position - (z * n_y + y) * n_x


@numba.njit(cache=True, nogil=True, inline="always")
def _plane(plane: Any, patch: Any, shapes: AnyArray, ids: AnyArray, offsets: AnyArray) -> Any:
    """Case, and first z, y and x, of a plane of the batch: plane p lies in patch p // depth."""
    number = plane // patch[0]
    case, z, y, x = _center(ids[number], shapes)
    if offsets.size:
        z, y, x = z + offsets[number, 0], y + offsets[number, 1], x + offsets[number, 2]
    return case, z - patch[0] // 2 + plane % patch[0], y - patch[1] // 2, x - patch[2] // 2


@numba.njit(cache=True, nogil=True, inline="always")
def _blank(values: AnyArray, targets: AnyArray, first: Any, stop: Any, n_m: Any, n_all: Any, channel: Any, outside: Any) -> None:
    """Set `n_m` of the `n_all` values of each voxel to 0, from `channel` on, and the targets, unless empty, to `outside`."""
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

    One pass over the run for each class: it stays in the nearest cache, and 64 comparisons are one instruction.
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


@numba.njit(cache=True, nogil=True)
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
def _blend(image: AnyArray, shape: Any, place: Any, is_flat: bool, n_m: Any, values: AnyArray, to: Any) -> None:
    """Write the modalities at a position between voxels; a voxel beyond the volume counts as 0."""
    for m in range(n_m):
        values[to + m] = np.float32(0)
    z, y, x = place
    for d_z in range(1 if is_flat else 2):
        for d_y in range(2):
            for d_x in range(2):
                i, j, k = (z >> FRACTION_BITS) + d_z, (y >> FRACTION_BITS) + d_y, (x >> FRACTION_BITS) + d_x
                if 0 <= i < shape[0] and 0 <= j < shape[1] and 0 <= k < shape[2]:
                    weight = _weight(z, d_z) * _weight(y, d_y) * _weight(x, d_x)
                    source = _U((i * shape[1] + j) * shape[2] + k) * n_m
                    for m in range(n_m):
                        values[to + m] += weight * _widen(image[source + m])


@numba.njit(cache=True, nogil=True, inline="always")
def _weight(place: Any, which: Any) -> Any:
    """Share of the lower (0) or upper (1) of the two voxels beside a position."""
    upper = np.float32(place & (_ONE - 1)) * _STEP
    return upper if which else np.float32(1) - upper


@numba.njit(cache=True, nogil=True)
def _map_slice(
    image: AnyArray,
    label: AnyArray,
    image_address: Any,
    shape: Any,
    first: Any,
    by_row: Any,
    by_column: Any,
    is_flat: bool,
    size: Any,
    n_channels: int,
    n_values: int,
    outside: int,
    base: Any,
    channel: Any,
    values: AnyArray,
    targets: AnyArray,
) -> None:
    """Write a plane of positions between voxels: `first` is the first, and `by_row` and `by_column` the steps, in 2**-24 voxels."""
    n_z, n_y, n_x = shape
    n_m, n_all, width = _U(n_channels), _U(n_values), size[1]
    row_bytes = _U(n_x) * _U(8)
    plane_bytes = _U(n_y) * row_bytes
    to_address = _U(values.ctypes.data)
    d_z, d_y, d_x = by_column
    end_z, end_y, end_x = n_z << FRACTION_BITS, n_y << FRACTION_BITS, n_x << FRACTION_BITS
    last_z = end_z if is_flat else end_z - _ONE
    n = width - 1
    for y in range(size[0]):
        p_z, p_y, p_x = first[0] + y * by_row[0], first[1] + y * by_row[1], first[2] + y * by_row[2]
        row = base + _U(y * width)
        start, stop, inner_start, inner_stop = 0, width, 0, width
        lowest_z, highest_z = min(p_z, p_z + n * d_z), max(p_z, p_z + n * d_z)
        lowest_y, highest_y = min(p_y, p_y + n * d_y), max(p_y, p_y + n * d_y)
        lowest_x, highest_x = min(p_x, p_x + n * d_x), max(p_x, p_x + n * d_x)
        is_inside = lowest_z >= 0 and lowest_y >= 0 and lowest_x >= 0
        if not (is_inside and highest_z < last_z and highest_y < end_y - _ONE and highest_x < end_x - _ONE):
            # where the nearest voxel lies in the volume, and within it where all voxels beside the position do
            start, stop = _clip(start, stop, p_z + _HALF, d_z, end_z)
            start, stop = _clip(start, stop, p_y + _HALF, d_y, end_y)
            start, stop = _clip(start, stop, p_x + _HALF, d_x, end_x)
            stop = max(start, stop) if start < width else width
            start = min(start, stop)
            inner_start, inner_stop = _clip(start, stop, p_z, d_z, last_z)
            inner_start, inner_stop = _clip(inner_start, inner_stop, p_y, d_y, end_y - _ONE)
            inner_start, inner_stop = _clip(inner_start, inner_stop, p_x, d_x, end_x - _ONE)
            if inner_start >= inner_stop:
                inner_start = inner_stop = stop
            _blank(values, targets, row, row + _U(start), n_m, n_all, channel, outside)
            _blank(values, targets, row + _U(stop), row + _U(width), n_m, n_all, channel, outside)
        for x in range(start, stop):
            z_at, y_at, x_at = p_z + x * d_z, p_y + x * d_y, p_x + x * d_x
            z_near, y_near, x_near = (z_at + _HALF) >> FRACTION_BITS, (y_at + _HALF) >> FRACTION_BITS, (x_at + _HALF) >> FRACTION_BITS
            nearest = label[_U((z_near * n_y + y_near) * n_x + x_near)]
            to = (row + _U(x)) * n_all + channel
            if targets.size:
                targets[row + _U(x)] = nearest
            if nearest == outside:  # air stays exactly 0
                for m in range(n_m):
                    values[to + m] = np.float32(0)
            elif n_m == _U(4) and _CPU_WIDENS and inner_start <= x < inner_stop:
                z_low, y_low, x_low = z_at >> FRACTION_BITS, y_at >> FRACTION_BITS, x_at >> FRACTION_BITS
                source = image_address + _U((z_low * n_y + y_low) * n_x + x_low) * _U(8)
                f_y, f_x = np.float32(y_at & (_ONE - 1)) * _STEP, np.float32(x_at & (_ONE - 1)) * _STEP
                if is_flat:
                    _blend_4(source, row_bytes, f_y, f_x, to_address + to * _U(4))
                else:
                    f_z = np.float32(z_at & (_ONE - 1)) * _STEP
                    _blend_8(source, plane_bytes, row_bytes, f_z, f_y, f_x, to_address + to * _U(4))
            else:
                _blend(image, shape, (z_at, y_at, x_at), is_flat, n_m, values, to)


@numba.njit(cache=True, nogil=True)
def _positions(matrix: AnyArray, patch: Any, z: Any, first: Any, is_flat: bool) -> Any:
    """First position of plane z of a patch, and the steps to the next row and column, in 2**-24 voxels.

    `first` is where the plane would start with the identity. Twice the way to the middle of the patch is a whole number, and the matrix
    is in 2**-23: no number is rounded.
    """
    n_z, n_y, n_x = patch
    to_middle = 2 * z + 1 - n_z, 1 - n_y, 1 - n_x
    starts = first[0] - z + n_z // 2, first[1] + n_y // 2, first[2] + n_x // 2
    z_at = (starts[0] << FRACTION_BITS) - (1 - n_z % 2) * _HALF
    y_at = (starts[1] << FRACTION_BITS) - (1 - n_y % 2) * _HALF
    x_at = (starts[2] << FRACTION_BITS) - (1 - n_x % 2) * _HALF
    y_at += matrix[1, 1] * to_middle[1] + matrix[1, 2] * to_middle[2]
    x_at += matrix[2, 1] * to_middle[1] + matrix[2, 2] * to_middle[2]
    if is_flat:
        zero = matrix[0, 0] * 0
        return (z_at, y_at, x_at), (zero, 2 * matrix[1, 1], 2 * matrix[2, 1]), (zero, 2 * matrix[1, 2], 2 * matrix[2, 2])
    z_at += matrix[0, 0] * to_middle[0] + matrix[0, 1] * to_middle[1] + matrix[0, 2] * to_middle[2]
    y_at += matrix[1, 0] * to_middle[0]
    x_at += matrix[2, 0] * to_middle[0]
    by_row = 2 * matrix[0, 1], 2 * matrix[1, 1], 2 * matrix[2, 1]
    return (z_at, y_at, x_at), by_row, (2 * matrix[0, 2], 2 * matrix[1, 2], 2 * matrix[2, 2])


@numba.njit(cache=True, nogil=True)
def _ask_for(images: AnyArray, labels: AnyArray, shapes: AnyArray, first: Any, size: Any, n_channels: int) -> None:
    """Prefetch a plane that starts at the voxel `first` (case, z, y, x)."""
    case, z, y, x = first
    n_m, width, row = _U(n_channels), _U(size[1]), _U(shapes[case, 2])
    place = _U(max((z * shapes[case, 1] + y) * shapes[case, 2] + x, 0))
    for _ in range(size[0]):
        for offset in range(_U(0), width * n_m * _U(2) + _U(63), _U(64)):
            _prefetch(images[case] + place * n_m * _U(2) + offset)
        for offset in range(_U(0), width + _U(63), _U(64)):
            _prefetch(labels[case] + place + offset)
        place += row


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
) -> None:
    """One plane of `gather_planes`; the plane `ahead` is asked for meanwhile."""
    offsets, matrices, is_mapped, is_flat = maps
    number, size = plane // patch[0], (patch[1], patch[2])
    case, z, y, x = _plane(plane, patch, shapes, ids, offsets)
    shape = shapes[case, 0], shapes[case, 1], shapes[case, 2]
    image = carray(_as_pointer(images[case]), (shape[0] * shape[1] * shape[2] * n_channels,), np.uint16)
    label = carray(_as_pointer(labels[case]), (shape[0] * shape[1] * shape[2],), np.uint8)
    next_case, z_ahead, y_ahead, x_ahead = _plane(ahead, patch, shapes, ids, offsets)
    base, n_values = _U(plane) * _U(size[0]) * _U(size[1]), n_channels * (2 * slices_around + 1)
    no_targets = targets[:0]
    for s in range(-slices_around, slices_around + 1):
        to_targets = targets if s == 0 else no_targets
        channel = _U((s + slices_around) * n_channels)
        _ask_for(images, labels, shapes, (next_case, z_ahead + s, y_ahead, x_ahead), size, n_channels)
        if is_mapped.size and is_mapped[number]:
            first, by_row, by_column = _positions(matrices[number], patch, plane % patch[0], (z + s, y, x), is_flat)
            _map_slice(
                image, label, images[case], shape, first, by_row, by_column, is_flat, size, n_channels, n_values, outside,
                base, channel, values, to_targets,
            )  # fmt: skip
        else:
            _copy_slice(
                image, label, shape, (z + s, y, x), size, n_channels, n_values, outside, base, channel, values, to_targets
            )  # fmt: skip
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
    maps: tuple[AnyArray, AnyArray, AnyArray, bool],
    slices_around: int,
    progress: int,
    n_at_once: int,
    values: AnyArray,
    targets: AnyArray,
    counts: AnyArray,
) -> None:
    """Copy the planes of a batch of patches out of mapped volumes, and count their classes.

    Any number of threads may call this for one batch: each takes the next planes until none are left. None waits for another, which
    costs as much as half a batch where Python does it; `wait_for` tells when all are done.

    Args:
        images, labels: (C,) uint64, the address of each case's first float16 (Z, Y, X, M) and byte (Z, Y, X).
        shapes: (C, 3) int64, (Z, Y, X) of each case. Nothing here is checked: a wrong one reads where it must not.
        ids: (B,) int64, case << 32 | flat position of each patch's center.
        patch: (depth, height, width); a 2-D patch has the depth 1.
        n_channels, outside: M; the target where a patch hangs over its volume, whose image is 0 there.
        table: uint8, what each of the 256 targets becomes, `outside` too; empty to leave them as they are.
        maps: offsets (B, 3) int64 added to the centers; matrices (B, 3, 3) int64 in 2**-23; (B,) uint8, 0 for patches that are copied
            without their matrix; whether the patches are 2-D. The arrays are empty where no patch has a map.
        slices_around: n, the slices on either side of a 2-D patch that are gathered too.
        progress: address of two int64, 0 before the batch: planes taken and planes done, of B * depth.
        n_at_once: planes taken at a time.
        values, targets: flat float32 (B * depth * height * width * (2 n + 1) * M,) and uint8 (B * depth * height * width,), written.
        counts: (K + 1,) int64 of this thread, added to: targets of each class, and in the last place all others.
    """
    n_planes = ids.size * patch[0]
    while True:
        first = _add_shared(_U(progress), np.int64(n_at_once))
        if first >= n_planes:
            return
        stop = min(first + n_at_once, n_planes)
        for plane in range(first, stop):
            ahead = min(plane + 1, stop - 1)
            _gather_plane(
                images, labels, shapes, ids, patch, n_channels, outside, table, maps, slices_around, plane, ahead, values, targets, counts
            )  # fmt: skip
        _add_shared(_U(progress) + _U(8), np.int64(stop - first))


@numba.njit(cache=True, nogil=True)
def wait_for(progress: int, n_planes: int, patience: int) -> bool:
    """Look, at most `patience` times, whether all planes of a batch are done: a few nanoseconds each, without letting go of the core."""
    for _ in range(patience):  # noqa: SIM110, numba has no any()
        if _add_shared(_U(progress) + _U(8), np.int64(0)) >= n_planes:
            return True
    return False
