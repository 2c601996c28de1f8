"""Many elements side by side, as one value that the compiler keeps in registers.

Compilers vectorize plain loops too, but read what a loop needs for each channel again for every
row, and give up where memory is fetched ahead: half the speed. `elements` says what its functions
do; here they do it to a `Vector` at once. Indices are checked where numba's bounds checking is on.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from homeostat.kernels.compiled import processor_has
from homeostat.kernels.elements import statistics_of
from homeostat.kernels.halves import narrowed, widened

# The bytes of a vector's values: four registers of machines that have many large ones. What a loop
# keeps should fit all registers.
BYTES = 256 if processor_has("avx512f") else 64
# The values in a vector of float32; one of float64 has half as many.
LANES = BYTES // 4
_LINE = 64


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


def _vector_for(array: Any) -> Vector:
    return Vector(statistics_of(array))


def _vector_of(builder: Any, value: Any, kind: Vector | Mask) -> Any:
    filled = builder.insert_element(
        ir.Constant(ir.VectorType(value.type, kind.lanes), ir.Undefined), value, ir.IntType(32)(0)
    )
    first = ir.Constant(ir.VectorType(ir.IntType(32), kind.lanes), [0] * kind.lanes)
    return builder.shuffle_vector(filled, filled, first)


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, at: Any) -> Any:
    data = cgutils.create_struct_proxy(array_type)(context, builder, array).data
    return builder.gep(data, [at])


@intrinsic
def load(context: Any, array: Any, at: Any) -> Any:
    """Return the elements of an array from an index on as a `Vector`."""
    kind = _vector_for(array)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _check(builder, context, signature.args[0], *arguments, kind.lanes)
        pointer = _pointer(context, builder, signature.args[0], *arguments)
        raw = ir.VectorType(pointer.type.pointee, kind.lanes)
        value = builder.load(builder.bitcast(pointer, raw.as_pointer()), align=1)
        return widened(builder, value, context.get_value_type(kind), array.dtype)

    return kind(array, types.intp), generate


@intrinsic
def load_all(context: Any, array: Any) -> Any:
    """Return all elements of an array that has fewer than a `Vector`, and 0 behind them."""
    kind = _vector_for(array)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, mask, raw = _whole(context, builder, array, arguments[0], kind)
        value = _masked(builder, "load", raw, [pointer, _ALIGN, mask, ir.Constant(raw, None)])
        return widened(builder, value, context.get_value_type(kind), array.dtype)

    return kind(array), generate


@intrinsic
def store(context: Any, array: Any, at: Any, vector: Any, past: Any) -> Any:
    """Write a `Vector` into an array from an index on, rounded to the nearest even.

    Past the cache if asked to, which takes an address where a line of it starts: a line that is not
    in the cache is then not read first.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _check(builder, context, signature.args[0], *arguments[:2], vector.lanes)
        pointer = _pointer(context, builder, signature.args[0], *arguments[:2])
        raw = ir.VectorType(pointer.type.pointee, vector.lanes)
        value = narrowed(builder, arguments[2], raw, array.dtype)
        pointer = builder.bitcast(pointer, raw.as_pointer())
        size = vector.lanes * array.dtype.bitwidth // 8
        with builder.if_else(arguments[3]) as (beside, ordinary):
            with beside:
                done = builder.store(value, pointer, align=min(_LINE, size))
                done.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
            with ordinary:
                builder.store(value, pointer, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector, types.boolean), generate


@intrinsic
def store_all(context: Any, array: Any, vector: Any) -> Any:
    """Write the start of a `Vector` over all of an array that has fewer elements, see `store`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, mask, raw = _whole(context, builder, array, arguments[0], vector)
        value = narrowed(builder, arguments[1], raw, array.dtype)
        _masked(builder, "store", raw, [value, pointer, _ALIGN, mask])
        return context.get_dummy_value()

    return types.void(array, vector), generate


_ALIGN = ir.IntType(32)(1)


def _whole(context: Any, builder: Any, array_type: Any, array: Any, kind: Vector) -> Any:
    """Return where an array starts, which lanes of a vector it has, and the vector's raw type."""
    made = cgutils.create_struct_proxy(array_type)(context, builder, array)
    raw = ir.VectorType(made.data.type.pointee, kind.lanes)
    mask = builder.icmp_signed("<", _every(kind), _vector_of(
        builder, builder.trunc(made.nitems, ir.IntType(32)), kind
    ))  # fmt: skip
    return builder.bitcast(made.data, raw.as_pointer()), mask, raw


def _masked(builder: Any, what: str, raw: Any, arguments: list[Any]) -> Any:
    element = raw.element
    bits = f"i{element.width}" if isinstance(element, ir.IntType) else _FLOATS[type(element)]
    result = raw if what == "load" else ir.VoidType()
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    name = f"llvm.masked.{what}.v{raw.count}{bits}.p0"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


_FLOATS = {ir.FloatType: "f32", ir.DoubleType: "f64"}


def _every(kind: Vector | Mask) -> Any:
    return ir.Constant(ir.VectorType(ir.IntType(32), kind.lanes), list(range(kind.lanes)))


@intrinsic
def prefetch(context: Any, array: Any, at: Any) -> Any:
    """Fetch the elements of a vector's size from an index on, or beyond the end, into the cache."""
    lines = -(-_vector_for(array).lanes * array.dtype.bitwidth // 8 // _LINE)

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
def broadcast(context: Any, value: Any, array: Any) -> Any:
    """Return a `Vector` that has a value in every lane, of the size that fits an array."""
    kind = _vector_for(array)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _vector_of(builder, arguments[0], kind)

    return kind(kind.dtype, array), generate


@intrinsic
def lanes_from(context: Any, first: Any, array: Any) -> Any:
    """Return the `Mask` of a vector's lanes from one on, of the size that fits an array."""
    kind = Mask(_vector_for(array).lanes)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wanted = _vector_of(builder, builder.trunc(arguments[0], ir.IntType(32)), kind)
        return builder.icmp_signed(">=", _every(kind), wanted)

    return kind(types.intp, array), generate


@intrinsic
def total(context: Any, vector: Any) -> Any:
    """Return the sum of a vector's values, in whatever order."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scalar, value = _llvm(vector.dtype), arguments[0]
        name = f"llvm.vector.reduce.fadd.v{vector.lanes}f{vector.dtype.bitwidth}"
        kind = ir.FunctionType(scalar, [scalar, value.type])
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(function, [scalar(-0.0), value], fastmath=("reassoc",))

    return vector.dtype(vector), generate


@intrinsic
def lanes_of(context: Any, array: Any) -> Any:
    """Return how many elements of an array make a vector."""
    lanes = ir.IntType(64)(_vector_for(array).lanes)
    return types.intp(array), lambda context, builder, signature, arguments: lanes


def _check(builder: Any, context: Any, array_type: Any, array: Any, at: Any, lanes: int) -> None:
    """Raise an error, where bounds are checked, if a vector is not all within its array."""
    if not config.BOUNDSCHECK:
        return
    size = builder.load(
        cgutils.create_struct_proxy(array_type)(context, builder, array)._get_ptr_by_name("nitems")
    )
    end = builder.add(at, ir.IntType(64)(lanes))
    outside = builder.or_(
        builder.icmp_signed("<", at, ir.IntType(64)(0)), builder.icmp_signed(">", end, size)
    )
    with cgutils.if_unlikely(builder, outside):
        context.call_conv.return_user_exc(
            builder, IndexError, ("a vector is read or written outside its array",)
        )


def _operator(name: Any, emit: Callable[..., Any], result: Callable[[Vector], Any]) -> None:
    """Let an operator apply an instruction to two vectors, or to one and a number."""

    @infer_global(name)
    class _Typing(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            first, second = args
            if isinstance(first, Vector) and isinstance(second, Vector | types.Number):
                other = second if isinstance(second, Vector) else first.dtype
                return signature(result(first), first, other)
            return None

    @lower_builtin(name, Vector, Vector)
    @lower_builtin(name, Vector, types.Float)
    def _lower(context: Any, builder: Any, kinds: Any, arguments: Any) -> Any:
        one, two = arguments
        vector, other = kinds.args
        return emit(builder, one, two if other == vector else _vector_of(builder, two, vector))


for _name, _emit in (
    (operator.add, "fadd"), (operator.iadd, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul"),
):  # fmt: skip
    _operator(
        _name,
        lambda builder, *both, emit=_emit: getattr(builder, emit)(*both),
        lambda vector: vector,
    )
for _name, _sign in ((operator.gt, ">"), (operator.le, "<=")):
    _operator(
        _name,
        lambda builder, *both, sign=_sign: builder.fcmp_ordered(sign, *both),
        lambda vector: Mask(vector.lanes),
    )
