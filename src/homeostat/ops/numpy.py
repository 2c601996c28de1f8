"""Batch normalization on NumPy arrays: forward only, since NumPy has no gradients.

Large unweighted arrays whose memory has no gaps run on the compiled CPU loops, where there are any.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from homeostat import kernels
from homeostat.layout import Layout
from homeostat.moments import Moments
from homeostat.ops.arguments import check, statistics_dtype
from homeostat.spec import Activation

Array = Any

# Elements from which on the compiled loops take an array; below, NumPy is about as fast.
LEAST = 2**14
# What the loops call a dtype, of which they take the bits.
BITS = {"float16": "uint16", "bfloat16": "int16"}

# NaN and infinity go through as in every other library, without a warning for each operation.
_QUIET = np.errstate(invalid="ignore", over="ignore")


def moments(
    x: Array,
    axis: int | Iterable[int] = -1,
    *,
    weights: Array | None = None,
    all_reduce: Callable[[Array], Array] | None = None,
) -> Moments:
    """Return the count, mean and population variance of each channel.

    mean = sum(w x) / W and variance = sum(w (x - mean)**2) / W with W = sum(w), the variance
    centred, so it is neither negative nor lost to cancellation. With nothing to average (W = 0)
    both are 0.

    Args:
        x: array of any rank >= 2 (or 1 with a batch axis only through a list of axes), floating.
        axis: channel axis or axes.
        weights: weights or mask, of the averaged axes' shape or their leading part, or None.
        all_reduce: sums an array over all replicas, or None for this process alone.

    Returns:
        `Moments`, detached, float32 (float64 for float64 inputs), arrays of the channel shape.

    Raises:
        ShapeError: a shape does not fit.
        DTypeError: x is not floating.

    Example:
        >>> import numpy as np
        >>> batch = moments(np.array([[1.0, 10.0], [3.0, 30.0]]))
        >>> batch.count, batch.mean.tolist(), batch.variance.tolist()
        (2, [2.0, 20.0], [1.0, 100.0])
    """
    x = np.asarray(x)
    weights = None if weights is None else np.asarray(weights)
    layout = check(x, axis, weights=weights)
    batch = _local_moments(x, layout, weights)
    return batch if all_reduce is None else _reduced(batch, all_reduce)


@_QUIET
def normalize(
    x: Array,
    mean: Array,
    variance: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    axis: int | Iterable[int] = -1,
    epsilon: float = 1e-3,
    activation: Any = None,
    residual: Array | None = None,
) -> Array:
    """Return activation(gamma * (x - mean) / sqrt(variance + epsilon) + beta + residual).

    Args:
        x: array of any rank >= 2, floating.
        mean: of the channel shape.
        variance: of the channel shape, the population variance.
        gamma: of the channel shape, or None for 1.
        beta: of the channel shape, or None for 0.
        axis: channel axis or axes.
        epsilon: added to the variance.
        activation: None, "relu" or "leaky_relu" (see `homeostat.Activation`).
        residual: of x's shape, added before the activation, or None.

    Returns:
        Array of x's shape and dtype.

    Raises:
        ShapeError: a shape does not fit.
        DTypeError: an array is not floating.
        SpecError: epsilon or the activation is not valid.

    Example:
        >>> import numpy as np
        >>> x = np.array([[1.0], [3.0]])
        >>> normalize(x, np.array([2.0]), np.array([4.0]), epsilon=0.0, activation="relu").tolist()
        [[0.0], [0.5]]
    """
    x, mean, variance = np.asarray(x), np.asarray(mean), np.asarray(variance)
    layout = check(
        x, axis, epsilon=epsilon, residual=residual,
        mean=mean, variance=variance, gamma=gamma, beta=beta,
    )  # fmt: skip
    statistics = np.dtype(statistics_dtype(x))
    mean, variance = mean.astype(statistics), variance.astype(statistics)
    act = Activation.of(activation)
    if _fits_loops(x, layout) and (residual is None or _alike(residual, x)):
        slope = None if act is None else act.negative_slope
        return _by_loops(x, mean, variance, gamma, beta, residual, layout, epsilon, slope)
    a = 1.0 / np.sqrt(variance + statistics.type(epsilon))
    if gamma is not None:
        a = a * np.asarray(gamma).astype(statistics)
    # Subtract before scaling: x * a + (beta - mean * a) loses the digits of a large mean.
    z = (x.astype(statistics, copy=False) - _spread(mean, layout)) * _spread(a, layout)
    if beta is not None:
        z += _spread(np.asarray(beta).astype(statistics), layout)
    if residual is not None:
        z += np.asarray(residual)
    if act is not None:
        # Not 0 * z for relu, which is -0.0 or, for an infinite z, NaN.
        below = statistics.type(act.negative_slope) * z if act.negative_slope else 0
        z = np.maximum(z, below)
    return z.astype(x.dtype, copy=False)


def normalize_batch(
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    axis: int | Iterable[int] = -1,
    epsilon: float = 1e-3,
    weights: Array | None = None,
    activation: Any = None,
    residual: Array | None = None,
    batch: Moments | None = None,
    all_reduce: Callable[[Array], Array] | None = None,
) -> tuple[Array, Moments]:
    """Normalize with the batch's own moments (Ioffe & Szegedy 2015, Algorithm 1).

    Args:
        x: array of any rank >= 2, floating.
        gamma: of the channel shape, or None for 1.
        beta: of the channel shape, or None for 0.
        axis: channel axis or axes.
        epsilon: added to the variance.
        weights: weights or mask of the statistics (see `moments`), or None.
        activation: None, "relu" or "leaky_relu".
        residual: of x's shape, added before the activation, or None.
        batch: the moments of this very x, where they are known already, or None.
        all_reduce: sums an array over all replicas, or None for this process alone.

    Returns:
        y, of x's shape and dtype, and the batch's `Moments`, detached.

    Raises:
        ShapeError: a shape does not fit.
        DTypeError: an array is not floating.
        SpecError: epsilon or the activation is not valid.

    Example:
        >>> import numpy as np
        >>> y, batch = normalize_batch(np.array([[1.0], [3.0]]), epsilon=0.0)
        >>> y.tolist(), batch.mean.tolist()
        ([[-1.0], [1.0]], [2.0])
    """
    if batch is None:
        batch = moments(x, axis, weights=weights, all_reduce=all_reduce)
    y = normalize(
        x,
        batch.mean,
        batch.variance,
        gamma,
        beta,
        axis=axis,
        epsilon=epsilon,
        activation=activation,
        residual=residual,
    )
    return y, batch


def _spread(channels: Array, layout: Layout) -> Array:
    return channels.reshape(layout.broadcast_shape)


@_QUIET
def _local_moments(x: Array, layout: Layout, weights: Array | None) -> Moments:
    statistics = np.dtype(statistics_dtype(x))
    axes = layout.reduction_axes
    if x.size == 0:
        zeros = np.zeros(layout.channel_shape, statistics)
        return Moments(0, zeros, zeros)
    if weights is None and _fits_loops(x, layout):
        loops = _batch(x, layout)
        loops.find_moments(_address(x), 0, 0, _threads())
        shape = layout.known_channel_shape
        return Moments(
            layout.count, *(part.astype(statistics).reshape(shape) for part in loops.moments)
        )
    if weights is None:
        w, count = None, layout.count
    else:
        full = weights.reshape(layout.weights_shape(weights.shape))
        averaged = tuple(1 if a in layout.channel_axes else n for a, n in enumerate(x.shape))
        w = np.broadcast_to(full, averaged).astype(np.float64)
        count = float(w.sum())
        x = np.where(w > 0, x, x.dtype.type(0))
    divisor = count if count else 1
    mean = _total(x, w, axes) / divisor
    centred = x.astype(statistics, copy=False) - _spread(mean.astype(statistics), layout)
    if w is not None:
        centred = np.where(w > 0, centred, statistics.type(0))
    offset = _total(centred, w, axes) / divisor
    variance = _total(centred * centred, w, axes) / divisor - offset**2
    mean = mean.astype(statistics).astype(np.float64) + offset
    return Moments(count, mean.astype(statistics), np.maximum(variance, 0).astype(statistics))


def _fits_loops(x: Array, layout: Layout) -> bool:
    axes = layout.channel_axes
    together = axes[-1] - axes[0] + 1 == len(axes)
    return x.size >= LEAST and together and _is_dense(x) and kernels.enabled()


def _is_dense(x: Array) -> bool:
    return x.flags.c_contiguous and x.flags.aligned and x.dtype.isnative


def _alike(residual: Array, x: Array) -> bool:
    return residual.dtype == x.dtype and _is_dense(residual)


@functools.cache
def _loops() -> Any:
    """Return the module of the loops, which needs numba."""
    from homeostat.kernels import batchnorm

    return batchnorm


def _batch(x: Array, layout: Layout, *options: Any) -> Any:
    shape = [n or 0 for n in layout.shape]
    first, last = layout.channel_axes[0], layout.channel_axes[-1]
    parts = (shape[:first], shape[first : last + 1], shape[last + 1 :])
    divided = _loops().Shape(*(math.prod(part) for part in parts))
    plan = _loops().plan_of(BITS.get(x.dtype.name, x.dtype.name), divided)
    return _loops().Batch(plan, *options)


def _address(x: Array | None) -> int:
    return 0 if x is None else x.ctypes.data


def _threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _by_loops(
    x: Array,
    mean: Array,
    variance: Array,
    gamma: Array | None,
    beta: Array | None,
    residual: Array | None,
    layout: Layout,
    epsilon: float,
    slope: float | None,
) -> Array:
    loops = _batch(x, layout, epsilon, slope)
    loops.moments[...] = mean.reshape(-1), variance.reshape(-1)
    scales = [
        None if values is None else np.ascontiguousarray(values, mean.dtype)
        for values in (gamma, beta)
    ]
    y = np.empty_like(x, order="C")
    loops.normalize(*map(_address, (x, residual, y, *scales)), _threads())
    return y


def _total(values: Array, weights: Array | None, axes: tuple[int, ...]) -> Array:
    weighted = values if weights is None else values * weights
    return np.sum(weighted, axis=axes, dtype=np.float64)


def _reduced(batch: Moments, all_reduce: Callable[[Array], Array]) -> Moments:
    count = all_reduce(np.asarray(batch.count, batch.mean.dtype))
    divisor = np.where(count > 0, count, 1)
    mean = all_reduce(batch.mean * batch.count) / divisor
    spread = (batch.variance + (batch.mean - mean) ** 2) * batch.count
    return Moments(count, mean, all_reduce(spread) / divisor)
