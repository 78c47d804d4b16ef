"""float16 as float32, and processor instructions that numba does not offer.

numba stores compiled code with the file of the caller. After a change in this file, touch the files that
import it.
"""

import platform
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

AnyArray = NDArray[Any]
_F16_TO_F32 = np.float32(
    2.0**112
)  # factor that corrects the exponent when the bits of a float16 are put into a float32
_QUIET_NAN = np.uint32(0x7FC00000)


def _code_as_pointer(typingctx: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.uint64), generate


as_pointer: Any = intrinsic(_code_as_pointer)
"""An address as a pointer, for `carray`."""


def _code_prefetch(typingctx: Any, address: Any) -> Any:
    """Prefetch the cache line at an address, which need not be valid. Prefetching the next plane made the
    gather 1.2 times faster.
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


prefetch: Any = intrinsic(_code_prefetch)


def _code_add_shared(typingctx: Any, address: Any, amount: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", place, args[1], "seq_cst")

    return types.int64(types.uint64, types.int64), generate


add_shared: Any = intrinsic(_code_add_shared)
"""Add to the int64 at an address that threads share, and return the earlier value."""


def _code_widen(typingctx: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


@numba.njit(cache=True, nogil=True, inline="always")
def widen_one_by_bits(bits: Any) -> Any:
    """One float16 as float32 by integer arithmetic, for processors that cannot convert float16 (x86 before
    2012): 2.1 times slower.
    """
    wide = np.uint32(bits)
    magnitude = wide & np.uint32(0x7FFF)
    sign = (wide & np.uint32(0x8000)) << np.uint32(16)
    moved = magnitude << np.uint32(13)
    if magnitude >= np.uint32(0x7C00):
        special = _QUIET_NAN if magnitude > np.uint32(0x7C00) else np.uint32(0x7F800000)
        return np.uint32(special | moved | sign).view(np.float32)
    return np.float32(np.uint32(moved | sign).view(np.float32) * _F16_TO_F32)


CPU_WIDENS = bool(get_host_cpu_features().get("f16c", False)) or platform.machine() in ("aarch64", "arm64")
widen_one: Any = intrinsic(_code_widen) if CPU_WIDENS else widen_one_by_bits


@numba.njit(cache=True, nogil=True)
def widen(bits: AnyArray, values: AnyArray) -> None:
    """Write the float16 numbers of `bits` (n,) uint16 as float32 `values` (n,), exactly.

    Subnormal numbers and infinities are exact too; a NaN keeps its sign and payload and becomes quiet, as
    IEEE 754 converts.
    """
    for i in range(bits.size):
        values[i] = widen_one(bits[i])


def widen_numpy(bits: AnyArray, values: AnyArray) -> None:
    """Twin of `widen`."""
    values[:] = bits.view(np.float16)
    wide = values.view(np.uint32)
    wide |= np.where(np.isnan(values), _QUIET_NAN, np.uint32(0))
