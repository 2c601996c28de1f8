"""The loops over float32 rows by address, for callers that are compiled themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from homeostat.kernels.compiled import c_function, compiled
from homeostat.kernels.rows import gradient_sums, merge, moments, rows_per_part

# What is asked for is a record of
# 64-bit words: what to compute, the sizes, and addresses: float64 room of 2 * channels for each
# part, then the arrays.
KIND, ROWS, CHANNELS, ROOM, X, DY, MEAN, SLOPE, SCALE_OR_Y, SHIFT = range(10)
RECORD_WORDS = 10
MOMENTS, LINEAR, RECOMPUTING, KEEPING = range(4)


@intrinsic
def _pointer(context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.intp), generate


@compiled
def words(address, count):
    """Return the 64-bit words at an address."""
    return carray(_pointer(address), count, np.int64)


@compiled
def float32s(address, count):
    """Return the float32 values at an address."""
    return carray(_pointer(address), count, np.float32)


@compiled
def _room(record, part):
    channels = record[CHANNELS]
    room = carray(_pointer(record[ROOM] + 16 * channels * part), 2 * channels, np.float64)
    return room[:channels], room[channels:]


@c_function(types.intp(types.intp, types.intp))
def run_part(address, part):
    """Compute one part of what the record at an address asks for, into the part's room."""
    record = words(address, RECORD_WORDS)
    channels = record[CHANNELS]
    size = rows_per_part(record[ROWS], channels) * channels
    first = part * size
    count = min(size, record[ROWS] * channels - first)
    x = float32s(record[X] + 4 * first, count)
    one, other = _room(record, part)
    if record[KIND] == MOMENTS:
        moments(x, channels, one, other)
        return 0
    dy = float32s(record[DY] + 4 * first, count)
    mean = float32s(record[MEAN], channels)
    if record[KIND] == LINEAR:
        gradient_sums(x, dy, None, mean, None, None, None, one, other)
        return 0
    slope = float32s(record[SLOPE], 1)[0]
    if record[KIND] == RECOMPUTING:
        scale = float32s(record[SCALE_OR_Y], channels)
        shift = float32s(record[SHIFT], channels)
        gradient_sums(x, dy, None, mean, slope, scale, shift, one, other)
    else:
        y = float32s(record[SCALE_OR_Y] + 4 * first, count)
        gradient_sums(x, dy, y, mean, slope, None, None, one, other)
    return 0


@c_function(types.intp(types.intp, types.intp))
def merge_parts(address, result):
    """Merge all parts' rooms into float32 results: mean and variance, or the two sums."""
    record = words(address, RECORD_WORDS)
    rows, channels = record[ROWS], record[CHANNELS]
    size = rows_per_part(rows, channels)
    one, other = np.zeros(channels), np.zeros(channels)
    for part in range(-(-rows // size)):
        its_one, its_other = _room(record, part)
        if record[KIND] == MOMENTS:
            count = part * size
            merge(count, one, other, min(size, rows - count), its_one, its_other)
        else:
            one += its_one
            other += its_other
    results = float32s(result, 2 * channels)
    for j in range(channels):
        results[j] = one[j]
        results[channels + j] = other[j] / rows if record[KIND] == MOMENTS else other[j]
    return 0
