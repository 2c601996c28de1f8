"""Loops over rows of channels that add up: moments, and the sums of the backward.

They run down `strips` of flat arrays and fetch the rows that come next ahead. Sums run over few
rows in float32, or the elements' float64, and are added up in float64.
"""

from __future__ import annotations

import numpy as np

from homeostat.kernels.activation import behind
from homeostat.kernels.compiled import compiled, inlined
from homeostat.kernels.elements import multiply_add, narrow, widen, zero_of
from homeostat.kernels.strips import (
    BLOCK,
    ahead_of,
    aligned,
    closed_up,
    repeated,
    rows_per_part,
    rows_per_visit,
    rows_side_by_side,
    start_of,
    strips_of,
)
from homeostat.kernels.vectors import broadcast, lanes_of, load, prefetch, store


@compiled
def merge(count, mean, spread, more, its_mean, its_spread):
    """Merge in place the moments of more rows; spread is the sum of squares (Chan et al. 1979)."""
    total = count + more
    for j in range(mean.size):
        delta = its_mean[j] - mean[j]
        mean[j] += delta * (more / total)
        spread[j] += its_spread[j] + delta * delta * (count * (more / total))


@compiled
def _moments_of_few(x, rows, origin, mean, spread):
    """Compute the moments of rows, the means as differences from an origin of each channel."""
    channels = mean.size
    offset = np.zeros(channels)
    mean[:] = 0
    spread[:] = 0
    for i in range(0, x.size, channels):
        for j in range(channels):
            mean[j] += widen(x[i + j]) - origin[j]
    for j in range(channels):
        mean[j] /= rows
    for i in range(0, x.size, channels):
        for j in range(channels):
            centred = widen(x[i + j]) - origin[j] - mean[j]
            offset[j] += centred
            spread[j] += centred * centred
    for j in range(channels):
        spread[j] -= offset[j] * (offset[j] / rows)
        mean[j] += offset[j] / rows


@inlined
def _strip_mean(x, at, width, rows):
    """Return the mean of a strip's rows, a multiple of four."""
    sums = broadcast(zero_of(x), x)
    for i in range(at, at + rows * width, 4 * width):
        first, second = load(x, i), load(x, i + width)
        third, fourth = load(x, i + 2 * width), load(x, i + 3 * width)
        sums += (first + second) + (third + fourth)
    return sums * (1.0 / rows)


@inlined
def _strip_moments(x, at, width, rows, ahead, slot, pivot, sums, squares):
    """Add a strip's rows, a multiple of four and centred on the pivot, to the sums in its slot."""
    p, s, q = load(pivot, slot), load(sums, slot), load(squares, slot)
    for i in range(at, at + rows * width, 4 * width):
        prefetch(x, i + ahead)
        prefetch(x, i + ahead + width)
        prefetch(x, i + ahead + 2 * width)
        prefetch(x, i + ahead + 3 * width)
        first, second = load(x, i) - p, load(x, i + width) - p
        third, fourth = load(x, i + 2 * width) - p, load(x, i + 3 * width) - p
        s += (first + second) + (third + fourth)
        q += (first * first + second * second) + (third * third + fourth * fourth)
    store(sums, slot, s, False)
    store(squares, slot, q, False)


@inlined
def _merge_block(before, rows, origin, pivot, sums, squares, mean, spread):
    """Merge a block's moments as `merge` does, the means as differences from an origin."""
    share, each = rows / (before + rows), 1.0 / rows
    weight = before * share
    for j in range(mean.size):
        offset = sums[j] * each
        delta = (pivot[j] - origin[j]) + offset - mean[j]
        mean[j] += delta * share
        spread[j] += (squares[j] - sums[j] * offset) + delta * delta * weight


@compiled
def moments(x, channels, mean, spread):
    """Compute each channel's mean and sum of squared deviations.

    Each block of rows is centred on the mean of its first quarter, which is at most the square root
    of three of its standard deviations away from its own: neither a large mean nor an outlier
    costs digits. Blocks are merged by how far their means are from the first row.

    Args:
        x: flat, rows of channels, at least one.
        channels: how many.
        mean: float64, (channels,), written.
        spread: float64, (channels,), written.
    """
    times, lanes = rows_side_by_side(channels), lanes_of(x)
    width = times * channels
    strips, visit = strips_of(width, lanes), BLOCK // 4
    ahead = ahead_of(visit, width)
    zero, slots = zero_of(x), strips * lanes
    wide_mean, wide_spread = np.zeros(slots), np.zeros(slots)
    pivot, sums, squares = aligned(slots, zero), aligned(slots, zero), aligned(slots, zero)
    origin = np.empty(slots)
    for j in range(slots):
        column = start_of(j // lanes, width, lanes) + j % lanes
        origin[j] = widen(x[column % channels])
    whole = x.size // (4 * width) * 4
    for block in range(0, whole, BLOCK):
        rows = min(BLOCK, whole - block)
        sums[:] = zero
        squares[:] = zero
        for first in range(block, block + rows, visit):
            its_rows = min(visit, whole - first)
            for strip in range(strips):
                at = first * width + start_of(strip, width, lanes)
                if first == block:
                    store(pivot, strip * lanes, _strip_mean(x, at, width, its_rows), False)
                _strip_moments(x, at, width, its_rows, ahead, strip * lanes, pivot, sums, squares)
        _merge_block(block, rows, origin, pivot, sums, squares, wide_mean, wide_spread)
    wide_mean = closed_up(wide_mean, width, lanes)
    wide_spread = closed_up(wide_spread, width, lanes)
    mean[:] = 0
    spread[:] = 0
    for i in range(times if whole else 0):
        one = slice(i * channels, (i + 1) * channels)
        merge(i * whole, mean, spread, whole, wide_mean[one], wide_spread[one])
    rest = (x.size - whole * width) // channels
    origin = closed_up(origin, width, lanes)[:channels]
    if rest:
        its_mean, its_spread = np.empty(channels), np.empty(channels)
        _moments_of_few(x[whole * width :], rest, origin, its_mean, its_spread)
        merge(whole * times, mean, spread, rest, its_mean, its_spread)
    mean += origin


@inlined
def _strip_sums(
    x, dy, y, kept, g_out, writes, at, width, rows, ahead, slot, start,
    mean, scale, shift, slope, sums, products, past,
):  # fmt: skip
    """Add a strip's rows to the sums of g and of g * (x - mean) in its slot."""
    p, s, q = load(mean, start), load(sums, slot), load(products, slot)
    a, b = load(scale, start), load(shift, start)
    for i in range(at, at + rows * width, width):
        prefetch(x, i + ahead)
        prefetch(dy, i + ahead)
        centred, g = load(x, i) - p, load(dy, i)
        z = multiply_add(centred, a, b)
        if kept:
            prefetch(y, i + ahead)
            z = load(y, i)
        g = behind(z, g, slope)
        if writes:
            store(g_out, i, g, past)
        s += g
        q += g * centred
    store(sums, slot, s, False)
    store(products, slot, q, False)


@compiled
def gradient_sums(
    x, dy, y, kept, g_out, writes, mean, scale, shift, slope, sum_g, sum_centred, past, size
):
    """Sum g and g * (x - mean) over the rows, where g = dy * activation'(z).

    z is y where it was kept, else (x - mean) * scale + shift.

    Args:
        x: flat, rows of channels.
        dy: like x.
        y: like x, for z.
        kept: whether z is there.
        g_out: like x, for g.
        writes: whether g is written there.
        mean: of x's statistics' dtype, (channels,).
        scale: like mean.
        shift: like mean.
        slope: like mean, the activation's for negative values; 1 for no activation.
        sum_g: float64, (channels,), written.
        sum_centred: float64, (channels,), written.
        past: whether g is written past the cache, as in `apply`.
        size: as in `apply`.
    """
    channels, lanes = mean.size, lanes_of(x)
    times = rows_side_by_side(channels)
    width = times * channels
    strips, visit = strips_of(width, lanes), rows_per_visit(x, width, size)
    ahead = ahead_of(visit, width)
    m, a, b = repeated(mean, times), repeated(scale, times), repeated(shift, times)
    zero, slots = zero_of(x), strips * lanes
    short_g, short_centred = aligned(slots, zero), aligned(slots, zero)
    long_g, long_centred = np.zeros(slots), np.zeros(slots)
    whole = x.size // width
    for block in range(0, whole, BLOCK):
        short_g[:] = zero
        short_centred[:] = zero
        last = min(block + BLOCK, whole)
        for first in range(block, last, visit):
            rows = min(visit, last - first)
            for strip in range(strips):
                start, slot = start_of(strip, width, lanes), strip * lanes
                at = first * width + start
                _strip_sums(
                    x, dy, y, kept, g_out, writes, at, width, rows, ahead, slot, start,
                    m, a, b, slope, short_g, short_centred, past,
                )  # fmt: skip
        for j in range(slots):
            long_g[j] += short_g[j]
            long_centred[j] += short_centred[j]
    long_g = closed_up(long_g, width, lanes)
    long_centred = closed_up(long_centred, width, lanes)
    for i in range(whole * width, x.size):
        j = (i - whole * width) % channels
        centred, g = widen(x[i]) - m[j], widen(dy[i])
        z = widen(y[i]) if kept else multiply_add(centred, a[j], b[j])
        g = behind(z, g, slope)
        if writes:
            g_out[i] = narrow(g, g_out)
        long_g[j] += g
        long_centred[j] += g * centred
    for j in range(channels):
        sum_g[j] = long_g[j::channels].sum()
        sum_centred[j] = long_centred[j::channels].sum()


@compiled
def merge_parts(rows, channels, room, are_moments, one, other):
    """Merge all parts' rooms: means and sums of squared deviations, or gradient sums.

    Args:
        rows: how many there are.
        channels: of each row.
        room: float64, (parts * 2 * channels,).
        are_moments: which of the two it is.
        one: float64, (channels,), written.
        other: like one.
    """
    size = rows_per_part(rows, channels)
    one[:] = 0
    other[:] = 0
    for part in range(-(-rows // size)):
        at, count = 2 * part * channels, part * size
        its_one, its_other = room[at : at + channels], room[at + channels : at + 2 * channels]
        if are_moments:
            merge(count, one, other, min(size, rows - count), its_one, its_other)
        else:
            for j in range(channels):
                one[j] += its_one[j]
                other[j] += its_other[j]
