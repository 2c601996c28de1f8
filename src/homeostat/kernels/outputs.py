"""Loops over rows of channels that write a tensor: the output, and the input's gradient.

They run down `strips` of flat arrays and fetch the rows that come next ahead.
"""

from __future__ import annotations

from homeostat.kernels.activation import activate, behind
from homeostat.kernels.compiled import compiled, inlined
from homeostat.kernels.elements import multiply_add, narrow, widen
from homeostat.kernels.strips import (
    ahead_of,
    repeated,
    rows_per_visit,
    rows_side_by_side,
    start_of,
    strips_of,
)
from homeostat.kernels.vectors import lanes_of, load, prefetch, store


@inlined
def _apply_strip(
    x, residual, adds, at, width, rows, ahead, start, mean, scale, shift, slope, y, past
):  # fmt: skip
    p, a, b = load(mean, start), load(scale, start), load(shift, start)
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
def apply(x, residual, adds, mean, scale, shift, slope, y, past, size):
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
        size: the elements of the whole tensor, of which this may be a part.
    """
    times, lanes = rows_side_by_side(mean.size), lanes_of(x)
    p, a, b = repeated(mean, times), repeated(scale, times), repeated(shift, times)
    width = p.size
    visit, whole = rows_per_visit(x, width, size), x.size // width
    ahead = ahead_of(visit, width)
    for first in range(0, whole, visit):
        rows = min(visit, whole - first)
        for strip in range(strips_of(width, lanes)):
            start = start_of(strip, width, lanes)
            at = first * width + start
            _apply_strip(
                x, residual, adds, at, width, rows, ahead, start, p, a, b, slope, y, past
            )  # fmt: skip
    _apply_rest(x, residual, adds, whole * width, p, a, b, slope, y)


@inlined
def _gradient_strip(
    x, dy, at, width, rows, ahead, start, mean, scale, shift, slope, by_x, constant, dx, past
):  # fmt: skip
    p, a, b = load(mean, start), load(scale, start), load(shift, start)
    k, c = load(by_x, start), load(constant, start)
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
def gradient(x, dy, mean, scale, shift, slope, by_x, constant, dx, past, size):
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
        size: as in `apply`.
    """
    times, lanes = rows_side_by_side(mean.size), lanes_of(x)
    p, a, b = repeated(mean, times), repeated(scale, times), repeated(shift, times)
    k, c = repeated(by_x, times), repeated(constant, times)
    width = p.size
    visit, whole = rows_per_visit(x, width, size), x.size // width
    ahead = ahead_of(visit, width)
    for first in range(0, whole, visit):
        rows = min(visit, whole - first)
        for strip in range(strips_of(width, lanes)):
            start = start_of(strip, width, lanes)
            at = first * width + start
            _gradient_strip(
                x, dy, at, width, rows, ahead, start, p, a, b, slope, k, c, dx, past
            )  # fmt: skip
    _gradient_rest(x, dy, whole * width, p, a, b, slope, k, c, dx)
