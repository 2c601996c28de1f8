"""How rows of channels are divided: into parts for threads, wide rows, and strips for vectors.

Few channels are taken side by side as one wide row. A wide row is divided into strips, each as wide
as a vector, and a loop runs down a strip for a few rows, so that what a channel needs stays in
registers.
A tensor is divided into parts by its shape alone, and the parts' sums are merged in their order:
the result is the same, bit by bit, on any number of threads.
"""

from __future__ import annotations

import numpy as np

from homeostat.kernels.compiled import compiled
from homeostat.kernels.vectors import LANES

# The most columns of a wide row that is made of several.
WIDTH = 1024
# How many elements ahead memory is fetched, at least.
AHEAD = 2048
# The rows that a float32 sum runs over.
BLOCK = 32
# Bytes of a tensor from which on the cache does not keep it from one loop to the next.
LEAST_PAST = 2**23
# The elements of a part, and the most parts. Half as many are worth sharing with another thread.
PART_ELEMENTS = 2**17
MOST_PARTS = 64
# How many parts a thread that waits asleep, as OpenMP's do not, must have to do.
WORTH_WAKING = 4


@compiled
def rows_per_part(rows, channels):
    """Return how many rows a part has (the last one the rest): a multiple of four wide rows."""
    size = rows * channels
    parts = max(1, min(2, 2 * size // PART_ELEMENTS), min(MOST_PARTS, size // PART_ELEMENTS))
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
def rows_per_visit(x, width, size):
    """Return for how many rows a loop runs down a strip before the next one's turn.

    The fewer visits, the less often a strip's channels are loaded. But memory is best read in its
    order: where elements cost more to read than to compute, which those of two bytes do not and
    those in the cache, a visit is of one row, unless what all strips keep fills the first-level
    cache.

    Args:
        x: what elements are like.
        width: of a wide row.
        size: the elements of the whole tensor.
    """
    if width <= LANES:
        return BLOCK
    waits = x.itemsize > 2 and size * x.itemsize >= LEAST_PAST
    return 1 if waits and width <= WIDTH else 8


@compiled
def ahead_of(visit, width):
    """Return how far ahead a strip's memory is fetched: whole rows, those of a visit at least."""
    return max(visit, AHEAD // width) * width


@compiled
def strips_of(width, lanes):
    """Return how many strips a wide row has."""
    return -(-width // lanes)


@compiled
def start_of(strip, width, lanes):
    """Return a strip's first column; the last strip overlaps the one before it."""
    return min(strip * lanes, width - lanes)


@compiled
def closed_up(sums, width, lanes):
    """Return each column's sum, once, from those of all strips, one after the other."""
    last = strips_of(width, lanes) - 1
    twice = last * lanes - start_of(last, width, lanes)
    for j in range(last * lanes, width):
        sums[j] = sums[j + twice]
    return sums[:width]


@compiled
def aligned(size, value):
    """Return a new array full of a value, at the start of a line of the cache."""
    room = np.full(size + 16, value)
    first = -room.ctypes.data % 64 // room.itemsize
    return room[first : first + size]


@compiled
def repeated(channels, times):
    """Return the values of a wide row's columns, of those of channels."""
    wide = aligned(times * channels.size, channels[0])
    for start in range(0, wide.size, channels.size):
        for j in range(channels.size):
            wide[start + j] = channels[j]
    return wide


@compiled
def bounds(part, size, channels):
    """Return the first element of a part and the one behind its last."""
    step = rows_per_part(size // channels, channels) * channels
    return part * step, min((part + 1) * step, size)
