"""What the loops are asked for: a record of 64-bit words that compiled code reads.

Its fields are the sizes, then addresses, 0 for what there is not. Arrays of elements and the
channels' values are flat; values are float32, or float64 for elements of float64. The type of the
pointer to a record says what its elements are.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from homeostat.kernels.addresses import array_at

# A tensor is (outer, channels, inner), and is written past the cache or not.
OUTER, CHANNELS, INNER, PAST = range(4)
# Elements: what comes in, what goes out.
X, RESIDUAL, Y, DY, OUT, G = range(4, 10)
# Values of each channel that come in, and that go out: mean and variance, or the gradients of gamma
# and beta.
GAMMA, BETA, RESULTS, MORE_RESULTS = range(10, 14)
# Statistics that move: values of each channel, the number of updates (int64), and, written, whether
# they moved.
MOVING_MEAN, MOVING_VARIANCE, UPDATES, MOVED = range(14, 18)
# Two pieces of memory: what is kept of the channels, and what lasts as long as a run. What follows
# lies there, and comes as offsets that `channels.lay` turns into addresses.
KEPT, LENT = range(18, 20)
# float64: epsilon, the activation's slope for negative values, the weights of statistics that move,
# of what they were and of the batch's mean and variance; and of each channel mean and variance,
# 1 / sqrt(variance + epsilon), and what rounding the mean to the pivot left.
EPSILON, SLOPE, WEIGHTS, MEAN, VARIANCE, INVERSE, OFFSET = range(20, 27)
# Values of each channel.
PIVOT, SCALE, SHIFT = range(27, 30)
# float64: room for the sums of all parts, and of each channel the sums of g and g * (x - pivot).
ROOM, SUM_G, SUM_CENTRED = range(30, 33)
# Values of each channel.
BY_X, CONSTANT = range(33, 35)
WORDS = 35


Record = ctypes.c_int64 * WORDS
"""A record, whose address is `ctypes.addressof`; what is not given is 0."""


def _word(builder: Any, record: Any, field: Any) -> Any:
    words = builder.bitcast(record, ir.IntType(64).as_pointer())
    return builder.load(builder.gep(words, [field]))


def _values_type(record: Any) -> Any:
    return types.float64 if record.dtype == types.float64 else types.float32


@intrinsic
def fields_of(context: Any, record: Any) -> Any:
    """Return a record's words."""
    kind = types.Array(types.int64, 1, "C")

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = builder.ptrtoint(arguments[0], ir.IntType(64))
        return array_at(context, builder, kind, address, ir.IntType(64)(WORDS))

    return kind(record), generate


@intrinsic
def element_array(context: Any, record: Any, field: Any, first: Any, last: Any) -> Any:
    """Return the elements in a field from first to last."""
    kind, size = types.Array(record.dtype, 1, "C"), record.dtype.bitwidth // 8

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        record, field, first, last = arguments
        offset = builder.mul(first, ir.IntType(64)(size))
        address = builder.add(_word(builder, record, field), offset)
        return array_at(context, builder, kind, address, builder.sub(last, first))

    return kind(record, types.intp, types.intp, types.intp), generate


def _channels(dtype_of: Callable[[Any], Any]) -> Any:
    @intrinsic
    def channels(context: Any, record: Any, field: Any) -> Any:
        kind = types.Array(dtype_of(record), 1, "C")

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            record, field = arguments
            count = _word(builder, record, ir.IntType(64)(CHANNELS))
            return array_at(context, builder, kind, _word(builder, record, field), count)

        return kind(record, types.intp), generate

    return channels


# Of a record and a field, the channels' values, and those that are float64 always.
channel_values, channel_doubles = _channels(_values_type), _channels(lambda record: types.float64)


@intrinsic
def slope_of(context: Any, record: Any) -> Any:
    """Return the activation's slope, as a channel's value is."""
    kind = _values_type(record)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _word(builder, arguments[0], ir.IntType(64)(SLOPE))
        slope = builder.load(builder.inttoptr(address, ir.DoubleType().as_pointer()))
        return slope if kind == types.float64 else builder.fptrunc(slope, ir.FloatType())

    return kind(record), generate
