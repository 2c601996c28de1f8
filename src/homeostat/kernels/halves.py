"""Vectors of 16-bit elements as float32, and back, rounded to the nearest even; see `elements`.

Where the processor that code is compiled for cannot convert float16, neither can the compiler:
it would call a function that nobody has. Shifts and selections do it there.
"""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir

from homeostat.kernels.compiled import processor_has
from homeostat.kernels.elements import BFLOAT16, FLOAT16

# Of those that are not x86 all that numba runs on convert float16.
CONVERTS = platform.machine() not in ("x86_64", "AMD64", "i386", "i686") or processor_has("f16c")


def widened(builder: Any, value: Any, wide: Any, element: Any) -> Any:
    """Return a vector of elements as one of floats, while code is made.

    Args:
        builder: makes the code.
        value: the elements as they are kept.
        wide: the type of the floats.
        element: numba's type of an element.
    """
    if element == FLOAT16:
        if not CONVERTS:
            return _widened_by_bits(builder, value, wide)
        half = builder.bitcast(value, ir.VectorType(ir.HalfType(), wide.count))
        return builder.fpext(half, wide)
    if element == BFLOAT16:
        bits = builder.zext(value, _words(wide.count))
        return builder.bitcast(builder.shl(bits, _bits(16, wide.count)), wide)
    return value


def narrowed(builder: Any, value: Any, raw: Any, element: Any) -> Any:
    """Return a vector of floats as the elements that are kept, while code is made.

    Args:
        builder: makes the code.
        value: the floats.
        raw: the type of the elements as they are kept.
        element: numba's type of an element.
    """
    if element == FLOAT16:
        if not CONVERTS:
            return _narrowed_by_bits(builder, value, raw)
        half = builder.fptrunc(value, ir.VectorType(ir.HalfType(), raw.count))
        return builder.bitcast(half, raw)
    if element != BFLOAT16:
        return value
    sixteen = _bits(16, raw.count)
    bits = builder.bitcast(value, sixteen.type)
    odd = builder.and_(builder.lshr(bits, sixteen), _bits(1, raw.count))
    bits = builder.add(bits, builder.add(odd, _bits(0x7FFF, raw.count)))
    nan = builder.fcmp_unordered("uno", value, value)
    bits = builder.select(nan, _bits(0x7FC00000, raw.count), bits)
    pairs = builder.bitcast(bits, ir.VectorType(ir.IntType(16), 2 * raw.count))
    odd = ir.Constant(ir.VectorType(ir.IntType(32), raw.count), [2 * i + 1 for i in range(raw.count)])
    return builder.shuffle_vector(pairs, pairs, odd)


def _widened_by_bits(builder: Any, value: Any, wide: Any) -> Any:
    """Do what `elements.widen` does of float16."""
    n = wide.count
    given = builder.zext(value, _words(n))
    sign = builder.shl(builder.and_(given, _bits(0x8000, n)), _bits(16, n))
    size = builder.shl(builder.and_(given, _bits(0x7FFF, n)), _bits(13, n))
    size = builder.fmul(builder.bitcast(size, wide), _floats(2.0**112, n))
    bits = builder.bitcast(size, _words(n))
    infinite = builder.fcmp_ordered(">=", size, _floats(65536.0, n))
    bits = builder.select(infinite, builder.or_(bits, _bits(0x7F800000, n)), bits)
    return builder.bitcast(builder.or_(bits, sign), wide)


def _narrowed_by_bits(builder: Any, value: Any, raw: Any) -> Any:
    """Do what `elements.narrow` does to float16."""
    n = raw.count
    bits = builder.bitcast(value, _words(n))
    sign = builder.and_(bits, _bits(0x80000000, n))
    size = builder.xor(bits, sign)
    # Adding a half leaves a subnormal in the lowest bits, rounded.
    small = builder.fadd(builder.bitcast(size, value.type), _floats(0.5, n))
    small = builder.sub(builder.bitcast(small, _words(n)), _bits(0x3F000000, n))
    odd = builder.and_(builder.lshr(size, _bits(13, n)), _bits(1, n))
    normal = builder.add(builder.sub(size, _bits(0x38000000 - 0xFFF, n)), odd)
    half = builder.lshr(normal, _bits(13, n))
    for sign_of, bound, instead in (
        ("<", 0x38800000, small),
        (">=", 0x47800000, _bits(0x7C00, n)),
        (">", 0x7F800000, _bits(0x7E00, n)),
    ):
        half = builder.select(builder.icmp_unsigned(sign_of, size, _bits(bound, n)), instead, half)
    return builder.trunc(builder.or_(half, builder.lshr(sign, _bits(16, n))), raw)


def _words(lanes: int) -> Any:
    return ir.VectorType(ir.IntType(32), lanes)


def _bits(value: int, lanes: int) -> Any:
    return ir.Constant(_words(lanes), [value] * lanes)


def _floats(value: float, lanes: int) -> Any:
    return ir.Constant(ir.VectorType(ir.FloatType(), lanes), [value] * lanes)
