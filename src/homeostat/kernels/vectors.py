"""Many elements side by side, as one value that the compiler keeps in registers.

Compilers vectorize plain loops too, but read what a loop needs for each channel again for every
row, and give up where memory is fetched ahead: half the speed. `elements` says what its functions
do; here they do it to a `Vector` at once. Indices are checked where numba's bounds checking is on.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

from homeostat.kernels.elements import BFLOAT16, FLOAT16, WITHIN, zero_like

# The bytes of a vector's values: four registers of machines that have many large ones. What a loop
# keeps should fit all registers.
BYTES = 256 if llvmlite.binding.get_host_cpu_features().get("avx512f") else 64
# The values in a vector of float32; one of float64 has half as many.
LANES = BYTES // 4
_LINE = 64
_CHECKED = bool(config.BOUNDSCHECK)


class Vector(types.Type):
    """Values of a float dtype, side by side."""

    def __init__(self, dtype: Any) -> None:
        super().__init__(name=f"Vector({dtype}, {BYTES})")
        self.dtype = dtype
        self.lanes = BYTES * 8 // dtype.bitwidth


class Mask(types.Type):
    """A truth value for each of so many values."""

    def __init__(self, lanes: int) -> None:
        super().__init__(name=f"Mask({lanes})")
        self.lanes = lanes


def _llvm(dtype: Any) -> Any:
    return ir.DoubleType() if dtype == types.float64 else ir.FloatType()


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, ir.VectorType(_llvm(kind.dtype), kind.lanes))


@register_model(Mask)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, ir.VectorType(ir.IntType(1), kind.lanes))


def _statistics(array: Any) -> Vector:
    return Vector(types.float64 if array.dtype == types.float64 else types.float32)


def lanes_of(array: Any) -> int:
    """Return how many elements of an array make a vector."""
    raise NotImplementedError


def load(array: Any, at: int) -> Any:
    """Return the elements of an array from an index on as a `Vector`."""


def store(array: Any, at: int, vector: Any, past: bool = False) -> None:
    """Write a `Vector` into an array from an index on, rounded to the nearest even.

    Past the cache if asked to, which takes an address where a line of it starts: a line that is not
    in the cache is then not read first.
    """


def prefetch(array: Any, at: int) -> None:
    """Fetch the elements of a vector's size from an index on, or beyond the end, into the cache."""


def broadcast(value: Any, array: Any) -> Any:
    """Return a `Vector` that has a value in every lane, of the size that fits an array."""


def total(vector: Any) -> Any:
    """Return the sum of a vector's values, in whatever order."""


def _vector_of(builder: Any, value: Any, kind: Vector) -> Any:
    filled = builder.insert_element(
        ir.Constant(ir.VectorType(value.type, kind.lanes), ir.Undefined), value, ir.IntType(32)(0)
    )
    first = ir.Constant(ir.VectorType(ir.IntType(32), kind.lanes), [0] * kind.lanes)
    return builder.shuffle_vector(filled, filled, first)


def _bits(builder: Any, value: int, lanes: int) -> Any:
    return ir.Constant(ir.VectorType(ir.IntType(32), lanes), [value] * lanes)


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, at: Any) -> Any:
    data = cgutils.create_struct_proxy(array_type)(context, builder, array).data
    return builder.gep(data, [at])


@intrinsic
def _load(context: Any, array: Any, at: Any) -> Any:
    kind = _statistics(array)
    element = array.dtype

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], *arguments)
        raw = ir.VectorType(pointer.type.pointee, kind.lanes)
        value = builder.load(builder.bitcast(pointer, raw.as_pointer()), align=1)
        if element == FLOAT16:
            half = builder.bitcast(value, ir.VectorType(ir.HalfType(), kind.lanes))
            return builder.fpext(half, context.get_value_type(kind))
        if element == BFLOAT16:
            wide = builder.zext(value, ir.VectorType(ir.IntType(32), kind.lanes))
            bits = builder.shl(wide, _bits(builder, 16, kind.lanes))
            return builder.bitcast(bits, context.get_value_type(kind))
        return value

    return kind(array, types.intp), generate


def _narrowed(builder: Any, value: Any, raw: Any, element: Any) -> Any:
    """Return a vector of floats as the elements that are kept."""
    if element == FLOAT16:
        half = builder.fptrunc(value, ir.VectorType(ir.HalfType(), raw.count))
        return builder.bitcast(half, raw)
    if element != BFLOAT16:
        return value
    sixteen = _bits(builder, 16, raw.count)
    bits = builder.bitcast(value, sixteen.type)
    odd = builder.and_(builder.lshr(bits, sixteen), _bits(builder, 1, raw.count))
    bits = builder.add(bits, builder.add(odd, _bits(builder, 0x7FFF, raw.count)))
    bits = builder.lshr(bits, sixteen)
    nan = builder.fcmp_unordered("uno", value, value)
    return builder.trunc(builder.select(nan, _bits(builder, 0x7FC0, raw.count), bits), raw)


@intrinsic
def _store(context: Any, array: Any, at: Any, vector: Any, past: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], *arguments[:2])
        raw = ir.VectorType(pointer.type.pointee, vector.lanes)
        value = _narrowed(builder, arguments[2], raw, array.dtype)
        pointer = builder.bitcast(pointer, raw.as_pointer())
        with builder.if_else(arguments[3]) as (beside, ordinary):
            with beside:
                done = builder.store(value, pointer, align=_LINE)
                done.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
            with ordinary:
                builder.store(value, pointer, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector, types.boolean), generate


@intrinsic
def _prefetch(context: Any, array: Any, at: Any) -> Any:
    lines = -(-_statistics(array).lanes * array.dtype.bitwidth // 8 // _LINE)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.bitcast(
            _pointer(context, builder, signature.args[0], *arguments), cgutils.voidptr_t
        )
        word = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        for line in range(lines):
            # For reading, into every cache, of data.
            address = builder.gep(pointer, [ir.IntType(64)(line * _LINE)])
            builder.call(function, [address, word(0), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@intrinsic
def _broadcast(context: Any, value: Any, array: Any) -> Any:
    kind = _statistics(array)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _vector_of(builder, arguments[0], kind)

    return kind(kind.dtype, array), generate


@intrinsic
def _total(context: Any, vector: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scalar, value = _llvm(vector.dtype), arguments[0]
        name = f"llvm.vector.reduce.fadd.v{vector.lanes}f{vector.dtype.bitwidth}"
        kind = ir.FunctionType(scalar, [scalar, value.type])
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(function, [scalar(-0.0), value], fastmath=("reassoc",))

    return vector.dtype(vector), generate


def _operation(emit: Callable[..., Any], result: Callable[[Vector], Any]) -> Any:
    """Return what applies an instruction to two vectors, the second made of a number if need be."""

    @intrinsic
    def apply(context: Any, first: Any, second: Any) -> Any:
        other = second if isinstance(second, Vector) else first.dtype

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            one, two = arguments
            return emit(builder, one, two if other == first else _vector_of(builder, two, first))

        return result(first)(first, other), generate

    return apply


def _same(vector: Vector) -> Vector:
    return vector


def _overload_operator(name: Any, operation: Any) -> None:
    @overload(name, **WITHIN)
    def _operator(first, second):
        if isinstance(first, Vector) and isinstance(second, (Vector, types.Number)):
            return lambda first, second: operation(first, second)
        return None


for _name, _emit in (
    (operator.add, lambda builder, *values: builder.fadd(*values)),
    (operator.iadd, lambda builder, *values: builder.fadd(*values)),
    (operator.sub, lambda builder, *values: builder.fsub(*values)),
    (operator.mul, lambda builder, *values: builder.fmul(*values)),
):
    _overload_operator(_name, _operation(_emit, _same))
for _name, _sign in ((operator.gt, ">"), (operator.le, "<=")):
    _overload_operator(
        _name,
        _operation(
            lambda builder, *values, sign=_sign: builder.fcmp_ordered(sign, *values),
            lambda vector: Mask(vector.lanes),
        ),
    )


@overload(lanes_of, **WITHIN)
def _lanes_of(array):
    lanes = _statistics(array).lanes
    return lambda array: lanes


@overload(load, **WITHIN)
def _load_checked(array, at):
    lanes = _statistics(array).lanes

    def checked(array, at):
        if at < 0 or at + lanes > array.size:
            raise IndexError("a vector is read outside its array")
        return _load(array, at)

    return checked if _CHECKED else lambda array, at: _load(array, at)


@overload(store, **WITHIN)
def _store_checked(array, at, vector, past=False):
    lanes = vector.lanes

    def checked(array, at, vector, past=False):
        if at < 0 or at + lanes > array.size:
            raise IndexError("a vector is written outside its array")
        _store(array, at, vector, past)

    if _CHECKED:
        return checked
    return lambda array, at, vector, past=False: _store(array, at, vector, past)


@overload(prefetch, **WITHIN)
def _prefetch_any(array, at):
    return lambda array, at: _prefetch(array, at)


@overload(broadcast, **WITHIN)
def _broadcast_any(value, array):
    return lambda value, array: _broadcast(value, array)


@overload(total, **WITHIN)
def _total_any(vector):
    return lambda vector: _total(vector)


@overload(zero_like, **WITHIN)
def _zero_like(value):
    if isinstance(value, Vector):
        return lambda value: _zeros(value)
    return None


@intrinsic
def _zeros(context: Any, vector: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(context.get_value_type(vector), None)

    return vector(vector), generate
