"""The oracle: batch normalization in float64 NumPy, written to be read and checked, not to be fast.

Only tests, benchmarks and studies import it. Every array is converted to float64 first, so the
results are those of exact arithmetic on the values given, to about 1e-15.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from homeostat.errors import ShapeError
from homeostat.layout import Layout
from homeostat.moments import (
    Moments,
    MovingStatistics,
    RenormCorrection,
    advance,
    average_groups,
    renorm_correction,
)
from homeostat.spec import Activation, BatchNormSpec

Float64 = npt.NDArray[np.float64]


def _float64(array: npt.ArrayLike) -> Float64:
    return np.asarray(array, dtype=np.float64)


def _optional(array: npt.ArrayLike | None, otherwise: float, shape: Any) -> Float64:
    if array is None:
        return np.zeros(shape, dtype=np.float64) + otherwise
    return _float64(array)


def _sum(values: Float64, layout: Layout) -> Float64:
    return np.asarray(np.sum(values, axis=layout.reduction_axes), dtype=np.float64)


def _spread(channels: Float64, layout: Layout) -> Float64:
    return channels.reshape([1 if n is None else n for n in layout.broadcast_shape])


def _activate(z: Float64, activation: Activation | None) -> Float64:
    if activation is None:
        return z
    return np.maximum(z, activation.negative_slope * z if activation.negative_slope else 0.0)


def _element_weights(weights: npt.ArrayLike | None, layout: Layout) -> Float64:
    shape = [n or 0 for n in layout.shape]
    if weights is None:
        return np.ones(shape)
    given = _float64(weights)
    return np.broadcast_to(
        given.reshape([n or 0 for n in layout.weights_shape(given.shape)]), shape
    )


def moments(
    x: npt.ArrayLike, axis: int | tuple[int, ...] = -1, *, weights: npt.ArrayLike | None = None
) -> Moments:
    """Return count, mean and population variance of each channel, by the corrected two-pass rule.

    mean = sum(w x) / W, variance = sum(w (x - mean)**2) / W with W = sum(w); both are 0 where W is
    0. Elements of weight 0 do not count, whatever they hold.

    Args:
        x: array of any rank and real dtype.
        axis: the channel axis or axes.
        weights: one weight for each averaged element (see `Layout.weights_shape`), or None.
    """
    x = _float64(x)
    layout = Layout.of(x.shape, axis)
    w = _element_weights(weights, layout)
    x = np.where(w > 0, x, 0.0)
    count = _sum(w, layout)
    divisor = np.where(count > 0, count, 1.0)
    with np.errstate(invalid="ignore"):
        mean = _sum(w * x, layout) / divisor
        mean = mean + _sum(w * (x - _spread(mean, layout)), layout) / divisor
        centred = np.where(w > 0, x - _spread(mean, layout), 0.0)
        variance = _sum(w * centred**2, layout) / divisor
    return Moments(count, mean, variance)


def normalize(
    x: npt.ArrayLike,
    mean: npt.ArrayLike,
    variance: npt.ArrayLike,
    gamma: npt.ArrayLike | None = None,
    beta: npt.ArrayLike | None = None,
    *,
    axis: int | tuple[int, ...] = -1,
    epsilon: float = 1e-3,
    activation: Any = None,
    residual: npt.ArrayLike | None = None,
) -> Float64:
    """Return activation(gamma * (x - mean) / sqrt(variance + epsilon) + beta + residual)."""
    x = _float64(x)
    layout = Layout.of(x.shape, axis)
    shape = layout.known_channel_shape
    inverse = 1.0 / np.sqrt(_float64(variance) + epsilon)
    with np.errstate(invalid="ignore"):
        z = (x - _spread(_float64(mean), layout)) * _spread(
            inverse * _optional(gamma, 1.0, shape), layout
        )
        z = z + _spread(_optional(beta, 0.0, shape), layout)
        if residual is not None:
            z = z + _float64(residual)
        return _activate(z, Activation.of(activation))


def normalize_batch(
    x: npt.ArrayLike,
    gamma: npt.ArrayLike | None = None,
    beta: npt.ArrayLike | None = None,
    *,
    axis: int | tuple[int, ...] = -1,
    epsilon: float = 1e-3,
    weights: npt.ArrayLike | None = None,
    activation: Any = None,
    residual: npt.ArrayLike | None = None,
) -> tuple[Float64, Moments]:
    """Normalize with the batch's own moments (Ioffe & Szegedy 2015, Algorithm 1).

    Returns:
        y, and the batch's moments.
    """
    batch = moments(x, axis, weights=weights)
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


class Gradients(NamedTuple):
    """Gradients of sum(dy * y): to x, to gamma and beta (channel shape), and to the residual."""

    x: Float64
    gamma: Float64
    beta: Float64
    residual: Float64


def backward(
    dy: npt.ArrayLike,
    x: npt.ArrayLike,
    gamma: npt.ArrayLike | None = None,
    beta: npt.ArrayLike | None = None,
    *,
    axis: int | tuple[int, ...] = -1,
    epsilon: float = 1e-3,
    weights: npt.ArrayLike | None = None,
    activation: Any = None,
    residual: npt.ArrayLike | None = None,
) -> Gradients:
    """Return the gradients of `normalize_batch`, through the mean and the variance as well.

    With g = dy * activation'(z), x_hat = (x - mean) * s, s = 1 / sqrt(variance + epsilon)::

        dbeta  = sum(g)          dgamma = sum(g * x_hat)          dresidual = g
        dx     = gamma * s * (g - (w / W) * (dbeta + x_hat * dgamma))

    An element of weight 0 that is NaN reaches the others only where a gradient comes in to it.
    """
    x, g = _float64(x), _float64(dy)
    layout = Layout.of(x.shape, axis)
    batch = moments(x, axis, weights=weights)
    scale = 1.0 / np.sqrt(batch.variance + epsilon)
    x_hat = (x - _spread(batch.mean, layout)) * _spread(scale, layout)
    gammas = _optional(gamma, 1.0, layout.known_channel_shape)
    act = Activation.of(activation)
    if act is not None:
        z = x_hat * _spread(gammas, layout)
        z = z + _spread(_optional(beta, 0.0, layout.known_channel_shape), layout)
        z = z if residual is None else z + _float64(residual)
        g = np.where(z > 0, g, act.negative_slope * g)
    dbeta, dgamma = _sum(g, layout), _sum(np.where(g == 0, 0.0, g * x_hat), layout)
    share = _element_weights(weights, layout) / _spread(
        np.where(batch.count > 0, batch.count, 1.0), layout
    )
    through_moments = _spread(dbeta, layout) + x_hat * _spread(dgamma, layout)
    through_moments = np.where(share > 0, share * through_moments, 0.0)
    dx = _spread(gammas * scale, layout) * (g - through_moments)
    return Gradients(dx, dgamma, dbeta, g)


def start(channel_shape: tuple[int, ...]) -> MovingStatistics:
    """Return the statistics before any batch: mean 0, variance 1, nothing counted."""
    zeros, ones = np.zeros(channel_shape), np.ones(channel_shape)
    skipped = np.zeros(channel_shape, np.int64)
    return MovingStatistics(zeros, ones, zeros, skipped, ones, zeros, ones)


class Step(NamedTuple):
    """One training step: the output, the moments that the statistics moved to, the new state."""

    y: Float64
    batch: Moments
    state: MovingStatistics


def train_step(
    x: npt.ArrayLike,
    state: MovingStatistics,
    spec: BatchNormSpec,
    gamma: npt.ArrayLike | None = None,
    beta: npt.ArrayLike | None = None,
    *,
    weights: npt.ArrayLike | None = None,
    residual: npt.ArrayLike | None = None,
) -> Step:
    """Run one training step with everything that the spec asks for.

    Ghost batches normalize each group by its own moments and move the statistics by the groups'
    average; renorm corrects towards its statistics with r and d and moves standard deviations
    (Ioffe 2017, Algorithm 1).

    Raises:
        ShapeError: shapes do not fit, or weights are combined with ghost batches.
    """
    call = _arrange(x, state, spec, gamma, beta, weights, residual)
    y = normalize(
        call.x,
        call.groups.mean,
        call.groups.variance,
        call.gamma * call.correction.r,
        call.beta + call.gamma * call.correction.d,
        axis=call.axes,
        epsilon=spec.epsilon,
        activation=spec.activation,
        residual=call.residual,
    )
    batch = call.groups if spec.virtual_batch_size is None else _average(call.groups)
    return Step(y.reshape(np.shape(x)), batch, advance(state, batch, spec, np))


def step_gradients(
    dy: npt.ArrayLike,
    x: npt.ArrayLike,
    state: MovingStatistics,
    spec: BatchNormSpec,
    gamma: npt.ArrayLike | None = None,
    beta: npt.ArrayLike | None = None,
    *,
    weights: npt.ArrayLike | None = None,
    residual: npt.ArrayLike | None = None,
) -> Gradients:
    """Return the gradients of sum(dy * y) of `train_step`, renorm's r and d held constant.

    With y = x_hat * (gamma * r) + (beta + gamma * d) in each ghost batch, dgamma sums
    r * d(gamma * r) + d * d(beta + gamma * d) over the ghost batches.
    """
    call = _arrange(x, state, spec, gamma, beta, weights, residual)
    found = backward(
        _float64(dy).reshape(call.x.shape),
        call.x,
        call.gamma * call.correction.r,
        call.beta + call.gamma * call.correction.d,
        axis=call.axes,
        epsilon=spec.epsilon,
        weights=weights,
        activation=spec.activation,
        residual=call.residual,
    )
    dgamma = found.gamma * call.correction.r + found.beta * call.correction.d
    dbeta = found.beta
    if spec.virtual_batch_size is not None:
        dgamma, dbeta = np.sum(dgamma, axis=0), np.sum(dbeta, axis=0)
    shape = np.shape(x)
    return Gradients(found.x.reshape(shape), dgamma, dbeta, found.residual.reshape(shape))


class _Arranged(NamedTuple):
    """One training step's arrays, ghost batches as further channels."""

    x: Float64
    axes: tuple[int, ...]
    gamma: Float64
    beta: Float64
    residual: Float64 | None
    groups: Moments
    correction: RenormCorrection


def _arrange(
    x: npt.ArrayLike,
    state: MovingStatistics,
    spec: BatchNormSpec,
    gamma: npt.ArrayLike | None,
    beta: npt.ArrayLike | None,
    weights: npt.ArrayLike | None,
    residual: npt.ArrayLike | None,
) -> _Arranged:
    x = _float64(x)
    layout = parted = Layout.of(x.shape, spec.axes)
    if spec.virtual_batch_size is not None:
        if weights is not None:
            raise ShapeError("weights with virtual_batch_size: expected one of the two. Drop one.")
        view, parted = layout.ghost(spec.virtual_batch_size)
        x = x.reshape([n or 0 for n in view])
    channels, spread = layout.known_channel_shape, parted.known_channel_shape
    groups = moments(x, parted.channel_axes, weights=weights)
    return _Arranged(
        x,
        parted.channel_axes,
        np.broadcast_to(_optional(gamma, 1.0, channels), spread),
        np.broadcast_to(_optional(beta, 0.0, channels), spread),
        None if residual is None else _float64(residual).reshape(x.shape),
        groups,
        _renorm(groups, state, spec),
    )


def _average(groups: Moments) -> Moments:
    averaged = average_groups(groups, 0, np)
    return Moments(averaged.count[0], averaged.mean, averaged.variance)


def _renorm(groups: Moments, state: MovingStatistics, spec: BatchNormSpec) -> RenormCorrection:
    if not spec.renorm:
        return RenormCorrection(np.float64(1.0), np.float64(0.0))
    return renorm_correction(
        groups, state.renorm_mean, state.renorm_stddev, spec.epsilon, spec.clipping, np
    )


class Folded(NamedTuple):
    """The kernel and bias of a linear op that has taken a batch norm in."""

    kernel: Float64
    bias: Float64


def fold(
    kernel: npt.ArrayLike,
    bias: npt.ArrayLike | None,
    mean: npt.ArrayLike,
    variance: npt.ArrayLike,
    gamma: npt.ArrayLike | None = None,
    beta: npt.ArrayLike | None = None,
    *,
    epsilon: float = 1e-3,
) -> Folded:
    """Fold an inference batch norm into the linear op before it, output channels last in kernel.

    kernel' = kernel * a and bias' = (bias - mean) * a + beta, a = gamma / sqrt(variance + epsilon).
    """
    mean, kernel = _float64(mean), _float64(kernel)
    a = _optional(gamma, 1.0, mean.shape) / np.sqrt(_float64(variance) + epsilon)
    shifted = _optional(bias, 0.0, mean.shape) - mean
    return Folded(kernel * a, shifted * a + _optional(beta, 0.0, mean.shape))
