"""Loops for the CPU over float32 rows of channels, compiled by numba.

Rows are taken side by side as one wide row, so that the inner loops are long whatever the number of
channels, and four wide rows at a time. float32 sums run over few rows and are added up in float64.
A tensor is divided into parts by its shape alone, and the parts' sums are merged in their order:
the result is the same, bit by bit, on any number of threads.

Everything compiled here calls nothing that is compiled elsewhere, so that what numba keeps on disk
is as new as this file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

# The least width of a wide row: what is kept for one stays in the first-level cache.
WIDTH = 1024
# Wide rows that a float32 sum runs over; so many of them stay in the second-level cache.
BLOCK = 32
# The elements of a part, enough to be worth sharing with another thread, and the most parts.
PART_ELEMENTS = 2**18
MOST_PARTS = 64

# Sums of (x - mean) need their order and their NaN: of fast maths, only fused multiply-add.
_OPTIONS: Any = {"nogil": True, "cache": True, "fastmath": {"contract"}, "error_model": "numpy"}


@njit(**_OPTIONS)
def rows_per_part(rows, channels):
    """Return how many rows a part has (the last one the rest): a multiple of four wide rows."""
    parts = max(1, min(MOST_PARTS, rows * channels // PART_ELEMENTS))
    step = 4 * max(1, WIDTH // channels)
    return -(-rows // (parts * step)) * step


@njit(**_OPTIONS)
def _repeated(channels, times):
    wide = np.empty(times * channels.size, np.float32)
    for i in range(wide.size):
        wide[i] = channels[i % channels.size]
    return wide


@njit(**_OPTIONS)
def _add_four(x, sums):
    n = sums.size
    x0, x1, x2, x3 = x[:n], x[n : 2 * n], x[2 * n : 3 * n], x[3 * n :]
    for j in range(n):
        sums[j] += (x0[j] + x1[j]) + (x2[j] + x3[j])


@njit(**_OPTIONS)
def _add_four_centred(x, pivot, sums, squares):
    n = sums.size
    x0, x1, x2, x3 = x[:n], x[n : 2 * n], x[2 * n : 3 * n], x[3 * n :]
    for j in range(n):
        p = pivot[j]
        c0, c1, c2, c3 = x0[j] - p, x1[j] - p, x2[j] - p, x3[j] - p
        sums[j] += (c0 + c1) + (c2 + c3)
        squares[j] += (c0 * c0 + c1 * c1) + (c2 * c2 + c3 * c3)


@njit(**_OPTIONS)
def _merge(count, mean, spread, more, its_mean, its_spread):
    """Merge in place the moments of more rows; spread is the sum of squares (Chan et al. 1979)."""
    total = count + more
    for j in range(mean.size):
        delta = its_mean[j] - mean[j]
        mean[j] += delta * (more / total)
        spread[j] += its_spread[j] + delta * delta * (count * (more / total))


@njit(**_OPTIONS)
def moments(x, channels, mean, spread):
    """Compute each channel's mean and sum of squared deviations.

    Each block of rows is centred on its own mean, so neither a large mean nor an outlier elsewhere
    costs digits.

    Args:
        x: float32, flat, rows of channels, at least one.
        channels: how many.
        mean: float64, (channels,), written.
        spread: float64, (channels,), written.
    """
    times = max(1, WIDTH // channels)
    width = times * channels
    wide_mean, wide_spread = np.zeros(width), np.zeros(width)
    its_mean, its_spread = np.empty(width), np.empty(width)
    # Not rows of one array, of which numba would not know that they are contiguous.
    pivot, sums = np.empty(width, np.float32), np.empty(width, np.float32)
    squares = np.empty(width, np.float32)
    whole = x.size // (4 * width) * (4 * width)
    for first in range(0, whole, BLOCK * width):
        last = min(first + BLOCK * width, whole)
        rows = (last - first) // width
        pivot[:] = 0
        for i in range(first, last, 4 * width):
            _add_four(x[i : i + 4 * width], pivot)
        for j in range(width):
            pivot[j] /= np.float32(rows)
        sums[:] = 0
        squares[:] = 0
        for i in range(first, last, 4 * width):
            _add_four_centred(x[i : i + 4 * width], pivot, sums, squares)
        for j in range(width):
            offset = np.float64(sums[j]) / rows
            its_mean[j] = pivot[j] + offset
            its_spread[j] = squares[j] - sums[j] * offset
        _merge(first // width, wide_mean, wide_spread, rows, its_mean, its_spread)
    mean[:] = 0
    spread[:] = 0
    rows = whole // width
    for i in range(times if rows else 0):
        one = slice(i * channels, (i + 1) * channels)
        _merge(i * rows, mean, spread, rows, wide_mean[one], wide_spread[one])
    rows *= times
    for i in range(whole, x.size, channels):
        total = rows + 1
        for j in range(channels):
            delta = x[i + j] - mean[j]
            mean[j] += delta / total
            spread[j] += delta * delta * (rows / total)
        rows = total


@njit(**_OPTIONS)
def _behind_activation(z, dy, slope):
    # A slope of 0 makes 0 of an infinite gradient too.
    return dy if z > 0 else (dy * slope if slope != 0 else np.float32(0))


@njit(**_OPTIONS)
def _add_four_gradients(x, dy, y, mean, slope, scale, shift, sum_g, sum_centred):
    n = mean.size
    x0, x1, x2, x3 = x[:n], x[n : 2 * n], x[2 * n : 3 * n], x[3 * n :]
    d0, d1, d2, d3 = dy[:n], dy[n : 2 * n], dy[2 * n : 3 * n], dy[3 * n :]
    for j in range(n):
        m = mean[j]
        c0, c1, c2, c3 = x0[j] - m, x1[j] - m, x2[j] - m, x3[j] - m
        g0, g1, g2, g3 = d0[j], d1[j], d2[j], d3[j]
        if y is not None:
            g0 = _behind_activation(y[j], g0, slope)
            g1 = _behind_activation(y[n + j], g1, slope)
            g2 = _behind_activation(y[2 * n + j], g2, slope)
            g3 = _behind_activation(y[3 * n + j], g3, slope)
        elif scale is not None:
            a, b = scale[j], shift[j]
            g0 = _behind_activation(c0 * a + b, g0, slope)
            g1 = _behind_activation(c1 * a + b, g1, slope)
            g2 = _behind_activation(c2 * a + b, g2, slope)
            g3 = _behind_activation(c3 * a + b, g3, slope)
        sum_g[j] += (g0 + g1) + (g2 + g3)
        sum_centred[j] += (g0 * c0 + g1 * c1) + (g2 * c2 + g3 * c3)


@njit(**_OPTIONS)
def gradient_sums(x, dy, y, mean, slope, scale, shift, sum_g, sum_centred):
    """Sum g and g * (x - mean) over the rows, where g = dy * activation'(z).

    z is y where there is one, else (x - mean) * scale + shift; with neither, g is dy.

    Args:
        x: float32, flat, rows of channels.
        dy: like x.
        y: like x, or None.
        mean: float32, (channels,).
        slope: float32, the activation's for negative values, or None.
        scale: float32, (channels,), or None.
        shift: float32, (channels,), or None.
        sum_g: float64, (channels,), written.
        sum_centred: float64, (channels,), written.
    """
    channels = mean.size
    times = max(1, WIDTH // channels)
    width = times * channels
    m = _repeated(mean, times)
    a = None if scale is None else _repeated(scale, times)
    b = None if shift is None else _repeated(shift, times)
    short_g, short_centred = np.empty(width, np.float32), np.empty(width, np.float32)
    long_g, long_centred = np.zeros(width), np.zeros(width)
    whole = x.size // (4 * width) * (4 * width)
    for first in range(0, whole, BLOCK * width):
        short_g[:] = 0
        short_centred[:] = 0
        for i in range(first, min(first + BLOCK * width, whole), 4 * width):
            seen = None if y is None else y[i : i + 4 * width]
            _add_four_gradients(
                x[i : i + 4 * width], dy[i : i + 4 * width], seen, m, slope, a, b,
                short_g, short_centred,
            )  # fmt: skip
        for j in range(width):
            long_g[j] += short_g[j]
            long_centred[j] += short_centred[j]
    for i in range(whole, x.size):
        j = (i - whole) % channels
        centred, g = x[i] - m[j], dy[i]
        if y is not None:
            g = _behind_activation(y[i], g, slope)
        elif scale is not None:
            g = _behind_activation(centred * a[j] + b[j], g, slope)
        long_g[j] += g
        long_centred[j] += g * centred
    for j in range(channels):
        sum_g[j] = long_g[j::channels].sum()
        sum_centred[j] = long_centred[j::channels].sum()


# The same by address, for callers that are compiled themselves. What is asked for is a record of
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


@njit(**_OPTIONS)
def words(address, count):
    """Return the 64-bit words at an address."""
    return carray(_pointer(address), count, np.int64)


@njit(**_OPTIONS)
def float32s(address, count):
    """Return the float32 values at an address."""
    return carray(_pointer(address), count, np.float32)


@njit(**_OPTIONS)
def _room(record, part):
    channels = record[CHANNELS]
    room = carray(_pointer(record[ROOM] + 16 * channels * part), 2 * channels, np.float64)
    return room[:channels], room[channels:]


@cfunc(types.intp(types.intp, types.intp), cache=True)
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


@cfunc(types.intp(types.intp, types.intp), cache=True)
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
            _merge(count, one, other, min(size, rows - count), its_one, its_other)
        else:
            one += its_one
            other += its_other
    results = float32s(result, 2 * channels)
    for j in range(channels):
        results[j] = one[j]
        results[channels + j] = other[j] / rows if record[KIND] == MOMENTS else other[j]
    return 0
