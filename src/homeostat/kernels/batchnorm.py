"""Batch normalization of flat buffers, forward and backward, by the loops of this room.

A tensor is seen as (outer, channels, inner), flat in memory; inner is 1 where channels come last.
Buffers come as addresses, 0 for none: whoever calls holds their memory. Elements are "float32",
"float64", or the bits of float16 ("uint16") or bfloat16 ("int16"), whose statistics are float32.
Results are the same, bit by bit, on any number of threads.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from homeostat.kernels import channels as between
from homeostat.kernels import cpu, planes, strips
from homeostat.kernels import record as fields
from homeostat.kernels.threads import run

Array = Any

# Bytes of an output from which on it is written past the cache: by the time that it is read again,
# something else would have taken its place.
LEAST_PAST = 2**23


class Shape(NamedTuple):
    """How a flat buffer is divided: outer * channels * inner elements, none of the three 0."""

    outer: int
    channels: int
    inner: int


@functools.lru_cache(maxsize=1024)
def parts_and_room(shape: Shape) -> tuple[int, int]:
    """Return what threads share, and how many numbers the sums of all parts take."""
    outer, channels, inner = shape
    if inner == 1:
        parts = -(-outer // strips.rows_per_part(outer, channels))
        return parts, 2 * parts * channels
    pieces = outer * channels * planes.pieces_per_line(inner)
    return -(-pieces // planes.pieces_per_part(inner)), 2 * pieces


def statistics_dtype(dtype: str) -> Any:
    """Return the dtype of a buffer's statistics."""
    return np.float64 if dtype == "float64" else np.float32


class Batch:
    """A tensor's buffer and what a forward pass leaves of its channels for the backward.

    Args:
        dtype: of the elements.
        shape: how the buffers are divided.
        epsilon: added to the variance.
        slope: the activation's for negative values, or None for no activation.
    """

    def __init__(
        self, dtype: str, shape: Shape, epsilon: float = 0.0, slope: float | None = None
    ) -> None:
        self.dtype, self.shape, self.slope = dtype, shape, slope
        # Of each channel mean, variance, inverse and offset, then epsilon.
        self._doubles = np.empty(4 * shape.channels + 1)
        self._doubles[-1] = epsilon
        # Of each channel pivot, scale and shift, then the slope, where 1 is no activation.
        self._values = np.empty(3 * shape.channels + 1, statistics_dtype(dtype))
        self._values[-1] = 1.0 if slope is None else slope

    @property
    def moments(self) -> Array:
        """Mean and variance, float64, (2, channels): to be given, or found."""
        return self._doubles[: 2 * self.shape.channels].reshape(2, -1)

    def find_moments(self, x: int, results: int, threads: int) -> None:
        """Compute each channel's mean and population variance.

        Each block is centred on a mean of its own and blocks are merged in float64 (Chan, Golub &
        LeVeque 1979), so neither a large mean nor an outlier costs digits.

        Args:
            x: of the shape's size.
            results: of the statistics' dtype, (2, channels), written, or 0.
            threads: how many may run.
        """
        self._run(("moments", "merge_moments"), threads, {fields.X: x, fields.RESULTS: results})

    def normalize(
        self, x: int, residual: int, y: int, gamma: int, beta: int, results: int, threads: int
    ) -> None:
        """Compute y = activation((x - mean) * scale + shift + residual).

        Args:
            x: of the shape's size.
            residual: like x, or 0.
            y: like x, written.
            gamma: of the statistics' dtype, (channels,), or 0 for 1.
            beta: like gamma, or 0 for 0.
            results: where to write mean and variance, as in `find_moments`, or 0 where `moments`
                has been filled.
            threads: how many may run.
        """
        given = {
            fields.X: x, fields.RESIDUAL: residual, fields.OUT: y, fields.GAMMA: gamma,
            fields.BETA: beta, fields.RESULTS: results,
        }  # fmt: skip
        moments = ("moments", "merge_moments") if results else ()
        self._run((*moments, "coefficients", "apply"), threads, given)

    def apply(self, x: int, y: int, threads: int) -> None:
        """Compute y again as `normalize` did, without a residual."""
        self._run(("apply",), threads, {fields.X: x, fields.OUT: y})

    def gradients(
        self, x: int, dy: int, y: int, dx: int, g: int, results: int, threads: int
    ) -> None:
        """Compute the gradients, through the batch's mean and variance.

        With g = dy * activation'(z), n elements to a channel and x_hat = (x - mean) * inverse::

            dbeta = sum(g)    dgamma = sum(g * x_hat)
            dx = scale * (g - (dbeta + x_hat * dgamma) / n)

        Args:
            x: of the shape's size, as it was normalized.
            dy: like x.
            y: like x, the activation's output, where z had a residual; 0 to compute z's sign again,
                to the last bit as the forward pass computed it.
            dx: like x, written.
            g: like x, written where there is a y; 0 without one.
            results: of the statistics' dtype, (2, channels), dgamma and dbeta, written.
            threads: how many may run.
        """
        # Without an activation no sign matters: any of the arrays will do for it.
        sign = dy if self.slope is None else y
        sums = np.empty(2 * self.shape.channels)
        changes = np.empty(2 * self.shape.channels, self._values.dtype)
        given = {
            fields.X: x, fields.DY: dy, fields.Y: sign, fields.OUT: dx, fields.G: g,
            fields.RESULTS: results,
            **self._addresses((fields.SUM_G, fields.SUM_CENTRED), sums),
            **self._addresses((fields.BY_X, fields.CONSTANT), changes),
        }  # fmt: skip
        self._run(("sums", "merge_sums", "gradient"), threads, given)

    def _run(self, names: tuple[str, ...], threads: int, given: dict[int, int]) -> None:
        """Run steps by their names, of the buffers given by their fields in a record."""
        shape = self.shape
        room = np.empty(parts_and_room(shape)[1])
        kept = (fields.MEAN, fields.VARIANCE, fields.INVERSE, fields.OFFSET, fields.EPSILON)
        given |= {
            fields.OUTER: shape.outer, fields.CHANNELS: shape.channels, fields.INNER: shape.inner,
            fields.ROOM: room.ctypes.data,
            **self._addresses(kept, self._doubles),
            **self._addresses(
                (fields.PIVOT, fields.SCALE, fields.SHIFT, fields.SLOPE), self._values
            ),
        }  # fmt: skip
        step = self.shape.channels * self._values.itemsize
        given[fields.MORE_RESULTS] = given.get(fields.RESULTS, 0) + step
        on_lines = not (given.get(fields.OUT, 0) | given.get(fields.G, 0)) % 64
        given[fields.PAST] = on_lines and _leaves_the_cache(self.dtype, shape)
        run(_steps(names, self.dtype, shape), fields.record_of(given), threads)

    def _addresses(self, names: tuple[int, ...], array: Array) -> dict[int, int]:
        """Return the addresses of channels that follow each other in an array, by fields."""
        first, step = array.ctypes.data, self.shape.channels * array.itemsize
        return {name: first + i * step for i, name in enumerate(names)}


@functools.lru_cache(maxsize=1024)
def _leaves_the_cache(dtype: str, shape: Shape) -> bool:
    size = np.dtype(dtype).itemsize
    outer, channels, inner = shape
    line = channels if inner == 1 else inner
    return outer * channels * inner * size >= LEAST_PAST and line * size % 64 == 0


@functools.lru_cache(maxsize=1024)
def _steps(names: tuple[str, ...], dtype: str, shape: Shape) -> tuple[tuple[int, int], ...]:
    order = "rows" if shape.inner == 1 else "planes"
    parts, steps = parts_and_room(shape)[0], []
    for name in names:
        loop = getattr(cpu, f"{order}_{name}", None)
        function = cpu.c_function_of(loop or getattr(between, name), dtype)
        steps.append((function.address, parts if loop else 1))
    return tuple(steps)
