"""Loops over planes: a tensor (outer, channels, inner) whose channels come before other axes.

Each of its lines, the inner elements of one channel, is contiguous. Long lines are divided into
pieces, by their length alone, and the pieces' sums are merged in their order: the result is the
same, bit by bit, on any number of threads.
"""

from __future__ import annotations

import numpy as np

from homeostat.kernels.compiled import compiled
from homeostat.kernels.elements import add, choose, multiply_add, narrow, take, widen, zero_of
from homeostat.kernels.rows import activate, behind

# The elements that a float32 sum runs over; they stay in the first-level cache.
SEGMENT = 2048
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
def _bounds(piece, inner):
    """Return the first element of a piece and the one behind its last."""
    pieces = pieces_per_line(inner)
    size = -(-inner // pieces)
    line, k = piece // pieces, piece % pieces
    return line * inner + k * size, line * inner + min((k + 1) * size, inner)


@compiled
def _take_pieces(counter, x, inner):
    """Return the first piece of the next part and the one behind its last."""
    size, part = pieces_per_part(inner), take(counter)
    return part * size, min((part + 1) * size, x.size // inner * pieces_per_line(inner))


@compiled
def _merged(count, mean, spread, more, its_mean, its_spread):
    share = more / (count + more)
    delta = its_mean - mean
    return mean + delta * share, spread + its_spread + delta * delta * (count * share)


@compiled
def _piece_moments(x):
    """Return the mean and the sum of squared deviations, each segment centred on its own mean."""
    zero = zero_of(x)
    mean, spread = 0.0, 0.0
    for first in range(0, x.size, SEGMENT):
        segment = x[first : first + SEGMENT]
        total, squares = zero, zero
        for i in range(segment.size):
            total = add(total, widen(segment[i]))
        pivot = total / (zero + segment.size)
        total = zero
        for i in range(segment.size):
            centred = widen(segment[i]) - pivot
            total = add(total, centred)
            squares = add(squares, centred * centred)
        offset = np.float64(total) / segment.size
        its_spread = squares - total * offset
        mean, spread = _merged(first, mean, spread, segment.size, pivot + offset, its_spread)
    return mean, spread


@compiled
def _piece_sums(x, dy, y, mean, scale, shift, slope):
    """Return the sums of g and of g * (x - mean)."""
    zero = zero_of(x)
    sum_g, sum_centred = 0.0, 0.0
    for first in range(0, x.size, SEGMENT):
        # Slices, whose indices start at 0: of others numba would not know that they are positive.
        its_x, its_dy = x[first : first + SEGMENT], dy[first : first + SEGMENT]
        its_y = its_dy if y is None else y[first : first + SEGMENT]
        short_g, short_centred = zero, zero
        for i in range(its_x.size):
            centred, g = widen(its_x[i]) - mean, widen(its_dy[i])
            # Before the activation's derivative: what is always computed is always loaded.
            product = g * centred
            if slope is not None:
                z = multiply_add(centred, scale, shift) if y is None else widen(its_y[i])
                g, product = behind(z, g, slope), behind(z, product, slope)
            short_g = add(short_g, g)
            short_centred = add(short_centred, product)
        sum_g += short_g
        sum_centred += short_centred
    return sum_g, sum_centred


@compiled
def _apply_piece(x, residual, mean, scale, shift, slope, y):
    for i in range(x.size):
        z = multiply_add(widen(x[i]) - mean, scale, shift)
        if residual is not None:
            z += widen(residual[i])
        y[i] = narrow(activate(z, slope), y)


@compiled
def _gradient_piece(x, dy, y, mean, scale, shift, slope, by_x, constant, dx, g_out):
    for i in range(x.size):
        centred, g = widen(x[i]) - mean, widen(dy[i])
        rest = multiply_add(by_x, centred, constant)
        wanted = multiply_add(scale, g, rest)
        if slope is not None:
            z = multiply_add(centred, scale, shift) if y is None else widen(y[i])
            below = choose(slope != 0, multiply_add(scale, g * slope, rest), rest)
            wanted = choose(z > 0, wanted, below)
            if g_out is not None:
                g_out[i] = narrow(behind(z, g, slope), g_out)
        dx[i] = narrow(wanted, dx)


# The leaves that threads share: each takes parts by the counter until none is left.


@compiled
def moments_leaf(counter, x, inner, room):
    """Compute the moments of each piece into room, float64, (pieces * 2,)."""
    first, last = _take_pieces(counter, x, inner)
    while first < last:
        for piece in range(first, last):
            i, end = _bounds(piece, inner)
            room[2 * piece], room[2 * piece + 1] = _piece_moments(x[i:end])
        first, last = _take_pieces(counter, x, inner)


@compiled
def sums_leaf(counter, x, inner, dy, y, mean, scale, shift, slope, room):
    """Compute the gradient sums of each piece into room, float64, (pieces * 2,)."""
    first, last = _take_pieces(counter, x, inner)
    while first < last:
        for piece in range(first, last):
            i, end = _bounds(piece, inner)
            c = i // inner % mean.size
            if y is None:
                one, other = _piece_sums(
                    x[i:end], dy[i:end], None, mean[c], scale[c], shift[c], slope
                )
            else:
                one, other = _piece_sums(
                    x[i:end], dy[i:end], y[i:end], mean[c], scale[c], shift[c], slope
                )
            room[2 * piece], room[2 * piece + 1] = one, other
        first, last = _take_pieces(counter, x, inner)


@compiled
def apply_leaf(counter, x, inner, residual, mean, scale, shift, slope, y):
    """Compute y = activation((x - mean) * scale + shift + residual) in parts."""
    first, last = _take_pieces(counter, x, inner)
    while first < last:
        for piece in range(first, last):
            i, end = _bounds(piece, inner)
            c = i // inner % mean.size
            p, a, b = mean[c], scale[c], shift[c]
            if residual is None:
                _apply_piece(x[i:end], None, p, a, b, slope, y[i:end])
            else:
                _apply_piece(x[i:end], residual[i:end], p, a, b, slope, y[i:end])
        first, last = _take_pieces(counter, x, inner)


@compiled
def gradient_leaf(counter, x, inner, dy, y, mean, scale, shift, slope, by_x, constant, dx, g_out):
    """Compute dx = scale * g + by_x * (x - mean) + constant in parts, and g where there is a y."""
    first, last = _take_pieces(counter, x, inner)
    while first < last:
        for piece in range(first, last):
            i, end = _bounds(piece, inner)
            n = i // inner % mean.size
            p, a, b, k, c = mean[n], scale[n], shift[n], by_x[n], constant[n]
            its_x, its_dy, its_dx = x[i:end], dy[i:end], dx[i:end]
            if y is None:
                _gradient_piece(its_x, its_dy, None, p, a, b, slope, k, c, its_dx, None)
            else:
                its_y, its_g = y[i:end], g_out[i:end]
                _gradient_piece(its_x, its_dy, its_y, p, a, b, slope, k, c, its_dx, its_g)
        first, last = _take_pieces(counter, x, inner)


@compiled
def merge_moments(x, inner, room, mean, spread):
    """Merge the moments of all pieces; mean and spread, float64, (channels,), are written."""
    channels, pieces = mean.size, pieces_per_line(inner)
    mean[:] = 0
    spread[:] = 0
    for outer in range(x.size // (channels * inner)):
        for k in range(pieces):
            first, last = _bounds(k, inner)
            count, more = outer * inner + first, last - first
            for c in range(channels):
                at = 2 * ((outer * channels + c) * pieces + k)
                mean[c], spread[c] = _merged(
                    count, mean[c], spread[c], more, room[at], room[at + 1]
                )


@compiled
def merge_sums(x, inner, room, one, other):
    """Add up the gradient sums of all pieces; one and other, float64, (channels,), are written."""
    channels, pieces = one.size, pieces_per_line(inner)
    one[:] = 0
    other[:] = 0
    for i in range(x.size // inner * pieces):
        c = i // pieces % channels
        one[c] += room[2 * i]
        other[c] += room[2 * i + 1]
