"""What the loops are asked for: a record of 64-bit words that compiled code reads.

Its fields are the sizes, then addresses, 0 for what there is not. Arrays of elements and the
channels' values are flat; values are float32, or float64 for elements of float64. The type of the
pointer to a record says what its elements are.
"""

from __future__ import annotations

import ctypes
from typing import Any

from homeostat.kernels.addresses import address_of, elements, float64s, values, words
from homeostat.kernels.compiled import compiled

# A tensor is (outer, channels, inner), and is written past the cache or not.
OUTER, CHANNELS, INNER, PAST = range(4)
# Elements: what comes in, what goes out.
X, RESIDUAL, Y, DY, OUT, G = range(4, 10)
# Values of each channel, and one: the activation's slope for negative values.
PIVOT, SCALE, SHIFT, BY_X, CONSTANT, GAMMA, BETA, SLOPE = range(10, 18)
# Two values of each channel: mean and variance, or the gradients of gamma and beta.
RESULTS = 18
# float64: epsilon; room for the sums of all parts; and of each channel mean and variance,
# 1 / sqrt(variance + epsilon), what rounding the mean to the pivot left, and the sums of g and
# g * (x - pivot).
EPSILON, ROOM, MEAN, VARIANCE, INVERSE, OFFSET, SUM_G, SUM_CENTRED = range(19, 27)
WORDS = 27


def record_of(fields: dict[int, int]) -> Any:
    """Return a record, whose address is `ctypes.addressof`.

    Args:
        fields: words by their place.
    """
    record = (ctypes.c_int64 * WORDS)()
    for field, word in fields.items():
        record[field] = word
    return record


@compiled
def fields_of(record):
    """Return a record's words."""
    return words(address_of(record), WORDS)


@compiled
def element_array(record, field, first, last):
    """Return the elements in a field from first to last."""
    return elements(record, fields_of(record)[field], first, last)


@compiled
def channel_values(record, field):
    """Return the channels' values in a field; look at none where there is no address."""
    f = fields_of(record)
    return values(record, f[field], f[CHANNELS])


@compiled
def channel_doubles(record, field):
    """Return the channels' float64 values in a field; look at none where there is no address."""
    f = fields_of(record)
    return float64s(f[field], f[CHANNELS])


@compiled
def number(record, field):
    """Return the number in a field."""
    return values(record, fields_of(record)[field], 1)[0]
