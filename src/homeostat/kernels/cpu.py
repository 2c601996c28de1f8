"""The loops by address: C functions that compute one part, for whatever runs them on threads.

What to compute is a record of 64-bit words: the sizes, the address of float64 room for sums, then
the arrays' addresses, 0 for one that there is not. The type of the pointer to it says what elements
are (`elements`); channels' values are float32, or float64 for float64.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from numba import types

from homeostat.kernels import planes, rows
from homeostat.kernels.addresses import (
    address_of,
    call,
    elements,
    fetch_add,
    float32s,
    float64s,
    values,
    words,
)
from homeostat.kernels.compiled import c_function, compiled

OUTER, CHANNELS, INNER, ROOM = range(4)
X, DY, MEAN, SLOPE, SCALE, SHIFT, Y, RESIDUAL, BY_X, CONSTANT, OUT, G = range(4, 16)
RECORD_WORDS = 16
# What threads share: the next part to take, how many there are, what computes one, and of what.
NEXT, PARTS, FUNCTION, RECORD = range(4)
JOB_WORDS = 4


@compiled
def _fields(record):
    return words(address_of(record), RECORD_WORDS)


@compiled
def _coefficients(record):
    """Return mean, scale, shift and the slope."""
    f = _fields(record)
    p, a = values(record, f[MEAN], f[CHANNELS]), values(record, f[SCALE], f[CHANNELS])
    return p, a, values(record, f[SHIFT], f[CHANNELS]), values(record, f[SLOPE], 1)[0]


# Rows.


@compiled
def _rows_bounds(record, part):
    f = _fields(record)
    return rows.bounds(part, f[OUTER] * f[CHANNELS], f[CHANNELS])


@compiled
def _rows_room(record, part):
    f = _fields(record)
    room = float64s(f[ROOM] + 16 * f[CHANNELS] * part, 2 * f[CHANNELS])
    return room[: f[CHANNELS]], room[f[CHANNELS] :]


def rows_moments(record, part):
    """Compute the moments of a part of rows into its room."""
    f = _fields(record)
    first, last = _rows_bounds(record, part)
    one, other = _rows_room(record, part)
    rows.moments(elements(record, f[X], first, last), f[CHANNELS], one, other)
    return 0


def rows_sums(record, part):
    """Compute the gradient sums of a part of rows into its room."""
    f = _fields(record)
    first, last = _rows_bounds(record, part)
    one, other = _rows_room(record, part)
    x, dy = elements(record, f[X], first, last), elements(record, f[DY], first, last)
    p, a, b, slope = _coefficients(record)
    if f[Y] == 0:
        rows.gradient_sums(x, dy, None, p, a, b, slope, one, other)
    else:
        y = elements(record, f[Y], first, last)
        rows.gradient_sums(x, dy, y, p, p, p, slope, one, other)
    return 0


def rows_apply(record, part):
    """Compute the output of a part of rows."""
    f = _fields(record)
    first, last = _rows_bounds(record, part)
    x, y = elements(record, f[X], first, last), elements(record, f[OUT], first, last)
    p, a, b, slope = _coefficients(record)
    if f[RESIDUAL] == 0:
        rows.apply(x, None, p, a, b, slope, y)
    else:
        rows.apply(x, elements(record, f[RESIDUAL], first, last), p, a, b, slope, y)
    return 0


def rows_gradient(record, part):
    """Compute the input's gradient of a part of rows, and that behind the activation with a y."""
    f = _fields(record)
    first, last = _rows_bounds(record, part)
    x, dy = elements(record, f[X], first, last), elements(record, f[DY], first, last)
    p, a, b, slope = _coefficients(record)
    k, c = values(record, f[BY_X], f[CHANNELS]), values(record, f[CONSTANT], f[CHANNELS])
    dx = elements(record, f[OUT], first, last)
    if f[Y] == 0:
        rows.gradient(x, dy, None, p, a, b, slope, k, c, dx, None)
    else:
        y, g = elements(record, f[Y], first, last), elements(record, f[G], first, last)
        rows.gradient(x, dy, y, p, a, b, slope, k, c, dx, g)
    return 0


# Planes.


@compiled
def _pieces(record, part):
    """Return the first piece of a part and the one behind its last."""
    f = _fields(record)
    size = planes.pieces_per_part(f[INNER])
    pieces = f[OUTER] * f[CHANNELS] * planes.pieces_per_line(f[INNER])
    return part * size, min((part + 1) * size, pieces)


@compiled
def _piece(record, piece):
    """Return a piece's bounds and its channel."""
    f = _fields(record)
    first, last = planes.bounds(piece, f[INNER])
    return first, last, first // f[INNER] % f[CHANNELS]


def planes_moments(record, part):
    """Compute the moments of a part's pieces into their room."""
    f = _fields(record)
    for piece in range(*_pieces(record, part)):
        first, last, _ = _piece(record, piece)
        room = float64s(f[ROOM] + 16 * piece, 2)
        room[0], room[1] = planes.piece_moments(elements(record, f[X], first, last))
    return 0


def planes_sums(record, part):
    """Compute the gradient sums of a part's pieces into their room."""
    f = _fields(record)
    p, a, b, slope = _coefficients(record)
    for piece in range(*_pieces(record, part)):
        first, last, n = _piece(record, piece)
        room = float64s(f[ROOM] + 16 * piece, 2)
        x, dy = elements(record, f[X], first, last), elements(record, f[DY], first, last)
        if f[Y] == 0:
            room[0], room[1] = planes.piece_sums(x, dy, None, p[n], a[n], b[n], slope)
        else:
            y = elements(record, f[Y], first, last)
            room[0], room[1] = planes.piece_sums(x, dy, y, p[n], p[n], p[n], slope)
    return 0


def planes_apply(record, part):
    """Compute the output of a part's pieces."""
    f = _fields(record)
    p, a, b, slope = _coefficients(record)
    for piece in range(*_pieces(record, part)):
        first, last, n = _piece(record, piece)
        x, y = elements(record, f[X], first, last), elements(record, f[OUT], first, last)
        if f[RESIDUAL] == 0:
            planes.apply_piece(x, None, p[n], a[n], b[n], slope, y)
        else:
            residual = elements(record, f[RESIDUAL], first, last)
            planes.apply_piece(x, residual, p[n], a[n], b[n], slope, y)
    return 0


def planes_gradient(record, part):
    """Compute the input's gradient of a part's pieces, and that behind the activation with a y."""
    f = _fields(record)
    p, a, b, slope = _coefficients(record)
    k, c = values(record, f[BY_X], f[CHANNELS]), values(record, f[CONSTANT], f[CHANNELS])
    for piece in range(*_pieces(record, part)):
        first, last, n = _piece(record, piece)
        x, dy = elements(record, f[X], first, last), elements(record, f[DY], first, last)
        dx = elements(record, f[OUT], first, last)
        if f[Y] == 0:
            planes.gradient_piece(x, dy, None, p[n], a[n], b[n], slope, k[n], c[n], dx, None)
        else:
            y, g = elements(record, f[Y], first, last), elements(record, f[G], first, last)
            planes.gradient_piece(x, dy, y, p[n], a[n], b[n], slope, k[n], c[n], dx, g)
    return 0


@functools.cache
def part_function(function: Callable[..., int], dtype: str) -> Any:
    """Return one of the functions above as a C function of a record's address and a part's number.

    Args:
        function: which.
        dtype: of the elements: "float32", "float64", "uint16" (float16) or "int16" (bfloat16).
    """
    record = types.CPointer(getattr(types, dtype))
    return c_function(types.intp(record, types.intp))(function)


@c_function(types.void(types.intp))
def run_parts(address):
    """Take and compute parts of the job at an address until none is left."""
    job = words(address, JOB_WORDS)
    part = fetch_add(address + 8 * NEXT, 1)
    while part < job[PARTS]:
        call(job[FUNCTION], job[RECORD], part)
        part = fetch_add(address + 8 * NEXT, 1)
