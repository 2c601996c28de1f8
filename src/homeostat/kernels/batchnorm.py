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
from homeostat.kernels.threads import Steps, run

Array = Any

# Bytes of an output from which on it is written past the cache: by the time that it is read again,
# something else would have taken its place.
LEAST_PAST = 2**23

_GIVEN = ("coefficients", "apply")
_TRAINING = ("moments", "merge_moments", *_GIVEN)


class Shape(NamedTuple):
    """How a flat buffer is divided: outer * channels * inner elements, none of the three 0."""

    outer: int
    channels: int
    inner: int


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
        self._plan, self._linear, channels = _plan(dtype, shape), slope is None, shape.channels
        # Epsilon, the slope, where 1 is no activation, and of each channel mean, variance, inverse
        # and offset; pivot, scale and shift, which may be shorter.
        self._kept = np.empty(2 + 7 * channels)
        self._kept[0], self._kept[1] = epsilon, 1.0 if slope is None else slope
        self._record = record = self._plan.record()
        address, step = self._kept.ctypes.data, 8 * channels
        record[fields.EPSILON], record[fields.SLOPE] = address, address + 8
        record[fields.MEAN], record[fields.VARIANCE] = address + 16, address + 16 + step
        record[fields.INVERSE] = address + 16 + 2 * step
        record[fields.OFFSET] = address + 16 + 3 * step
        address, step = address + 16 + 4 * step, self._plan.step
        record[fields.PIVOT], record[fields.SCALE] = address, address + step
        record[fields.SHIFT] = address + 2 * step

    @property
    def moments(self) -> Array:
        """Mean and variance, float64, (2, channels): to be given, or found."""
        channels = self._record[fields.CHANNELS]
        return self._kept[2 : 2 + 2 * channels].reshape(2, channels)

    def find_moments(self, x: int, results: int, threads: int) -> None:
        """Compute each channel's mean and population variance.

        Each block is centred on a mean of its own and blocks are merged in float64 (Chan, Golub &
        LeVeque 1979), so neither a large mean nor an outlier costs digits.

        Args:
            x: of the shape's size.
            results: of the statistics' dtype, (2, channels), written, or 0.
            threads: how many may run.
        """
        record = self._copy()
        record[fields.X] = x
        self._run(("moments", "merge_moments"), record, results, threads)

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
        record = self._copy()
        record[fields.X], record[fields.RESIDUAL], record[fields.OUT] = x, residual, y
        record[fields.GAMMA], record[fields.BETA] = gamma, beta
        self._run(_TRAINING if results else _GIVEN, record, results, threads)

    def apply(self, x: int, y: int, threads: int) -> None:
        """Compute y again as `normalize` did, without a residual."""
        record = self._copy()
        record[fields.X], record[fields.OUT] = x, y
        self._run(("apply",), record, 0, threads)

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
        channels, record = self._plan.shape.channels, self._copy()
        record[fields.X], record[fields.DY], record[fields.OUT] = x, dy, dx
        # Without an activation no sign matters: any of the arrays will do for it.
        record[fields.Y], record[fields.G] = dy if self._linear else y, g
        sums = np.empty(4 * channels)
        address = sums.ctypes.data
        record[fields.SUM_G], record[fields.SUM_CENTRED] = address, address + 8 * channels
        address += 16 * channels
        record[fields.BY_X], record[fields.CONSTANT] = address, address + self._plan.step
        self._run(("sums", "merge_sums", "gradient"), record, results, threads)

    def _copy(self) -> Any:
        return type(self._record).from_buffer_copy(self._record)

    def _run(self, names: tuple[str, ...], record: Any, results: int, threads: int) -> None:
        """Run steps by their names, of the buffers in a record."""
        plan = self._plan
        room = np.empty(plan.room)
        record[fields.ROOM] = room.ctypes.data
        record[fields.RESULTS], record[fields.MORE_RESULTS] = results, results + plan.step
        on_lines = (record[fields.OUT] | record[fields.G]) % 64 == 0
        record[fields.PAST] = plan.leaves_the_cache and on_lines
        run(plan.steps(names), record, threads)


class _Plan:
    """What all batches of a dtype and a shape share.

    Args:
        dtype: of the elements.
        shape: how the buffers are divided.
    """

    def __init__(self, dtype: str, shape: Shape) -> None:
        self.dtype, self.shape = dtype, shape
        self.parts, self.room = parts_and_room(shape)
        # The bytes of all channels' values.
        self.step = shape.channels * np.dtype(statistics_dtype(dtype)).itemsize
        size, line = np.dtype(dtype).itemsize, shape.inner if shape.inner > 1 else shape.channels
        elements = shape.outer * shape.channels * shape.inner
        self.leaves_the_cache = elements * size >= LEAST_PAST and line * size % 64 == 0
        self._steps: dict[tuple[str, ...], Steps] = {}

    def record(self) -> Any:
        """Return a record that has the sizes."""
        return fields.Record(*self.shape)

    def steps(self, names: tuple[str, ...]) -> Steps:
        """Return steps by their names."""
        if names not in self._steps:
            self._steps[names] = Steps([self._step(name) for name in names])
        return self._steps[names]

    def _step(self, name: str) -> tuple[int, int]:
        order = "rows" if self.shape.inner == 1 else "planes"
        loop = getattr(cpu, f"{order}_{name}", None)
        function = cpu.c_function_of(loop or getattr(between, name), self.dtype)
        return function.address, self.parts if loop else 1


_plan = functools.lru_cache(maxsize=1024)(_Plan)
