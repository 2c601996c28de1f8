"""The loops as C functions of a record and a part's number, for whatever runs them on threads."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from numba import types

from homeostat.kernels import outputs, planes, strips, sums
from homeostat.kernels.addresses import float64s
from homeostat.kernels.compiled import c_function, compiled
from homeostat.kernels.record import (
    BY_X,
    CHANNELS,
    CONSTANT,
    DY,
    INNER,
    OUT,
    OUTER,
    PAST,
    PIVOT,
    RESIDUAL,
    ROOM,
    SCALE,
    SHIFT,
    G,
    X,
    Y,
    channel_values,
    element_array,
    fields_of,
    slope_of,
)


@functools.cache
def c_function_of(function: Callable[..., int], dtype: str) -> Any:
    """Return a function of a record and a part's number as a C function.

    Args:
        function: one of those below, or of `channels`.
        dtype: of the elements: "float32", "float64", "uint16" (float16) or "int16" (bfloat16).
    """
    record = types.CPointer(getattr(types, dtype))
    return c_function(types.intp(record, types.intp))(function)


@compiled
def _coefficients(record):
    """Return pivot, scale, shift and the slope."""
    p, a = channel_values(record, PIVOT), channel_values(record, SCALE)
    return p, a, channel_values(record, SHIFT), slope_of(record)


# Rows.


@compiled
def _rows_bounds(record, part):
    f = fields_of(record)
    return strips.bounds(part, _size(record), f[CHANNELS])


@compiled
def _size(record):
    f = fields_of(record)
    return f[OUTER] * f[CHANNELS] * f[INNER]


@compiled
def _rows_room(record, part):
    f = fields_of(record)
    room = float64s(f[ROOM] + 16 * f[CHANNELS] * part, 2 * f[CHANNELS])
    return room[: f[CHANNELS]], room[f[CHANNELS] :]


def rows_moments(record, part):
    """Compute the moments of a part of rows into its room."""
    first, last = _rows_bounds(record, part)
    one, other = _rows_room(record, part)
    x = element_array(record, X, first, last)
    sums.moments(x, fields_of(record)[CHANNELS], one, other)
    return 0


def rows_sums(record, part):
    """Compute the gradient sums of a part of rows into its room, and g where it is asked for."""
    f = fields_of(record)
    first, last = _rows_bounds(record, part)
    one, other = _rows_room(record, part)
    x, dy = element_array(record, X, first, last), element_array(record, DY, first, last)
    p, a, b, slope = _coefficients(record)
    # What there is not is not looked at; any array will do for it.
    kept, writes = f[Y] != 0, f[G] != 0
    y = element_array(record, Y if kept else DY, first, last)
    g, past = element_array(record, G if writes else DY, first, last), f[PAST] != 0
    sums.gradient_sums(
        x, dy, y, kept, g, writes, p, a, b, slope, one, other, past, _size(record)
    )  # fmt: skip
    return 0


def rows_apply(record, part):
    """Compute the output of a part of rows."""
    first, last = _rows_bounds(record, part)
    x, y = element_array(record, X, first, last), element_array(record, OUT, first, last)
    p, a, b, slope = _coefficients(record)
    f = fields_of(record)
    adds = f[RESIDUAL] != 0
    residual = element_array(record, RESIDUAL if adds else X, first, last)
    outputs.apply(x, residual, adds, p, a, b, slope, y, f[PAST] != 0, _size(record))
    return 0


def rows_gradient(record, part):
    """Compute the input's gradient of a part of rows: of g where there is one, else of dy."""
    f = fields_of(record)
    first, last = _rows_bounds(record, part)
    x, dx = element_array(record, X, first, last), element_array(record, OUT, first, last)
    g = element_array(record, DY if f[G] == 0 else G, first, last)
    p, a, b, slope = _coefficients(record)
    k, c = channel_values(record, BY_X), channel_values(record, CONSTANT)
    # g is behind the activation already.
    slope = slope if f[Y] == 0 else slope * 0 + 1
    outputs.gradient(x, g, p, a, b, slope, k, c, dx, f[PAST] != 0, _size(record))
    return 0


# Planes.


@compiled
def _pieces(record, part):
    """Return a part's first piece, the one behind its last, and how lines are divided.

    That is into how many pieces, and of which size.
    """
    f = fields_of(record)
    size, pieces = planes.pieces_per_part(f[INNER]), planes.pieces_per_line(f[INNER])
    last = min((part + 1) * size, f[OUTER] * f[CHANNELS] * pieces)
    return part * size, last, (pieces, planes.piece_size(f[INNER]))


@compiled
def _piece(record, piece, divided):
    """Return a piece's bounds and its channel."""
    f, (pieces, size) = fields_of(record), divided
    line, k = piece, 0
    # Lines may be short, and a division takes as long as a vector of one.
    if pieces > 1:
        line, k = piece // pieces, piece % pieces
    first, inner = line * f[INNER], f[INNER]
    return first + k * size, first + min((k + 1) * size, inner), line % f[CHANNELS]


@compiled
def _piece_room(record, piece):
    return float64s(fields_of(record)[ROOM] + 16 * piece, 2)


def planes_moments(record, part):
    """Compute the moments of a part's pieces into their room."""
    begin, end, divided = _pieces(record, part)
    for piece in range(begin, end):
        first, last, _ = _piece(record, piece, divided)
        room = _piece_room(record, piece)
        room[0], room[1] = planes.piece_moments(element_array(record, X, first, last))
    return 0


def planes_sums(record, part):
    """Compute the gradient sums of a part's pieces into their room, and g where it is asked for."""
    f = fields_of(record)
    kept, writes, past = f[Y] != 0, f[G] != 0, f[PAST] != 0
    p, a, b, slope = _coefficients(record)
    begin, end, divided = _pieces(record, part)
    for piece in range(begin, end):
        first, last, n = _piece(record, piece, divided)
        room = _piece_room(record, piece)
        x, dy = element_array(record, X, first, last), element_array(record, DY, first, last)
        y = element_array(record, Y if kept else DY, first, last)
        g = element_array(record, G if writes else DY, first, last)
        room[0], room[1] = planes.piece_sums(
            x, dy, y, kept, g, writes, p[n], a[n], b[n], slope, past
        )
    return 0


def planes_apply(record, part):
    """Compute the output of a part's pieces."""
    f = fields_of(record)
    adds, past = f[RESIDUAL] != 0, f[PAST] != 0
    p, a, b, slope = _coefficients(record)
    begin, end, divided = _pieces(record, part)
    for piece in range(begin, end):
        first, last, n = _piece(record, piece, divided)
        x, y = element_array(record, X, first, last), element_array(record, OUT, first, last)
        residual = element_array(record, RESIDUAL if adds else X, first, last)
        planes.apply_piece(x, residual, adds, p[n], a[n], b[n], slope, y, past)
    return 0


def planes_gradient(record, part):
    """Compute the input's gradient of a part's pieces: of g where there is one, else of dy."""
    f = fields_of(record)
    p, a, b, slope = _coefficients(record)
    k, c = channel_values(record, BY_X), channel_values(record, CONSTANT)
    past = f[PAST] != 0
    # g is behind the activation already.
    slope = slope if f[Y] == 0 else slope * 0 + 1
    begin, end, divided = _pieces(record, part)
    for piece in range(begin, end):
        first, last, n = _piece(record, piece, divided)
        x, dx = element_array(record, X, first, last), element_array(record, OUT, first, last)
        g = element_array(record, DY if f[G] == 0 else G, first, last)
        planes.gradient_piece(x, g, p[n], a[n], b[n], slope, k[n], c[n], dx, past)
    return 0
