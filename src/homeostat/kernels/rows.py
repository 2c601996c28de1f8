"""Loops over rows of channels: a tensor whose channels come last.

Rows are taken side by side as one wide row, so that the inner loops are long whatever the number of
channels. float32 sums run over few rows and are added up in float64.
A tensor is divided into parts by its shape alone, and the parts' sums are merged in their order:
the result is the same, bit by bit, on any number of threads.

Arrays are flat: of rows of a two-dimensional array numba would not know that they are contiguous.
"""

from __future__ import annotations

import numpy as np

from homeostat.kernels.compiled import compiled
from homeostat.kernels.elements import choose, multiply_add, narrow, take, widen, zero_of

# The least width of a wide row: what is kept for one stays in the first-level cache.
WIDTH = 1024
# Wide rows that a float32 sum runs over; so many of them stay in the second-level cache.
BLOCK = 32
# The elements of a part, enough to be worth sharing with another thread, and the most parts.
PART_ELEMENTS = 2**18
MOST_PARTS = 64


@compiled
def rows_per_part(rows, channels):
    """Return how many rows a part has (the last one the rest): a multiple of four wide rows."""
    parts = max(1, min(MOST_PARTS, rows * channels // PART_ELEMENTS))
    step = 4 * rows_side_by_side(channels, WIDTH)
    return -(-rows // (parts * step)) * step


@compiled
def rows_side_by_side(channels, width):
    """Return how many rows make a wide row of at least about a width: an odd number.

    Wide rows of 4096 bytes each would fall on the same lines of the cache.
    """
    return max(1, width // channels) | 1


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
def _add_four(x, sums):
    n = sums.size
    x0, x1, x2, x3 = x[:n], x[n : 2 * n], x[2 * n : 3 * n], x[3 * n :]
    for j in range(n):
        sums[j] += (widen(x0[j]) + widen(x1[j])) + (widen(x2[j]) + widen(x3[j]))


@compiled
def _add_four_centred(x, pivot, sums, squares):
    n = sums.size
    x0, x1, x2, x3 = x[:n], x[n : 2 * n], x[2 * n : 3 * n], x[3 * n :]
    for j in range(n):
        p = pivot[j]
        c0, c1, c2, c3 = widen(x0[j]) - p, widen(x1[j]) - p, widen(x2[j]) - p, widen(x3[j]) - p
        sums[j] += (c0 + c1) + (c2 + c3)
        squares[j] += (c0 * c0 + c1 * c1) + (c2 * c2 + c3 * c3)


@compiled
def merge(count, mean, spread, more, its_mean, its_spread):
    """Merge in place the moments of more rows; spread is the sum of squares (Chan et al. 1979)."""
    total = count + more
    for j in range(mean.size):
        delta = its_mean[j] - mean[j]
        mean[j] += delta * (more / total)
        spread[j] += its_spread[j] + delta * delta * (count * (more / total))


@compiled
def _moments_of_few(x, rows, mean, spread):
    channels = mean.size
    offset = np.zeros(channels)
    mean[:] = 0
    spread[:] = 0
    for i in range(0, x.size, channels):
        for j in range(channels):
            mean[j] += widen(x[i + j])
    for j in range(channels):
        mean[j] /= rows
    for i in range(0, x.size, channels):
        for j in range(channels):
            centred = widen(x[i + j]) - mean[j]
            offset[j] += centred
            spread[j] += centred * centred
    for j in range(channels):
        spread[j] -= offset[j] * (offset[j] / rows)
        mean[j] += offset[j] / rows


@compiled
def moments(x, channels, mean, spread):
    """Compute each channel's mean and sum of squared deviations.

    Each block of rows is centred on its own mean, so neither a large mean nor an outlier elsewhere
    costs digits.

    Args:
        x: flat, rows of channels, at least one.
        channels: how many.
        mean: float64, (channels,), written.
        spread: float64, (channels,), written.
    """
    times = rows_side_by_side(channels, WIDTH)
    width = times * channels
    wide_mean, wide_spread = np.zeros(width), np.zeros(width)
    its_mean, its_spread = np.empty(width), np.empty(width)
    zero = zero_of(x)
    pivot, sums, squares = _aligned(width, zero), _aligned(width, zero), _aligned(width, zero)
    whole = x.size // (4 * width) * (4 * width)
    for first in range(0, whole, BLOCK * width):
        last = min(first + BLOCK * width, whole)
        rows = (last - first) // width
        pivot[:] = zero
        for i in range(first, last, 4 * width):
            _add_four(x[i : i + 4 * width], pivot)
        for j in range(width):
            pivot[j] /= zero + rows
        sums[:] = zero
        squares[:] = zero
        for i in range(first, last, 4 * width):
            _add_four_centred(x[i : i + 4 * width], pivot, sums, squares)
        for j in range(width):
            offset = np.float64(sums[j]) / rows
            its_mean[j] = pivot[j] + offset
            its_spread[j] = squares[j] - sums[j] * offset
        merge(first // width, wide_mean, wide_spread, rows, its_mean, its_spread)
    mean[:] = 0
    spread[:] = 0
    rows = whole // width
    for i in range(times if rows else 0):
        one = slice(i * channels, (i + 1) * channels)
        merge(i * rows, mean, spread, rows, wide_mean[one], wide_spread[one])
    rest = (x.size - whole) // channels
    if rest:
        its_mean, its_spread = its_mean[:channels], its_spread[:channels]
        _moments_of_few(x[whole:], rest, its_mean, its_spread)
        merge(rows * times, mean, spread, rest, its_mean, its_spread)


@compiled
def activate(z, slope):
    """Return z where it is positive or NaN, else slope * z; z itself with a slope of None."""
    if slope is None:
        return z
    # A slope of 0 makes -0 of a negative value and NaN of minus infinity.
    return choose(z <= 0, choose(slope != 0, z * slope, 0), z)


@compiled
def behind(z, value, slope):
    """Return value times the derivative of the activation that z went into, or came out of."""
    # A slope of 0 makes 0 of an infinite gradient too.
    return choose(z > 0, value, choose(slope != 0, value * slope, 0))


@compiled
def _add_gradients(x, dy, y, mean, slope, scale, shift, sum_g, sum_centred):
    for j in range(x.size):
        centred, g = widen(x[j]) - mean[j], widen(dy[j])
        # Before the activation's derivative: what is always computed is always loaded.
        product = g * centred
        if y is not None:
            z = widen(y[j])
            g, product = behind(z, g, slope), behind(z, product, slope)
        elif scale is not None:
            z = multiply_add(centred, scale[j], shift[j])
            g, product = behind(z, g, slope), behind(z, product, slope)
        sum_g[j] += g
        sum_centred[j] += product


@compiled
def gradient_sums(x, dy, y, mean, slope, scale, shift, sum_g, sum_centred):
    """Sum g and g * (x - mean) over the rows, where g = dy * activation'(z).

    z is y where there is one, else (x - mean) * scale + shift; with neither, g is dy.

    Args:
        x: flat, rows of channels.
        dy: like x.
        y: like x, or None.
        mean: of x's statistics' dtype, (channels,).
        slope: like mean, the activation's for negative values, or None.
        scale: like mean, or None.
        shift: like mean, or None.
        sum_g: float64, (channels,), written.
        sum_centred: float64, (channels,), written.
    """
    channels = mean.size
    times = rows_side_by_side(channels, WIDTH)
    width = times * channels
    m = _repeated(mean, times)
    # Never None: numba would ask for each element whether it is.
    a = m if scale is None else _repeated(scale, times)
    b = m if shift is None else _repeated(shift, times)
    zero = zero_of(x)
    short_g, short_centred = _aligned(width, zero), _aligned(width, zero)
    long_g, long_centred = np.zeros(width), np.zeros(width)
    whole = x.size // width * width
    for first in range(0, whole, BLOCK * width):
        short_g[:] = zero
        short_centred[:] = zero
        for i in range(first, min(first + BLOCK * width, whole), width):
            its_x, its_dy = x[i : i + width], dy[i : i + width]
            if y is not None:
                its_y = y[i : i + width]
                _add_gradients(its_x, its_dy, its_y, m, slope, None, None, short_g, short_centred)
            elif scale is not None:
                _add_gradients(its_x, its_dy, None, m, slope, a, b, short_g, short_centred)
            else:
                _add_gradients(its_x, its_dy, None, m, None, None, None, short_g, short_centred)
        for j in range(width):
            long_g[j] += short_g[j]
            long_centred[j] += short_centred[j]
    for i in range(whole, x.size):
        j = (i - whole) % channels
        centred, g = widen(x[i]) - m[j], widen(dy[i])
        if y is not None:
            g = behind(widen(y[i]), g, slope)
        elif scale is not None:
            g = behind(multiply_add(centred, a[j], b[j]), g, slope)
        long_g[j] += g
        long_centred[j] += g * centred
    for j in range(channels):
        sum_g[j] = long_g[j::channels].sum()
        sum_centred[j] = long_centred[j::channels].sum()


@compiled
def _apply_row(x, residual, mean, scale, shift, slope, y):
    for j in range(x.size):
        z = multiply_add(widen(x[j]) - mean[j], scale[j], shift[j])
        if residual is not None:
            z += widen(residual[j])
        y[j] = narrow(activate(z, slope), y)


@compiled
def _gradient_row(x, dy, y, mean, scale, shift, slope, by_x, constant, dx, g_out):
    for j in range(x.size):
        centred, g = widen(x[j]) - mean[j], widen(dy[j])
        rest = multiply_add(by_x[j], centred, constant[j])
        wanted = multiply_add(scale[j], g, rest)
        if slope is not None:
            z = multiply_add(centred, scale[j], shift[j]) if y is None else widen(y[j])
            below = choose(slope != 0, multiply_add(scale[j], g * slope, rest), rest)
            wanted = choose(z > 0, wanted, below)
            if g_out is not None:
                g_out[j] = narrow(behind(z, g, slope), g_out)
        dx[j] = narrow(wanted, dx)


# The leaves that threads share: each takes parts by the counter until none is left.


@compiled
def _bounds(part, x, channels):
    size = rows_per_part(x.size // channels, channels) * channels
    return part * size, min((part + 1) * size, x.size)


@compiled
def moments_leaf(counter, x, channels, room):
    """Compute the moments of parts into room, float64, (parts * 2 * channels,)."""
    part = take(counter)
    first, last = _bounds(part, x, channels)
    while first < last:
        at = 2 * part * channels
        mean, spread = room[at : at + channels], room[at + channels : at + 2 * channels]
        moments(x[first:last], channels, mean, spread)
        part = take(counter)
        first, last = _bounds(part, x, channels)


@compiled
def sums_leaf(counter, x, dy, y, mean, scale, shift, slope, room):
    """Compute the gradient sums of parts into room, float64, (parts * 2 * channels,)."""
    channels = mean.size
    part = take(counter)
    first, last = _bounds(part, x, channels)
    while first < last:
        at = 2 * part * channels
        one, other = room[at : at + channels], room[at + channels : at + 2 * channels]
        its_x, its_dy = x[first:last], dy[first:last]
        if slope is None:
            gradient_sums(its_x, its_dy, None, mean, None, None, None, one, other)
        elif y is None:
            gradient_sums(its_x, its_dy, None, mean, slope, scale, shift, one, other)
        else:
            gradient_sums(its_x, its_dy, y[first:last], mean, slope, None, None, one, other)
        part = take(counter)
        first, last = _bounds(part, x, channels)


@compiled
def apply_leaf(counter, x, residual, mean, scale, shift, slope, y):
    """Compute y = activation((x - mean) * scale + shift + residual) in parts."""
    channels = mean.size
    times = rows_side_by_side(channels, WIDTH)
    p, a, b = _repeated(mean, times), _repeated(scale, times), _repeated(shift, times)
    first, last = _bounds(take(counter), x, channels)
    while first < last:
        for i in range(first, last, p.size):
            end = min(i + p.size, last)
            if residual is None:
                _apply_row(x[i:end], None, p, a, b, slope, y[i:end])
            else:
                _apply_row(x[i:end], residual[i:end], p, a, b, slope, y[i:end])
        first, last = _bounds(take(counter), x, channels)


@compiled
def gradient_leaf(counter, x, dy, y, mean, scale, shift, slope, by_x, constant, dx, g_out):
    """Compute dx = scale * g + by_x * (x - mean) + constant in parts, and g where there is a y."""
    channels = mean.size
    times = rows_side_by_side(channels, WIDTH)
    p, a, b = _repeated(mean, times), _repeated(scale, times), _repeated(shift, times)
    k, c = _repeated(by_x, times), _repeated(constant, times)
    first, last = _bounds(take(counter), x, channels)
    while first < last:
        for i in range(first, last, p.size):
            end = min(i + p.size, last)
            its_x, its_dy, its_dx = x[i:end], dy[i:end], dx[i:end]
            if y is None:
                _gradient_row(its_x, its_dy, None, p, a, b, slope, k, c, its_dx, None)
            else:
                its_y, its_g = y[i:end], g_out[i:end]
                _gradient_row(its_x, its_dy, its_y, p, a, b, slope, k, c, its_dx, its_g)
        first, last = _bounds(take(counter), x, channels)


@compiled
def merge_moments(x, channels, room, mean, spread):
    """Merge the moments of all parts; mean and spread, float64, (channels,), are written."""
    rows = x.size // channels
    size = rows_per_part(rows, channels)
    mean[:] = 0
    spread[:] = 0
    for part in range(-(-rows // size)):
        at, count = 2 * part * channels, part * size
        its_mean, its_spread = room[at : at + channels], room[at + channels : at + 2 * channels]
        merge(count, mean, spread, min(size, rows - count), its_mean, its_spread)


@compiled
def merge_sums(x, channels, room, one, other):
    """Add up the gradient sums of all parts; one and other, float64, (channels,), are written."""
    rows = x.size // channels
    one[:] = 0
    other[:] = 0
    for part in range(-(-rows // rows_per_part(rows, channels))):
        at = 2 * part * channels
        for j in range(channels):
            one[j] += room[at + j]
            other[j] += room[at + channels + j]
