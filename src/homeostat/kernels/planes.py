"""Loops over planes: a tensor (outer, channels, inner) whose channels come before other axes.

Each of its lines, the inner elements of one channel, is contiguous. Long lines are divided into
pieces, by their length alone, and the pieces' sums are merged in their order: the result is the
same, bit by bit, on any number of threads. A piece's last vector overlaps the one before it, and a
piece with fewer elements than a vector is the start of one.
"""

from __future__ import annotations

import numpy as np

from homeostat.kernels.activation import activate, behind
from homeostat.kernels.compiled import compiled, inlined
from homeostat.kernels.elements import choose, multiply_add, rounded, zero_of
from homeostat.kernels.vectors import (
    broadcast,
    lanes_from,
    lanes_of,
    load,
    load_all,
    prefetch,
    store,
    store_all,
    total,
)

# The vectors that a float32 sum runs over, a segment; they stay in the first-level cache.
VECTORS = 32
# How many elements ahead memory is fetched.
AHEAD = 1024
# The elements of a piece, and of a part, which is worth sharing with another thread; the most
# pieces of a line.
PIECE_ELEMENTS = 2**16
PART_ELEMENTS = 2**16
MOST_PIECES = 512
# The elements that a piece has a multiple of, so that it starts on a line of the cache as its line
# does.
EVEN = 64


@compiled
def pieces_per_line(inner):
    """Return into how many pieces a line is divided."""
    return max(1, min(MOST_PIECES, inner // PIECE_ELEMENTS))


@compiled
def pieces_per_part(inner):
    """Return how many pieces a part has."""
    return max(1, PART_ELEMENTS * pieces_per_line(inner) // inner)


@compiled
def piece_size(inner):
    """Return the elements of a line's pieces but the last, which has the rest."""
    return -(-inner // (pieces_per_line(inner) * EVEN)) * EVEN


@inlined
def _merged(count, mean, spread, more, its_mean, its_spread):
    share = more / (count + more)
    delta = its_mean - mean
    return mean + delta * share, spread + its_spread + delta * delta * (count * share)


@inlined
def _mean_of_first(x, first, last):
    """Return the mean of about the first quarter of a segment, or of what is before its end."""
    lanes = lanes_of(x)
    if x.size < lanes:
        prefetch(x, AHEAD)
        return rounded(total(load_all(x)) / x.size, x)
    first = min(first, x.size - lanes)
    quarter = max(1, (last - first) // (4 * lanes)) * lanes
    sums = broadcast(zero_of(x), x)
    for i in range(first, first + quarter, lanes):
        prefetch(x, i + AHEAD)
        sums += load(x, i)
    return rounded(total(sums) / quarter, x)


@inlined
def _sums_centred(x, first, last, pivot):
    """Return the sums of a segment's differences from the pivot and of their squares."""
    lanes, zero = lanes_of(x), zero_of(x)
    none, p = broadcast(zero, x), broadcast(pivot, x)
    if x.size < lanes:
        centred = choose(lanes_from(x.size, x), none, load_all(x) - p)
        return total(centred), total(centred * centred)
    s, q = none, none
    for i in range(first, last, lanes):
        at = min(i, last - lanes)
        prefetch(x, at + AHEAD)
        centred = choose(lanes_from(i - at, x), load(x, at) - p, none)
        s += centred
        q += centred * centred
    return total(s), total(q)


@inlined
def piece_moments(x):
    """Return the mean and the sum of squared deviations.

    Each segment is centred on the mean of its first quarter, see `sums.moments`.
    """
    mean, its_spread, segment = 0.0, 0.0, VECTORS * lanes_of(x)
    for first in range(0, x.size, segment):
        last = min(first + segment, x.size)
        pivot, size = _mean_of_first(x, first, last), last - first
        sums, squares = _sums_centred(x, first, last, pivot)
        offset = np.float64(sums) / size
        more = squares - sums * offset
        mean, its_spread = _merged(first, mean, its_spread, size, pivot + offset, more)
    return mean, its_spread


@inlined
def _segment_sums(
    x, dy, y, kept, g_out, writes, first, last, mean, scale, shift, slope, past
):  # fmt: skip
    lanes, zero = lanes_of(x), zero_of(x)
    p, a, b = broadcast(mean, x), broadcast(scale, x), broadcast(shift, x)
    none = broadcast(zero, x)
    if x.size < lanes:
        prefetch(x, AHEAD)
        prefetch(dy, AHEAD)
        centred = load_all(x) - p
        z = multiply_add(centred, a, b)
        if kept:
            prefetch(y, AHEAD)
            z = load_all(y)
        g = behind(z, load_all(dy), slope)
        if writes:
            store_all(g_out, g)
        # Behind the end dy is 0, and so is g.
        return total(g), total(g * centred)
    s, q = none, none
    for i in range(first, last, lanes):
        at = min(i, last - lanes)
        prefetch(x, at + AHEAD)
        prefetch(dy, at + AHEAD)
        centred = load(x, at) - p
        z = multiply_add(centred, a, b)
        if kept:
            prefetch(y, at + AHEAD)
            z = load(y, at)
        g = behind(z, load(dy, at), slope)
        if writes:
            store(g_out, at, g, past)
        g = choose(lanes_from(i - at, x), g, none)
        s += g
        q += g * centred
    return total(s), total(q)


@inlined
def piece_sums(x, dy, y, kept, g_out, writes, mean, scale, shift, slope, past):
    """Return the sums of g and of g * (x - mean), where g = dy * activation'(z).

    z is y where it was kept, else (x - mean) * scale + shift. g is written if asked for.
    """
    sum_g, sum_centred, segment = 0.0, 0.0, VECTORS * lanes_of(x)
    for first in range(0, x.size, segment):
        last = min(first + segment, x.size)
        short_g, short_centred = _segment_sums(
            x, dy, y, kept, g_out, writes, first, last, mean, scale, shift, slope, past
        )
        sum_g += short_g
        sum_centred += short_centred
    return sum_g, sum_centred


@inlined
def apply_piece(x, residual, adds, mean, scale, shift, slope, y, past):
    """Compute y = activation((x - mean) * scale + shift + residual), the residual if it adds."""
    p, a, b = broadcast(mean, x), broadcast(scale, x), broadcast(shift, x)
    if x.size < lanes_of(x):
        prefetch(x, AHEAD)
        z = multiply_add(load_all(x) - p, a, b)
        if adds:
            prefetch(residual, AHEAD)
            z += load_all(residual)
        store_all(y, activate(z, slope))
        return
    for i in range(0, x.size, lanes_of(x)):
        at = min(i, x.size - lanes_of(x))
        prefetch(x, at + AHEAD)
        z = multiply_add(load(x, at) - p, a, b)
        if adds:
            prefetch(residual, at + AHEAD)
            z += load(residual, at)
        store(y, at, activate(z, slope), past)


@inlined
def gradient_piece(x, dy, mean, scale, shift, slope, by_x, constant, dx, past):
    """Compute dx = scale * g + by_x * (x - mean) + constant, where g = dy * activation'(z).

    z = (x - mean) * scale + shift.
    """
    p, a, b = broadcast(mean, x), broadcast(scale, x), broadcast(shift, x)
    k, c = broadcast(by_x, x), broadcast(constant, x)
    if x.size < lanes_of(x):
        prefetch(x, AHEAD)
        prefetch(dy, AHEAD)
        centred = load_all(x) - p
        g = behind(multiply_add(centred, a, b), load_all(dy), slope)
        store_all(dx, multiply_add(a, g, multiply_add(k, centred, c)))
        return
    for i in range(0, x.size, lanes_of(x)):
        at = min(i, x.size - lanes_of(x))
        prefetch(x, at + AHEAD)
        prefetch(dy, at + AHEAD)
        centred = load(x, at) - p
        g = behind(multiply_add(centred, a, b), load(dy, at), slope)
        store(dx, at, multiply_add(a, g, multiply_add(k, centred, c)), past)


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
    pieces, size = pieces_per_line(inner), piece_size(inner)
    one[:] = 0
    other[:] = 0
    for outer in range(outers):
        for k in range(pieces):
            count, more = outer * inner + k * size, min(size, inner - k * size)
            for c in range(channels):
                at = 2 * ((outer * channels + c) * pieces + k)
                if are_moments:
                    one[c], other[c] = _merged(
                        count, one[c], other[c], more, room[at], room[at + 1]
                    )
                else:
                    one[c] += room[at]
                    other[c] += room[at + 1]
