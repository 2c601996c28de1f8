"""One element of any dtype as the loops see it: float32, or float64 for float64.

`halves` has what the compiler makes of 16-bit elements. `vectors` has what there is for many
elements side by side.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from homeostat.kernels.halves import narrowed, widened


def statistics_of(array: Any) -> Any:
    """Return the type of an array's statistics, by its own."""
    return types.float64 if array.dtype == types.float64 else types.float32


@intrinsic
def widen(context: Any, value: Any) -> Any:
    """Return an element as float32, or float64 as it is."""
    kind = types.float64 if value == types.float64 else types.float32

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return widened(builder, arguments[0], context.get_value_type(kind), value)

    return kind(value), generate


@intrinsic
def narrow(context: Any, value: Any, array: Any) -> Any:
    """Return a float as an element of an array, rounded to the nearest even."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        raw = context.get_value_type(array.dtype)
        return narrowed(builder, arguments[0], raw, array.dtype)

    return array.dtype(value, array), generate


@intrinsic
def rounded(context: Any, value: Any, array: Any) -> Any:
    """Return a number in the dtype of an array's statistics."""
    kind = statistics_of(array)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.cast(builder, arguments[0], value, kind)

    return kind(value, array), generate


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
