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
def _plane(plane: Any, patch: Any, shapes: AnyArray, ids: AnyArray) -> Any:
    """Case, and first z, y and x, of a plane of the batch: plane p lies in patch p // depth."""
    example = ids[plane // patch[0]]
    case, position = example >> 32, example & 0xFFFFFFFF
    n_y, n_x = shapes[case, 1], shapes[case, 2]
    z = position // (n_y * n_x)
    y = position // n_x - z * n_y
    x = position - (z * n_y + y) * n_x
    return case, z - patch[0] // 2 + plane % patch[0], y - patch[1] // 2, x - patch[2] // 2


@numba.njit(cache=True, nogil=True, inline="always")
def _blank(values: AnyArray, targets: AnyArray, first: Any, stop: Any, n_channels: Any, outside: Any) -> None:
    for i in range(first * n_channels, stop * n_channels):
        values[i] = np.float32(0)
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
    plane: int,
    ahead: int,
    values: AnyArray,
    targets: AnyArray,
    counts: AnyArray,
) -> None:
    """One plane of `gather_planes`; the plane `ahead` is asked for meanwhile."""
    n_m, height, width = _U(n_channels), _U(patch[1]), _U(patch[2])
    case, z, y0, x0 = _plane(plane, patch, shapes, ids)
    n_z, n_y, n_x = shapes[case]
    image = carray(_as_pointer(images[case]), (n_z * n_y * n_x * n_channels,), np.uint16)
    label = carray(_as_pointer(labels[case]), (n_z * n_y * n_x,), np.uint8)
    left, right = _U(max(0, -x0)), _U(min(patch[2], n_x - x0))
    top, bottom = _U(max(0, -y0)), _U(min(patch[1], n_y - y0))
    if z < 0 or z >= n_z:
        top = bottom = _U(0)
    next_case, z_ahead, y_ahead, x_ahead = _plane(ahead, patch, shapes, ids)
    row_ahead = _U(shapes[next_case, 2])
    place_ahead = _U(max((z_ahead * shapes[next_case, 1] + y_ahead) * shapes[next_case, 2] + x_ahead, 0))
    base = _U(plane) * height * width
    _blank(values, targets, base, base + top * width, n_m, outside)
    _blank(values, targets, base + bottom * width, base + height * width, n_m, outside)
    for y in range(top, bottom):
        line = images[next_case] + (place_ahead + y * row_ahead) * n_m * _U(2)
        for offset in range(_U(0), width * n_m * _U(2) + _U(63), _U(64)):
            _prefetch(line + offset)
        for offset in range(_U(0), width + _U(63), _U(64)):
            _prefetch(labels[next_case] + place_ahead + y * row_ahead + offset)
        row = base + y * width
        if right - left < width:
            _blank(values, targets, row, row + left, n_m, outside)
            _blank(values, targets, row + right, row + width, n_m, outside)
        source = _U((z * n_y + y0) * n_x + x0 + np.int64(y) * n_x + np.int64(left))
        to = (row + left) * n_m
        for i in range((right - left) * n_m):
            values[to + i] = _widen(image[source * n_m + i])
        for i in range(right - left):
            targets[row + left + i] = label[source + i]
    if table.size:
        for i in range(base, base + height * width):
            targets[i] = table[targets[i]]
    _count(targets, base, height * width, counts)


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
        progress: address of two int64, 0 before the batch: planes taken and planes done, of B * depth.
        n_at_once: planes taken at a time.
        values, targets: flat float32 (B * depth * height * width * M,) and uint8 without M, written.
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
            _gather_plane(images, labels, shapes, ids, patch, n_channels, outside, table, plane, ahead, values, targets, counts)
        _add_shared(_U(progress) + _U(8), np.int64(stop - first))


@numba.njit(cache=True, nogil=True)
def wait_for(progress: int, n_planes: int, patience: int) -> bool:
    """Look, at most `patience` times, whether all planes of a batch are done: a few nanoseconds each, without letting go of the core."""
    for _ in range(patience):  # noqa: SIM110, numba has no any()
        if _add_shared(_U(progress) + _U(8), np.int64(0)) >= n_planes:
            return True
    return False
