"""Memory and C functions by address, for compiled code that C code calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

_WORD = ir.IntType(64)


def instruction(signature: Any, generate: Callable[[Any, Any], Any]) -> Any:
    """Return an intrinsic's signature and what makes its code of a builder and the arguments."""
    return signature, lambda context, builder, _, arguments: generate(builder, arguments)


def array_at(context: Any, builder: Any, kind: Any, address: Any, count: Any) -> Any:
    """Return, while code is made, a flat array of memory at an address."""
    array = context.make_array(kind)(context, builder)
    data = builder.inttoptr(address, array.data.type)
    item = context.get_constant(types.intp, kind.dtype.bitwidth // 8)
    populate_array(array, data, [count], [item], item, meminfo=None)
    return array._getvalue()


def _array_of(dtype: Any) -> Any:
    kind = types.Array(dtype, 1, "C")

    @intrinsic
    def at(context: Any, address: Any, count: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return array_at(context, builder, kind, *arguments)

        return kind(types.intp, types.intp), generate

    return at


# Of an address and a count, the array of the values there.
words, float32s, float64s = (_array_of(t) for t in (types.int64, types.float32, types.float64))


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
