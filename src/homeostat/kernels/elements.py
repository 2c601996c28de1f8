"""One element of any dtype as the loops see it: float32, or float64 for float64.

NumPy has no bfloat16 and numba's CPU no float16, so both come as integers of their bits: float16 as
uint16, bfloat16 as int16. Shifts and selections turn them into float32 and back, rounded to the
nearest even, which compilers vectorize on any machine.

Some functions are only declared here, with what they mean; the compiler has their bodies, by dtype.
`vectors` has what there is for many elements side by side.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

FLOAT16, BFLOAT16 = types.uint16, types.int16
WITHIN = {"jit_options": {"error_model": "numpy", "nogil": True}, "inline": "never"}

# The exponents of float16 are biased by 15 and those of float32 by 127.
_REBIAS = np.float32(2.0**112)
_INFINITE = np.float32(65536.0)
# Adding it leaves a subnormal float16 in the lowest bits, rounded.
_SUBNORMAL = np.float32(0.5)


def widen(value: Any) -> Any:
    """Return an element as float32, or float64 as it is."""


def narrow(value: Any, array: Any) -> Any:
    """Return a float as an element of an array, rounded to the nearest even."""


def rounded(value: Any, array: Any) -> Any:
    """Return a number in the dtype of an array's statistics."""


def statistics_of(array: Any) -> Any:
    """Return the type of an array's statistics, by its own."""
    return types.float64 if array.dtype == types.float64 else types.float32


# What works on vectors as on single values, and is made in place: each function that the compiler
# compiles costs the first use a twentieth of a second.


@intrinsic
def zero_of(context: Any, array: Any) -> Any:
    """Return 0 in the dtype of an array's statistics."""
    return statistics_of(array)(array), lambda context, builder, signature, arguments: ir.Constant(
        context.get_value_type(signature.return_type), 0.0
    )


@intrinsic
def zero_like(context: Any, value: Any) -> Any:
    """Return 0 as a value is."""
    return value(value), lambda context, builder, signature, arguments: ir.Constant(
        context.get_value_type(value), None
    )


@intrinsic
def multiply_add(context: Any, value: Any, factor: Any, addend: Any) -> Any:
    """Return value * factor + addend, rounded once on a machine that can do so, as XLA does."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        product = builder.fmul(*arguments[:2], flags=("contract",))
        return builder.fadd(product, arguments[2], flags=("contract",))

    return value(value, value, value), generate


@intrinsic
def choose(context: Any, condition: Any, value: Any, otherwise: Any) -> Any:
    """Return one of two values, both computed: a branch would make loads wait for its outcome."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(*arguments)

    return value(condition, value, value), generate


def _cast(given: Any, wanted: Any, result: Any) -> Any:
    @intrinsic
    def cast(context: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], wanted)

        return result(given), generate

    return cast


_bits = _cast(types.float32, ir.IntType(32), types.uint32)
_float = _cast(types.uint32, ir.FloatType(), types.float32)


@overload(widen, **WITHIN)
def _widen(value):
    if value == FLOAT16:

        def from_float16(value):
            size = _float(np.uint32((np.uint32(value) & 0x7FFF) << 13)) * _REBIAS
            bits = _bits(size)
            bits = bits | np.uint32(0x7F800000) if size >= _INFINITE else bits
            return _float(np.uint32(bits | (np.uint32(value & 0x8000) << 16)))

        return from_float16
    if value == BFLOAT16:
        return lambda value: _float(np.uint32(np.uint32(value) << 16))
    return lambda value: value


@overload(narrow, **WITHIN)
def _narrow(value, array):
    if array.dtype == FLOAT16:

        def to_float16(value, array):
            bits = _bits(np.float32(value))
            sign = np.uint32(bits & 0x80000000)
            size = np.uint32(bits ^ sign)
            small = np.uint32(_bits(_float(size) + _SUBNORMAL) - _bits(_SUBNORMAL))
            odd = np.uint32((size >> 13) & 1)
            normal = np.uint32(np.uint32(size - 0x38000000 + 0xFFF + odd) >> 13)
            half = small if size < np.uint32(0x38800000) else normal
            half = np.uint32(0x7C00) if size >= np.uint32(0x47800000) else half
            half = np.uint32(0x7E00) if size > np.uint32(0x7F800000) else half
            return np.uint16(half | np.uint32(sign >> 16))

        return to_float16
    if array.dtype == BFLOAT16:

        def to_bfloat16(value, array):
            bits = _bits(np.float32(value))
            rounded = np.uint32(np.uint32(bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)
            return np.int16(np.uint32(0x7FC0) if value != value else rounded)

        return to_bfloat16
    return lambda value, array: value


@overload(rounded, **WITHIN)
def _rounded(value, array):
    if array.dtype == types.float64:
        return lambda value, array: np.float64(value)
    return lambda value, array: np.float32(value)
