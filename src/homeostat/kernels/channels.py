"""What is computed of channels between the loops, as C functions of a record."""

from __future__ import annotations

import math

from homeostat.kernels import planes, strips, sums
from homeostat.kernels.addresses import float64s, words
from homeostat.kernels.compiled import compiled
from homeostat.kernels.elements import multiply_add, rounded
from homeostat.kernels.record import (
    BETA,
    BY_X,
    CHANNELS,
    CONSTANT,
    DY,
    EPSILON,
    GAMMA,
    INNER,
    INVERSE,
    KEPT,
    LENT,
    MEAN,
    MORE_RESULTS,
    MOVED,
    MOVING_MEAN,
    MOVING_VARIANCE,
    OFFSET,
    OUTER,
    PIVOT,
    RESULTS,
    ROOM,
    SCALE,
    SHIFT,
    SUM_CENTRED,
    SUM_G,
    UPDATES,
    VARIANCE,
    WEIGHTS,
    WORDS,
    channel_doubles,
    channel_values,
    fields_of,
)


def lay(record, part):
    """Turn the record's offsets into addresses."""
    f = fields_of(record)
    for field in range(EPSILON, ROOM):
        f[field] += f[KEPT]
    for field in range(ROOM, WORDS):
        f[field] += f[LENT]
    return 0


@compiled
def _merge(record, one, other):
    """Merge the rooms of all parts, moments or sums of gradients, into two float64 arrays."""
    f = fields_of(record)
    are_moments = f[DY] == 0
    outer, channels, inner = f[OUTER], f[CHANNELS], f[INNER]
    if inner == 1:
        parts = -(-outer // strips.rows_per_part(outer, channels))
        room = float64s(f[ROOM], 2 * parts * channels)
        sums.merge_parts(outer, channels, room, are_moments, one, other)
    else:
        room = float64s(f[ROOM], 2 * outer * channels * planes.pieces_per_line(inner))
        planes.merge_pieces(outer, channels, inner, room, are_moments, one, other)


@compiled
def _results(record, one, other):
    f = fields_of(record)
    first, second = channel_values(record, RESULTS), channel_values(record, MORE_RESULTS)
    for c in range(one.size if f[RESULTS] != 0 else 0):
        first[c] = one[c]
    for c in range(other.size if f[MORE_RESULTS] != 0 else 0):
        second[c] = other[c]


def merge_moments(record, part):
    """Merge all parts' moments into mean and variance, and into the results."""
    f = fields_of(record)
    mean, variance = channel_doubles(record, MEAN), channel_doubles(record, VARIANCE)
    _merge(record, mean, variance)
    for c in range(mean.size):
        variance[c] /= f[OUTER] * f[INNER]
    _results(record, mean, variance)
    return 0


def coefficients(record, part):
    """Compute of mean and variance, gamma and beta what turns x into y.

    y = (x - pivot) * scale + shift, where the pivot is the mean, rounded; scale = gamma * inverse
    and inverse = 1 / sqrt(variance + epsilon); shift is beta less what rounding left of the mean.
    """
    f = fields_of(record)
    mean, variance = channel_doubles(record, MEAN), channel_doubles(record, VARIANCE)
    inverse, offset = channel_doubles(record, INVERSE), channel_doubles(record, OFFSET)
    gammas, betas = channel_values(record, GAMMA), channel_values(record, BETA)
    pivot, scale = channel_values(record, PIVOT), channel_values(record, SCALE)
    shift, epsilon = channel_values(record, SHIFT), float64s(f[EPSILON], 1)[0]
    for c in range(mean.size):
        gamma = 1.0 if f[GAMMA] == 0 else gammas[c]
        beta = 0.0 if f[BETA] == 0 else betas[c]
        inverse[c] = 1.0 / math.sqrt(variance[c] + epsilon)
        pivot[c] = mean[c]
        offset[c] = mean[c] - pivot[c]
        scale[c] = gamma * inverse[c]
        shift[c] = beta - offset[c] * (gamma * inverse[c])
    return 0


@compiled
def _all_finite(mean, variance, values):
    """Return whether all of them are finite, rounded to the dtype of an array of values."""
    for c in range(mean.size):
        one, other = rounded(mean[c], values), rounded(variance[c], values)
        if not (math.isfinite(one) and math.isfinite(other)):
            return False
    return True


def move(record, part):
    """Move statistics towards mean and variance, and count that, where all of those are finite.

    The batch's are rounded to the statistics' dtype first, as they are in the results.
    """
    f = fields_of(record)
    mean, variance = channel_doubles(record, MEAN), channel_doubles(record, VARIANCE)
    means, variances = channel_values(record, MOVING_MEAN), channel_values(record, MOVING_VARIANCE)
    if not _all_finite(mean, variance, means):
        return 0
    weights = float64s(f[WEIGHTS], 3)
    old, new = rounded(weights[0], means), rounded(weights[1], means)
    new_variance = rounded(weights[2], means)
    for c in range(mean.size):
        means[c] = multiply_add(rounded(mean[c], means), new, means[c] * old)
    for c in range(mean.size):
        variances[c] = multiply_add(rounded(variance[c], means), new_variance, variances[c] * old)
    if f[UPDATES] != 0:
        words(f[UPDATES], 1)[0] += 1
    f[MOVED] = 1
    return 0


def merge_sums(record, part):
    """Merge all parts' gradient sums into the gradients of gamma and beta, the results.

    Also what dx has besides scale * g: by_x * (x - pivot) + constant.
    """
    f = fields_of(record)
    inverse, offset = channel_doubles(record, INVERSE), channel_doubles(record, OFFSET)
    dbeta, dgamma = channel_doubles(record, SUM_G), channel_doubles(record, SUM_CENTRED)
    scale, by_x = channel_values(record, SCALE), channel_values(record, BY_X)
    constant, count = channel_values(record, CONSTANT), f[OUTER] * f[INNER]
    _merge(record, dbeta, dgamma)
    for c in range(dbeta.size):
        # Of the sum of g * (x - pivot), that of g * (x - mean) / sqrt(variance + epsilon).
        dgamma[c] = inverse[c] * (dgamma[c] - offset[c] * dbeta[c])
        slope = -scale[c] * inverse[c] * dgamma[c] / count
        by_x[c] = slope
        constant[c] = -scale[c] * dbeta[c] / count - slope * offset[c]
    _results(record, dgamma, dbeta)
    return 0
