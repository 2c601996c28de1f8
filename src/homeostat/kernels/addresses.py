"""Memory and C functions by address, for compiled code that C code calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from homeostat.kernels.compiled import compiled

_WORD = ir.IntType(64)


def instruction(signature: Any, generate: Callable[[Any, Any], Any]) -> Any:
    """Return an intrinsic's signature and what makes its code of a builder and the arguments."""
    return signature, lambda context, builder, _, arguments: generate(builder, arguments)


@intrinsic
def _pointer(context: Any, address: Any) -> Any:
    return instruction(
        types.voidptr(types.intp),
        lambda builder, arguments: builder.inttoptr(arguments[0], cgutils.voidptr_t),
    )


@intrinsic
def address_of(context: Any, pointer: Any) -> Any:
    """Return a pointer's address."""
    return instruction(
        types.intp(pointer), lambda builder, arguments: builder.ptrtoint(arguments[0], _WORD)
    )


@intrinsic
def _element_pointer(context: Any, like: Any, address: Any) -> Any:
    return instruction(
        like(like, types.intp),
        lambda builder, arguments: builder.inttoptr(arguments[1], arguments[0].type),
    )


@intrinsic
def _value_pointer(context: Any, like: Any, address: Any) -> Any:
    double = like.dtype == types.float64
    wanted = (ir.DoubleType() if double else ir.FloatType()).as_pointer()
    return instruction(
        types.CPointer(types.float64 if double else types.float32)(like, types.intp),
        lambda builder, arguments: builder.inttoptr(arguments[1], wanted),
    )


@intrinsic
def _element_size(context: Any, pointer: Any) -> Any:
    size = _WORD(pointer.dtype.bitwidth // 8)
    return instruction(types.intp(pointer), lambda builder, arguments: size)


@intrinsic
def fetch_add(context: Any, address: Any, value: Any) -> Any:
    """Add to a word in one step that no thread can come between, and return what it was."""

    def generate(builder: Any, arguments: Any) -> Any:
        word = builder.inttoptr(arguments[0], _WORD.as_pointer())
        return builder.atomic_rmw("add", word, arguments[1], "seq_cst")

    return instruction(types.int64(types.intp, types.int64), generate)


@intrinsic
def call(context: Any, function: Any, first: Any, second: Any, third: Any, fourth: Any) -> Any:
    """Call a C function by its address, with four words of which it may want fewer."""

    def generate(builder: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(_WORD, [_WORD] * 4).as_pointer()
        return builder.call(builder.inttoptr(arguments[0], kind), arguments[1:])

    return instruction(types.intp(*[types.intp] * 5), generate)


@compiled
def words(address, count):
    """Return the 64-bit words at an address."""
    return carray(_pointer(address), count, np.int64)


@compiled
def float32s(address, count):
    """Return the float32 values at an address."""
    return carray(_pointer(address), count, np.float32)


@compiled
def float64s(address, count):
    """Return the float64 values at an address."""
    return carray(_pointer(address), count, np.float64)


@compiled
def values(like, address, count):
    """Return the float32 values at an address, float64 where a pointer points to float64."""
    return carray(_value_pointer(like, address), count)


@compiled
def elements(like, address, first, last):
    """Return the elements from first to last at an address, of the dtype a pointer points to."""
    at = address + first * _element_size(like)
    return carray(_element_pointer(like, at), last - first)
