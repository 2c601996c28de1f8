"""Batch normalization of flat buffers, forward and backward, by the loops of this room.

A tensor is seen as (outer, channels, inner), flat in memory; inner is 1 where channels come last.
Buffers come as addresses, 0 for none: whoever calls holds their memory. Elements are "float32",
"float64", or the bits of float16 ("uint16") or bfloat16 ("int16"), whose statistics are float32.
Results are the same, bit by bit, on any number of threads.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any, NamedTuple

import numpy as np

from homeostat.kernels import channels as between
from homeostat.kernels import cpu, planes, strips
from homeostat.kernels import record as fields
from homeostat.kernels.strips import LEAST_PAST
from homeostat.kernels.threads import Steps, run

Array = Any

_FINDING = ("lay", "moments", "merge_moments")
_GIVEN = ("lay", "coefficients", "apply")
_TRAINING = (*_FINDING, "coefficients", "apply")
_MOVING = (*_FINDING, "coefficients", "move", "apply")
_AGAIN = ("lay", "apply")
_BACKWARD = ("lay", "sums", "merge_sums", "gradient")

# What comes before the channels' values in what is kept: epsilon, the slope, and from _WEIGHTS on
# those of statistics that move.
_WEIGHTS, _HEAD = 2, 5


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


class Moving(NamedTuple):
    """Statistics that follow those of batches: old * weight + the batch's * its weight.

    Args:
        mean: address, of the statistics' dtype, (channels,).
        variance: like mean.
        updates: address of an int64, to which 1 is added, or 0.
        weights: of what they were, of the batch's mean, and of its population variance.
    """

    mean: int
    variance: int
    updates: int
    weights: tuple[float, float, float]


class Batch:
    """A tensor's buffer and what a forward pass leaves of its channels for the backward.

    Args:
        plan: what `plan_of` returns.
        epsilon: added to the variance.
        slope: the activation's for negative values, or None for no activation.

    Attributes:
        moved: whether the last `train` moved statistics.
    """

    def __init__(self, plan: Plan, epsilon: float = 0.0, slope: float | None = None) -> None:
        self._plan, self._linear = plan, slope is None
        self._kept = kept = plan.kept()
        # Without an activation the slope is 1.
        kept[0], kept[1] = epsilon, 1.0 if slope is None else slope
        self.moved = False

    @property
    def moments(self) -> Array:
        """Mean and variance, float64, (2, channels): to be given, or found."""
        channels = self._plan.shape.channels
        return np.frombuffer(self._kept)[_HEAD : _HEAD + 2 * channels].reshape(2, channels)

    def find_moments(self, x: int, mean: int, variance: int, threads: int) -> None:
        """Compute each channel's mean and population variance.

        Each block is centred on a mean of its own and blocks are merged in float64 (Chan, Golub &
        LeVeque 1979), so neither a large mean nor an outlier costs digits.

        Args:
            x: of the shape's size.
            mean: of the statistics' dtype, (channels,), written, or 0.
            variance: like mean.
            threads: how many may run.
        """
        record = self._plan.record()
        record[fields.X] = x
        record[fields.RESULTS], record[fields.MORE_RESULTS] = mean, variance
        self._run(_FINDING, record, threads)

    def normalize(self, x: int, residual: int, y: int, gamma: int, beta: int, threads: int) -> None:
        """Compute y = activation((x - mean) * scale + shift + residual) by `moments`, as filled.

        Args:
            x: of the shape's size.
            residual: like x, or 0.
            y: like x, written.
            gamma: of the statistics' dtype, (channels,), or 0 for 1.
            beta: like gamma, or 0 for 0.
            threads: how many may run.
        """
        self._run(_GIVEN, self._forward(x, residual, y, gamma, beta), threads)

    def train(
        self,
        x: int,
        residual: int,
        y: int,
        gamma: int,
        beta: int,
        threads: int,
        *,
        mean: int = 0,
        variance: int = 0,
        moving: Moving | None = None,
    ) -> None:
        """Find the moments, normalize by them, and let statistics follow them.

        Args:
            x: see `normalize`, like all up to the star.
            residual: see there.
            y: see there.
            gamma: see there.
            beta: see there.
            threads: see there.
            mean: see `find_moments`.
            variance: see there.
            moving: what follows where all channels' moments are finite, as `moved` tells; or None.
        """
        record = self._forward(x, residual, y, gamma, beta)
        record[fields.RESULTS], record[fields.MORE_RESULTS] = mean, variance
        if moving is None:
            self._run(_TRAINING, record, threads)
            return
        mean, variance, updates, weights = moving
        record[fields.MOVING_MEAN], record[fields.MOVING_VARIANCE] = mean, variance
        record[fields.UPDATES], self._kept[_WEIGHTS:_HEAD] = updates, weights
        self._run(_MOVING, record, threads)
        self.moved = record[fields.MOVED] != 0

    def apply(self, x: int, y: int, threads: int) -> None:
        """Compute y again as `normalize` did, without a residual."""
        self._run(_AGAIN, self._forward(x, 0, y, 0, 0), threads)

    def gradients(
        self, x: int, dy: int, y: int, dx: int, g: int, dgamma: int, dbeta: int, threads: int
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
            dgamma: of the statistics' dtype, (channels,), written, or 0.
            dbeta: like dgamma.
            threads: how many may run.
        """
        record = self._plan.record()
        record[fields.X], record[fields.DY], record[fields.OUT] = x, dy, dx
        # Without an activation no sign matters: any of the arrays will do for it.
        record[fields.Y], record[fields.G] = dy if self._linear else y, g
        record[fields.RESULTS], record[fields.MORE_RESULTS] = dgamma, dbeta
        self._run(_BACKWARD, record, threads)

    def _forward(self, x: int, residual: int, y: int, gamma: int, beta: int) -> Any:
        record = self._plan.record()
        record[fields.X], record[fields.RESIDUAL], record[fields.OUT] = x, residual, y
        record[fields.GAMMA], record[fields.BETA] = gamma, beta
        return record

    def _run(self, names: tuple[str, ...], record: Any, threads: int) -> None:
        """Run steps by their names, of the buffers in a record."""
        plan = self._plan
        record[fields.KEPT] = ctypes.addressof(self._kept)
        on_lines = (record[fields.OUT] | record[fields.G]) % 64 == 0
        record[fields.PAST] = plan.leaves_the_cache and on_lines
        run(plan.steps(names), record, threads)


class Plan:
    """What all batches of a dtype and a shape share.

    Args:
        dtype: of the elements.
        shape: how the buffers are divided.
    """

    def __init__(self, dtype: str, shape: Shape) -> None:
        self.dtype, self.shape = dtype, shape
        self.parts, room = parts_and_room(shape)
        # The bytes of all channels' values, and of their float64.
        step, wide = shape.channels * np.dtype(statistics_dtype(dtype)).itemsize, 8 * shape.channels
        self.kept = ctypes.c_double * (_HEAD + 7 * shape.channels)
        self.lent = room + 4 * shape.channels
        self._blank = blank = fields.Record(*shape)
        blank[fields.SLOPE], blank[fields.WEIGHTS], at = 8, 8 * _WEIGHTS, 8 * _HEAD
        for field in (fields.MEAN, fields.VARIANCE, fields.INVERSE, fields.OFFSET):
            blank[field], at = at, at + wide
        for field in (fields.PIVOT, fields.SCALE, fields.SHIFT):
            blank[field], at = at, at + step
        at = 8 * room
        for field in (fields.SUM_G, fields.SUM_CENTRED):
            blank[field], at = at, at + wide
        for field in (fields.BY_X, fields.CONSTANT):
            blank[field], at = at, at + step
        size, line = np.dtype(dtype).itemsize, shape.inner if shape.inner > 1 else shape.channels
        elements = shape.outer * shape.channels * shape.inner
        self.leaves_the_cache = elements * size >= LEAST_PAST and line * size % 64 == 0
        self._steps: dict[tuple[str, ...], Steps] = {}

    def record(self) -> Any:
        """Return a record that has the sizes, and the offsets of what lies in its memory."""
        return fields.Record.from_buffer_copy(self._blank)

    def steps(self, names: tuple[str, ...]) -> Steps:
        """Return steps by their names."""
        steps = self._steps.get(names)
        if steps is None:
            each = [self._step(name) for name in names]
            steps = self._steps[names] = Steps(each, self.lent, fields.LENT)
        return steps

    def _step(self, name: str) -> tuple[int, int]:
        order = "rows" if self.shape.inner == 1 else "planes"
        loop = getattr(cpu, f"{order}_{name}", None)
        function = cpu.c_function_of(loop or getattr(between, name), self.dtype)
        return function.address, self.parts if loop else 1


plan_of = functools.lru_cache(maxsize=1024)(Plan)
