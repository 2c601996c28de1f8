"""Batch normalization of flat buffers, forward and backward, by the loops of this room.

A tensor is seen as (outer, channels, inner), flat in memory; inner is 1 where channels come last.
Elements are float32 or float64, or the bits of float16 (as uint16) or bfloat16 (as int16), whose
statistics are float32. Results are the same, bit by bit, on any number of threads.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from homeostat.kernels import cpu, planes, rows
from homeostat.kernels.compiled import compiled
from homeostat.kernels.threads import share

Array = Any


class Shape(NamedTuple):
    """How a flat buffer is divided: outer * channels * inner elements, none of the three 0."""

    outer: int
    channels: int
    inner: int

    @property
    def count(self) -> int:
        """Elements of a channel."""
        return self.outer * self.inner

    @property
    def parts(self) -> int:
        """What threads share."""
        if self.inner == 1:
            return -(-self.outer // rows.rows_per_part(self.outer, self.channels))
        pieces = self.outer * self.channels * planes.pieces_per_line(self.inner)
        return -(-pieces // planes.pieces_per_part(self.inner))


class Coefficients(NamedTuple):
    """What turns x into z = (x - pivot) * scale + shift.

    Args:
        pivot: the mean, rounded to the statistics' dtype.
        scale: gamma / sqrt(variance + epsilon), like pivot.
        shift: beta, less what rounding left of the mean, like pivot.
        inverse: 1 / sqrt(variance + epsilon), float64.
        offset: mean - pivot, float64.
    """

    pivot: Array
    scale: Array
    shift: Array
    inverse: Array
    offset: Array


def statistics_dtype(x: Array) -> Any:
    """Return the dtype of a buffer's statistics."""
    return np.float64 if x.dtype == np.float64 else np.float32


def moments(x: Array, shape: Shape, threads: int) -> tuple[Array, Array]:
    """Return each channel's mean and population variance.

    Each block is centred on its own mean and blocks are merged in float64 (Chan, Golub & LeVeque
    1979), so neither a large mean nor an outlier costs digits.

    Args:
        x: flat, of the shape's size.
        shape: how it is divided.
        threads: how many may run.

    Returns:
        Two arrays, float64, (channels,).
    """
    room = np.empty(_room(shape))
    _run(cpu.rows_moments, cpu.planes_moments, shape, threads, room, {cpu.X: x})
    mean, spread = _merged(shape, room, are_moments=True)
    spread /= shape.count
    return mean, spread


def coefficients(
    mean: Array,
    variance: Array,
    gamma: Array | None,
    beta: Array | None,
    epsilon: float,
    dtype: Any,
) -> Coefficients:
    """Return what turns x into z.

    Args:
        mean: float64, (channels,).
        variance: like mean.
        gamma: like mean, or None for 1.
        beta: like mean, or None for 0.
        epsilon: added to the variance.
        dtype: the statistics'.
    """
    gamma = np.ones(mean.size) if gamma is None else gamma
    beta = np.zeros(mean.size) if beta is None else beta
    pivot, scale, shift = np.empty((3, mean.size), dtype)
    inverse, offset = np.empty((2, mean.size))
    _coefficients(mean, variance, gamma, beta, epsilon, pivot, scale, shift, inverse, offset)
    return Coefficients(pivot, scale, shift, inverse, offset)


def normalize(
    x: Array,
    residual: Array | None,
    y: Array,
    shape: Shape,
    by: Coefficients,
    slope: float | None,
    threads: int,
) -> None:
    """Compute y = activation((x - pivot) * scale + shift + residual).

    Args:
        x: flat, of the shape's size.
        residual: like x, or None.
        y: like x, written.
        shape: how they are divided.
        by: the coefficients.
        slope: the activation's for negative values, or None for no activation.
        threads: how many may run.
    """
    given = {cpu.X: x, cpu.RESIDUAL: residual, cpu.OUT: y, **_fields(by, slope)}
    _run(cpu.rows_apply, cpu.planes_apply, shape, threads, None, given)


def gradients(
    x: Array,
    dy: Array,
    y: Array | None,
    dx: Array,
    g: Array | None,
    shape: Shape,
    by: Coefficients,
    slope: float | None,
    threads: int,
) -> tuple[Array, Array]:
    """Compute dx and return dgamma and dbeta, through the batch's mean and variance.

    With g = dy * activation'(z), n elements to a channel and x_hat = (x - mean) * inverse::

        dbeta = sum(g)    dgamma = sum(g * x_hat)    dx = scale * (g - (dbeta + x_hat * dgamma) / n)

    Args:
        x: flat, of the shape's size.
        dy: like x.
        y: like x, the activation's output, where z had a residual; None to compute z's sign again,
            to the last bit as the forward pass computed it.
        dx: like x, written.
        g: like x, written where there is a y; None without one.
        shape: how they are divided.
        by: the forward's coefficients.
        slope: the activation's for negative values, or None for no activation.
        threads: how many may run.

    Returns:
        dgamma and dbeta, float64, (channels,).
    """
    room, fields = np.empty(_room(shape)), _fields(by, slope)
    # Without an activation the sign does not matter: any of the arrays will do for it.
    sign = dy if slope is None else y
    given = {cpu.X: x, cpu.DY: dy, cpu.Y: sign, **fields}
    _run(cpu.rows_sums, cpu.planes_sums, shape, threads, room, given)
    sum_g, sum_centred = _merged(shape, room, are_moments=False)
    by_x, constant = np.empty((2, shape.channels), by.scale.dtype)
    _turn_into_gradients(shape.count, *by, sum_g, sum_centred, by_x, constant)
    given |= {cpu.Y: y, cpu.BY_X: by_x, cpu.CONSTANT: constant, cpu.OUT: dx, cpu.G: g}
    _run(cpu.rows_gradient, cpu.planes_gradient, shape, threads, None, given)
    return sum_centred, sum_g


def _run(
    of_rows: Any, of_planes: Any, shape: Shape, threads: int, room: Array | None, given: Any
) -> None:
    """Compute all parts of a pass, of the arrays given by their fields in the record."""
    # What is read must be aligned; what is written is new, and is.
    kept = {field: np.require(array, requirements="A") for field, array in given.items() if array is not None}
    record = np.zeros(cpu.RECORD_WORDS, np.int64)
    record[: cpu.ROOM] = shape
    record[cpu.ROOM] = 0 if room is None else room.ctypes.data
    for field, array in kept.items():
        record[field] = array.ctypes.data
    function = of_rows if shape.inner == 1 else of_planes
    dtype = given[cpu.X].dtype.name
    share(cpu.part_function(function, dtype).address, record, shape.parts, threads)


def _merged(shape: Shape, room: Array, *, are_moments: bool) -> tuple[Array, Array]:
    one, other = np.empty((2, shape.channels))
    if shape.inner == 1:
        rows.merge_parts(shape.outer, shape.channels, room, are_moments, one, other)
    else:
        planes.merge_pieces(*shape, room, are_moments, one, other)
    return one, other


def _room(shape: Shape) -> int:
    """Return how many numbers the sums of all parts, or pieces, take."""
    if shape.inner == 1:
        return 2 * shape.parts * shape.channels
    return 2 * shape.outer * shape.channels * planes.pieces_per_line(shape.inner)


def _fields(by: Coefficients, slope: float | None) -> dict[int, Array]:
    # A slope of 1 for negative values is no activation.
    slopes = np.array([1.0 if slope is None else slope], by.scale.dtype)
    return {cpu.MEAN: by.pivot, cpu.SCALE: by.scale, cpu.SHIFT: by.shift, cpu.SLOPE: slopes}


@compiled
def _coefficients(mean, variance, gamma, beta, epsilon, pivot, scale, shift, inverse, offset):
    for c in range(mean.size):
        inverse[c] = 1.0 / math.sqrt(variance[c] + epsilon)
        pivot[c] = mean[c]
        offset[c] = mean[c] - pivot[c]
        scale[c] = gamma[c] * inverse[c]
        shift[c] = beta[c] - offset[c] * (gamma[c] * inverse[c])


@compiled
def _turn_into_gradients(
    count, pivot, scale, shift, inverse, offset, sum_g, sum_centred, by_x, constant
):
    """Turn the sum of g * (x - pivot) into dgamma, and compute what dx has besides scale * g."""
    for c in range(sum_g.size):
        dgamma = inverse[c] * (sum_centred[c] - offset[c] * sum_g[c])
        slope = -scale[c] * inverse[c] * dgamma / count
        by_x[c] = slope
        constant[c] = -scale[c] * sum_g[c] / count - slope * offset[c]
        sum_centred[c] = dgamma
