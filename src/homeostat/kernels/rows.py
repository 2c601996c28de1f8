"""Loops over rows of channels: a tensor whose channels come last.

Few channels are taken side by side as one wide row. A wide row is divided into strips, each as wide
as a vector, and a loop runs down a strip for a few rows, so that what a channel needs stays in
registers, and fetches the rows that come next ahead. Sums run over few rows in the elements' own
precision and are added up in float64.
A tensor is divided into parts by its shape alone, and the parts' sums are merged in their order:
the result is the same, bit by bit, on any number of threads.

Arrays are flat: of rows of a two-dimensional array numba would not know that they are contiguous.
"""

from __future__ import annotations

import numpy as np

from homeostat.kernels.compiled import compiled
from homeostat.kernels.elements import choose, multiply_add, narrow, widen, zero_like, zero_of
from homeostat.kernels.vectors import LANES, broadcast, lanes_of, load, prefetch, store

# The most columns of a wide row that is made of several.
WIDTH = 1024
# How many elements ahead memory is fetched, at least.
AHEAD = 2048
# The rows that a float32 sum runs over.
BLOCK = 32
# The elements of a part, enough to be worth sharing with another thread, and the most parts.
PART_ELEMENTS = 2**16
MOST_PARTS = 64


@compiled
def rows_per_part(rows, channels):
    """Return how many rows a part has (the last one the rest): a multiple of four wide rows."""
    parts = max(1, min(MOST_PARTS, rows * channels // PART_ELEMENTS))
    step = 4 * rows_side_by_side(channels)
    return -(-rows // (parts * step)) * step


@compiled
def rows_side_by_side(channels):
    """Return how many rows make a wide row: it fills strips, or has so many that waste is small."""
    for times in range(1, WIDTH // channels + 1):
        if times * channels % LANES == 0:
            return times
    return max(1, WIDTH // channels)


@compiled
def _rows_per_visit(width):
    """Return for how many rows a loop runs down a strip before the next one's turn.

    Few enough for memory to be read in its order, but where what all strips keep fills the
    first-level cache.
    """
    if width <= LANES:
        return BLOCK
    return 1 if width <= WIDTH else 8


@compiled
def _ahead(rows, width):
    """Return how far ahead a strip's memory is fetched: whole rows, those of a visit at least."""
    return max(rows, AHEAD // width) * width


@compiled
def _strips(width, lanes):
    return -(-width // lanes)


@compiled
def _start(strip, width, lanes):
    """Return a strip's first column; the last strip overlaps the one before it."""
    return min(strip * lanes, width - lanes)


@compiled
def _closed_up(sums, width, lanes):
    """Return each column's sum, once, from those of all strips, one after the other."""
    last = _strips(width, lanes) - 1
    twice = last * lanes - _start(last, width, lanes)
    for j in range(last * lanes, width):
        sums[j] = sums[j + twice]
    return sums[:width]


@compiled
def _aligned(size, value):
    """Return a new array full of a value, at the start of a line of the cache."""
    room = np.full(size + 16, value)
    first = -room.ctypes.data % 64 // room.itemsize
    return room[first : first + size]


@compiled
def _repeated(channels, times):
    wide = _aligned(times * channels.size, channels[0])
    for i in range(wide.size):
        wide[i] = channels[i % channels.size]
    return wide


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


@compiled
def _strip_mean(x, at, width, rows):
    """Return the mean of a strip's rows, a multiple of four."""
    sums = broadcast(zero_of(x), x)
    for i in range(at, at + rows * width, 4 * width):
        first, second = load(x, i), load(x, i + width)
        third, fourth = load(x, i + 2 * width), load(x, i + 3 * width)
        sums += (first + second) + (third + fourth)
    return sums * (1.0 / rows)


@compiled
def _strip_moments(x, at, width, rows, slot, pivot, sums, squares):
    """Add a strip's rows, a multiple of four and centred on the pivot, to the sums in its slot."""
    p, s, q = load(pivot, slot), load(sums, slot), load(squares, slot)
    ahead = _ahead(rows, width)
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


@compiled
def _merge_block(before, rows, origin, pivot, sums, squares, mean, spread):
    """Merge a block's moments, the means as differences from an origin."""
    its_mean, its_spread = np.empty(mean.size), np.empty(mean.size)
    for j in range(mean.size):
        offset = np.float64(sums[j]) / rows
        its_mean[j] = (pivot[j] - origin[j]) + offset
        its_spread[j] = squares[j] - sums[j] * offset
    merge(before, mean, spread, rows, its_mean, its_spread)


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
    strips, visit = _strips(width, lanes), BLOCK // 4
    zero, slots = zero_of(x), strips * lanes
    wide_mean, wide_spread = np.zeros(slots), np.zeros(slots)
    pivot, sums, squares = _aligned(slots, zero), _aligned(slots, zero), _aligned(slots, zero)
    origin = np.empty(slots)
    for j in range(slots):
        column = _start(j // lanes, width, lanes) + j % lanes
        origin[j] = widen(x[column % channels])
    whole = x.size // (4 * width) * 4
    for block in range(0, whole, BLOCK):
        rows = min(BLOCK, whole - block)
        sums[:] = zero
        squares[:] = zero
        for first in range(block, block + rows, visit):
            its_rows = min(visit, whole - first)
            for strip in range(strips):
                at = first * width + _start(strip, width, lanes)
                if first == block:
                    store(pivot, strip * lanes, _strip_mean(x, at, width, its_rows), False)
                _strip_moments(x, at, width, its_rows, strip * lanes, pivot, sums, squares)
        _merge_block(block, rows, origin, pivot, sums, squares, wide_mean, wide_spread)
    wide_mean = _closed_up(wide_mean, width, lanes)
    wide_spread = _closed_up(wide_spread, width, lanes)
    mean[:] = 0
    spread[:] = 0
    for i in range(times if whole else 0):
        one = slice(i * channels, (i + 1) * channels)
        merge(i * whole, mean, spread, whole, wide_mean[one], wide_spread[one])
    rest = (x.size - whole * width) // channels
    origin = _closed_up(origin, width, lanes)[:channels]
    if rest:
        its_mean, its_spread = np.empty(channels), np.empty(channels)
        _moments_of_few(x[whole * width :], rest, origin, its_mean, its_spread)
        merge(whole * times, mean, spread, rest, its_mean, its_spread)
    mean += origin


@compiled
def activate(z, slope):
    """Return z where it is positive or NaN, else slope * z; with a slope of 1, z."""
    # A slope of 0 makes -0 of a negative value and NaN of minus infinity.
    return choose(z <= 0, choose(slope != 0, z * slope, zero_like(z)), z)


@compiled
def behind(z, value, slope):
    """Return value times the derivative of the activation that z went into, or came out of."""
    # A slope of 0 makes 0 of an infinite gradient too.
    return choose(z > 0, value, choose(slope != 0, value * slope, zero_like(value)))


@compiled
def _strip_sums(
    x, dy, y, kept, g_out, writes, at, width, rows, slot, start,
    mean, scale, shift, slope, sums, products, past,
):  # fmt: skip
    """Add a strip's rows to the sums of g and of g * (x - mean) in its slot."""
    p, s, q = load(mean, start), load(sums, slot), load(products, slot)
    a, b = load(scale, start), load(shift, start)
    ahead = _ahead(rows, width)
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
    x, dy, y, kept, g_out, writes, mean, scale, shift, slope, sum_g, sum_centred, past
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
    """
    channels, lanes = mean.size, lanes_of(x)
    times = rows_side_by_side(channels)
    width = times * channels
    strips, visit = _strips(width, lanes), _rows_per_visit(width)
    m, a, b = _repeated(mean, times), _repeated(scale, times), _repeated(shift, times)
    zero, slots = zero_of(x), strips * lanes
    short_g, short_centred = _aligned(slots, zero), _aligned(slots, zero)
    long_g, long_centred = np.zeros(slots), np.zeros(slots)
    whole = x.size // width
    for block in range(0, whole, BLOCK):
        short_g[:] = zero
        short_centred[:] = zero
        last = min(block + BLOCK, whole)
        for first in range(block, last, visit):
            rows = min(visit, last - first)
            for strip in range(strips):
                start, slot = _start(strip, width, lanes), strip * lanes
                at = first * width + start
                _strip_sums(
                    x, dy, y, kept, g_out, writes, at, width, rows, slot, start,
                    m, a, b, slope, short_g, short_centred, past,
                )  # fmt: skip
        for j in range(slots):
            long_g[j] += short_g[j]
            long_centred[j] += short_centred[j]
    long_g = _closed_up(long_g, width, lanes)
    long_centred = _closed_up(long_centred, width, lanes)
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
def _apply_strip(x, residual, adds, at, width, rows, start, mean, scale, shift, slope, y, past):
    p, a, b = load(mean, start), load(scale, start), load(shift, start)
    ahead = _ahead(rows, width)
    for i in range(at, at + rows * width, width):
        prefetch(x, i + ahead)
        z = multiply_add(load(x, i) - p, a, b)
        if adds:
            prefetch(residual, i + ahead)
            z += load(residual, i)
        store(y, i, activate(z, slope), past)


@compiled
def _apply_rest(x, residual, adds, at, mean, scale, shift, slope, y):
    for i in range(at, x.size):
        j = i - at
        z = multiply_add(widen(x[i]) - mean[j], scale[j], shift[j])
        if adds:
            z += widen(residual[i])
        y[i] = narrow(activate(z, slope), y)


@compiled
def apply(x, residual, adds, mean, scale, shift, slope, y, past):
    """Compute y = activation((x - mean) * scale + shift + residual).

    Args:
        x: flat, rows of channels.
        residual: like x.
        adds: whether the residual is added.
        mean: of x's statistics' dtype, (channels,).
        scale: like mean.
        shift: like mean.
        slope: like mean, the activation's for negative values; 1 for no activation.
        y: like x, written.
        past: whether past the cache; y and each of its rows then start on lines of it.
    """
    times, lanes = rows_side_by_side(mean.size), lanes_of(x)
    p, a, b = _repeated(mean, times), _repeated(scale, times), _repeated(shift, times)
    width = p.size
    visit, whole = _rows_per_visit(width), x.size // width
    for first in range(0, whole, visit):
        rows = min(visit, whole - first)
        for strip in range(_strips(width, lanes)):
            start = _start(strip, width, lanes)
            at = first * width + start
            _apply_strip(x, residual, adds, at, width, rows, start, p, a, b, slope, y, past)
    _apply_rest(x, residual, adds, whole * width, p, a, b, slope, y)


@compiled
def _gradient_strip(
    x, dy, at, width, rows, start, mean, scale, shift, slope, by_x, constant, dx, past
):  # fmt: skip
    p, a, b = load(mean, start), load(scale, start), load(shift, start)
    k, c = load(by_x, start), load(constant, start)
    ahead = _ahead(rows, width)
    for i in range(at, at + rows * width, width):
        prefetch(x, i + ahead)
        prefetch(dy, i + ahead)
        centred, g = load(x, i) - p, load(dy, i)
        g = behind(multiply_add(centred, a, b), g, slope)
        store(dx, i, multiply_add(a, g, multiply_add(k, centred, c)), past)


@compiled
def _gradient_rest(x, dy, at, mean, scale, shift, slope, by_x, constant, dx):
    for i in range(at, x.size):
        j = i - at
        centred, g = widen(x[i]) - mean[j], widen(dy[i])
        g = behind(multiply_add(centred, scale[j], shift[j]), g, slope)
        rest = multiply_add(by_x[j], centred, constant[j])
        dx[i] = narrow(multiply_add(scale[j], g, rest), dx)


@compiled
def gradient(x, dy, mean, scale, shift, slope, by_x, constant, dx, past):
    """Compute dx = scale * g + by_x * (x - mean) + constant, where g = dy * activation'(z).

    z = (x - mean) * scale + shift.

    Args:
        x: flat, rows of channels.
        dy: like x.
        mean: of x's statistics' dtype, (channels,).
        scale: like mean.
        shift: like mean.
        slope: like mean, the activation's for negative values; 1 for g = dy.
        by_x: like mean.
        constant: like mean.
        dx: like x, written.
        past: as in `apply`.
    """
    times, lanes = rows_side_by_side(mean.size), lanes_of(x)
    p, a, b = _repeated(mean, times), _repeated(scale, times), _repeated(shift, times)
    k, c = _repeated(by_x, times), _repeated(constant, times)
    width = p.size
    visit, whole = _rows_per_visit(width), x.size // width
    for first in range(0, whole, visit):
        rows = min(visit, whole - first)
        for strip in range(_strips(width, lanes)):
            start = _start(strip, width, lanes)
            at = first * width + start
            _gradient_strip(x, dy, at, width, rows, start, p, a, b, slope, k, c, dx, past)
    _gradient_rest(x, dy, whole * width, p, a, b, slope, k, c, dx)


@compiled
def bounds(part, size, channels):
    """Return the first element of a part and the one behind its last."""
    step = rows_per_part(size // channels, channels) * channels
    return part * step, min((part + 1) * step, size)


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
