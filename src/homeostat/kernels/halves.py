"""16-bit elements as float32, and back, rounded to the nearest even, while code is made.

NumPy has no bfloat16 and numba's CPU no float16, so both come as integers of their bits: float16 as
uint16, bfloat16 as int16. Values are single ones or vectors, by their types. Where the processor
that code is compiled for cannot convert float16, neither can the compiler: it would call a function
that nobody has. Shifts and selections do it there.
"""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir
from numba import types

from homeostat.kernels.compiled import processor_has

FLOAT16, BFLOAT16 = types.uint16, types.int16

# Of those that are not x86 all that numba runs on convert float16.
CONVERTS = platform.machine() not in ("x86_64", "AMD64", "i386", "i686") or processor_has("f16c")


def widened(builder: Any, value: Any, wide: Any, element: Any) -> Any:
    """Return elements as floats.

    Args:
        builder: makes the code.
        value: the elements as they are kept.
        wide: the type of the floats.
        element: numba's type of an element.
    """
    if element == FLOAT16:
        if not CONVERTS:
            return _widened_by_bits(builder, value, wide)
        half = builder.bitcast(value, _like(wide, ir.HalfType()))
        return builder.fpext(half, wide)
    if element == BFLOAT16:
        bits = builder.zext(value, _words(wide))
        return builder.bitcast(builder.shl(bits, _bits(16, wide)), wide)
    return value


def narrowed(builder: Any, value: Any, raw: Any, element: Any) -> Any:
    """Return floats as the elements that are kept.

    Args:
        builder: makes the code.
        value: the floats.
        raw: the type of the elements as they are kept.
        element: numba's type of an element.
    """
    if element == FLOAT16:
        if not CONVERTS:
            return _narrowed_by_bits(builder, value, raw)
        half = builder.fptrunc(value, _like(raw, ir.HalfType()))
        return builder.bitcast(half, raw)
    if element != BFLOAT16:
        return value
    bits = builder.bitcast(value, _words(raw))
    odd = builder.and_(builder.lshr(bits, _bits(16, raw)), _bits(1, raw))
    bits = builder.add(bits, builder.add(odd, _bits(0x7FFF, raw)))
    nan = builder.fcmp_unordered("uno", value, value)
    bits = builder.select(nan, _bits(0x7FC00000, raw), bits)
    if not isinstance(raw, ir.VectorType):
        return builder.trunc(builder.lshr(bits, _bits(16, raw)), raw)
    # One instruction picks the upper halves of two registers.
    pairs = builder.bitcast(bits, ir.VectorType(raw.element, 2 * raw.count))
    upper = [2 * i + 1 for i in range(raw.count)]
    return builder.shuffle_vector(pairs, pairs, ir.Constant(_words(raw), upper))


def _widened_by_bits(builder: Any, value: Any, wide: Any) -> Any:
    """Return float16 as float32; the exponents of one are biased by 15, of the other by 127."""
    given = builder.zext(value, _words(wide))
    sign = builder.shl(builder.and_(given, _bits(0x8000, wide)), _bits(16, wide))
    size = builder.shl(builder.and_(given, _bits(0x7FFF, wide)), _bits(13, wide))
    size = builder.fmul(builder.bitcast(size, wide), _floats(2.0**112, wide))
    bits = builder.bitcast(size, _words(wide))
    infinite = builder.fcmp_ordered(">=", size, _floats(65536.0, wide))
    bits = builder.select(infinite, builder.or_(bits, _bits(0x7F800000, wide)), bits)
    return builder.bitcast(builder.or_(bits, sign), wide)


def _narrowed_by_bits(builder: Any, value: Any, raw: Any) -> Any:
    """Return float32 as float16."""
    bits = builder.bitcast(value, _words(raw))
    sign = builder.and_(bits, _bits(0x80000000, raw))
    size = builder.xor(bits, sign)
    # Adding a half leaves a subnormal in the lowest bits, rounded.
    small = builder.fadd(builder.bitcast(size, value.type), _floats(0.5, raw))
    small = builder.sub(builder.bitcast(small, _words(raw)), _bits(0x3F000000, raw))
    odd = builder.and_(builder.lshr(size, _bits(13, raw)), _bits(1, raw))
    normal = builder.add(builder.sub(size, _bits(0x38000000 - 0xFFF, raw)), odd)
    half = builder.lshr(normal, _bits(13, raw))
    for sign_of, bound, instead in (
        ("<", 0x38800000, small),
        (">=", 0x47800000, _bits(0x7C00, raw)),
        (">", 0x7F800000, _bits(0x7E00, raw)),
    ):
        holds = builder.icmp_unsigned(sign_of, size, _bits(bound, raw))
        half = builder.select(holds, instead, half)
    return builder.trunc(builder.or_(half, builder.lshr(sign, _bits(16, raw))), raw)


def _like(kind: Any, element: Any) -> Any:
    """Return the type of as many elements as a type has."""
    return ir.VectorType(element, kind.count) if isinstance(kind, ir.VectorType) else element


def _words(kind: Any) -> Any:
    return _like(kind, ir.IntType(32))


def _bits(value: int, kind: Any) -> Any:
    return _constant(_words(kind), value)


def _floats(value: float, kind: Any) -> Any:
    return _constant(_like(kind, ir.FloatType()), value)


def _constant(kind: Any, value: float) -> Any:
    return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)
