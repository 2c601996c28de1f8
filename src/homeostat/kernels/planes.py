"""Loops over planes: a tensor (outer, channels, inner) whose channels come before other axes.

Each of its lines, the inner elements of one channel, is contiguous. Long lines are divided into
pieces, by their length alone, and the pieces' sums are merged in their order: the result is the
same, bit by bit, on any number of threads.
"""

from __future__ import annotations

import numpy as np

from homeostat.kernels.compiled import compiled
from homeostat.kernels.elements import add, multiply_add, narrow, rounded, widen, zero_of
from homeostat.kernels.rows import activate, behind
from homeostat.kernels.vectors import broadcast, lanes_of, load, prefetch, store, total

# The elements that a float32 sum runs over; they stay in the first-level cache.
SEGMENT = 2048
# How many elements ahead memory is fetched.
AHEAD = 1024
# The elements of a piece, and of a part, which is worth sharing with another thread.
PIECE_ELEMENTS = 2**16
PART_ELEMENTS = 2**17


@compiled
def pieces_per_line(inner):
    """Return into how many pieces a line is divided."""
    return max(1, inner // PIECE_ELEMENTS)


@compiled
def pieces_per_part(inner):
    """Return how many pieces a part has."""
    return max(1, PART_ELEMENTS * pieces_per_line(inner) // inner)


@compiled
def bounds(piece, inner):
    """Return the first element of a piece and the one behind its last."""
    pieces = pieces_per_line(inner)
    size = -(-inner // pieces)
    line, k = piece // pieces, piece % pieces
    return line * inner + k * size, line * inner + min((k + 1) * size, inner)


@compiled
def _merged(count, mean, spread, more, its_mean, its_spread):
    share = more / (count + more)
    delta = its_mean - mean
    return mean + delta * share, spread + its_spread + delta * delta * (count * share)


@compiled
def _mean_of_first(x):
    """Return the mean of about the first quarter."""
    lanes = lanes_of(x)
    if x.size < lanes:
        rest = zero_of(x)
        for i in range(x.size):
            rest = add(rest, widen(x[i]))
        return rounded(rest / x.size, x)
    quarter = max(1, x.size // (4 * lanes)) * lanes
    sums = broadcast(zero_of(x), x)
    for i in range(0, quarter, lanes):
        prefetch(x, i + AHEAD)
        sums += load(x, i)
    return rounded(total(sums) / quarter, x)


@compiled
def _sums_centred(x, pivot):
    p, s = broadcast(pivot, x), broadcast(zero_of(x), x)
    q, whole = broadcast(zero_of(x), x), x.size // lanes_of(x) * lanes_of(x)
    for i in range(0, whole, lanes_of(x)):
        prefetch(x, i + AHEAD)
        centred = load(x, i) - p
        s += centred
        q += centred * centred
    rest, squares = zero_of(x), zero_of(x)
    for i in range(whole, x.size):
        centred = widen(x[i]) - pivot
        rest = add(rest, centred)
        squares = add(squares, centred * centred)
    return total(s) + rest, total(q) + squares


@compiled
def piece_moments(x):
    """Return the mean and the sum of squared deviations.

    Each segment is centred on the mean of its first quarter, see `rows.moments`.
    """
    mean, its_spread = 0.0, 0.0
    for first in range(0, x.size, SEGMENT):
        segment = x[first : first + SEGMENT]
        pivot = _mean_of_first(segment)
        sums, squares = _sums_centred(segment, pivot)
        offset = np.float64(sums) / segment.size
        more = squares - sums * offset
        mean, its_spread = _merged(first, mean, its_spread, segment.size, pivot + offset, more)
    return mean, its_spread


@compiled
def _segment_sums(x, dy, y, kept, g_out, writes, first, last, mean, scale, shift, slope, past):
    p, a, b = broadcast(mean, x), broadcast(scale, x), broadcast(shift, x)
    s, q = broadcast(zero_of(x), x), broadcast(zero_of(x), x)
    whole = first + (last - first) // lanes_of(x) * lanes_of(x)
    for i in range(first, whole, lanes_of(x)):
        prefetch(x, i + AHEAD)
        prefetch(dy, i + AHEAD)
        centred, g = load(x, i) - p, load(dy, i)
        z = multiply_add(centred, a, b)
        if kept:
            prefetch(y, i + AHEAD)
            z = load(y, i)
        g = behind(z, g, slope)
        if writes:
            store(g_out, i, g, past)
        s += g
        q += g * centred
    rest, products = zero_of(x), zero_of(x)
    for i in range(whole, last):
        centred, g = widen(x[i]) - mean, widen(dy[i])
        z = widen(y[i]) if kept else multiply_add(centred, scale, shift)
        g = behind(z, g, slope)
        if writes:
            g_out[i] = narrow(g, g_out)
        rest = add(rest, g)
        products = add(products, g * centred)
    return total(s) + rest, total(q) + products


@compiled
def piece_sums(x, dy, y, kept, g_out, writes, mean, scale, shift, slope, past):
    """Return the sums of g and of g * (x - mean), where g = dy * activation'(z).

    z is y where it was kept, else (x - mean) * scale + shift. g is written if asked for.
    """
    sum_g, sum_centred = 0.0, 0.0
    for first in range(0, x.size, SEGMENT):
        last = min(first + SEGMENT, x.size)
        short_g, short_centred = _segment_sums(
            x, dy, y, kept, g_out, writes, first, last, mean, scale, shift, slope, past
        )
        sum_g += short_g
        sum_centred += short_centred
    return sum_g, sum_centred


@compiled
def apply_piece(x, residual, adds, mean, scale, shift, slope, y, past):
    """Compute y = activation((x - mean) * scale + shift + residual), the residual if it adds."""
    p, a, b = broadcast(mean, x), broadcast(scale, x), broadcast(shift, x)
    whole = x.size // lanes_of(x) * lanes_of(x)
    for i in range(0, whole, lanes_of(x)):
        prefetch(x, i + AHEAD)
        z = multiply_add(load(x, i) - p, a, b)
        if adds:
            prefetch(residual, i + AHEAD)
            z += load(residual, i)
        store(y, i, activate(z, slope), past)
    for i in range(whole, x.size):
        z = multiply_add(widen(x[i]) - mean, scale, shift)
        if adds:
            z += widen(residual[i])
        y[i] = narrow(activate(z, slope), y)


@compiled
def gradient_piece(x, dy, mean, scale, shift, slope, by_x, constant, dx, past):
    """Compute dx = scale * g + by_x * (x - mean) + constant, where g = dy * activation'(z).

    z = (x - mean) * scale + shift.
    """
    p, a, b = broadcast(mean, x), broadcast(scale, x), broadcast(shift, x)
    k, c = broadcast(by_x, x), broadcast(constant, x)
    whole = x.size // lanes_of(x) * lanes_of(x)
    for i in range(0, whole, lanes_of(x)):
        prefetch(x, i + AHEAD)
        prefetch(dy, i + AHEAD)
        centred, g = load(x, i) - p, load(dy, i)
        g = behind(multiply_add(centred, a, b), g, slope)
        store(dx, i, multiply_add(a, g, multiply_add(k, centred, c)), past)
    for i in range(whole, x.size):
        centred, g = widen(x[i]) - mean, widen(dy[i])
        g = behind(multiply_add(centred, scale, shift), g, slope)
        dx[i] = narrow(multiply_add(scale, g, multiply_add(by_x, centred, constant)), dx)


@compiled
def merge_pieces(outers, channels, inner, room, are_moments, one, other):
    """Merge all pieces' rooms: means and sums of squared deviations, or gradient sums.

    Args:
        outers: how many outer indices there are.
        channels: of each.
        inner: elements of a line.
        room: float64, (pieces * 2,).
        are_moments: which of the two it is.
        one: float64, (channels,), written.
        other: like one.
    """
    pieces = pieces_per_line(inner)
    one[:] = 0
    other[:] = 0
    for outer in range(outers):
        for k in range(pieces):
            first, last = bounds(k, inner)
            count, more = outer * inner + first, last - first
            for c in range(channels):
                at = 2 * ((outer * channels + c) * pieces + k)
                if are_moments:
                    one[c], other[c] = _merged(
                        count, one[c], other[c], more, room[at], room[at + 1]
                    )
                else:
                    one[c] += room[at]
                    other[c] += room[at + 1]
