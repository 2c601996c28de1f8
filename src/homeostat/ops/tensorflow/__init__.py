"""Batch normalization on TensorFlow tensors: eager, in `tf.function`, in XLA, in TF1 graphs.

Three ways lead to the same numbers. `fused` is TensorFlow's own fused op, the fastest
where it applies. `plain` is written in elementary ops and takes whatever the fused op cannot:
weights, separate channel axes, float64, replicas, XLA. Gradients of gradients go through
`Plain.composite`, which TensorFlow differentiates itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf

from homeostat.moments import Moments
from homeostat.ops.arguments import check, statistics_dtype
from homeostat.ops.tensorflow import fused
from homeostat.ops.tensorflow.elements import Elements, finish, spread
from homeostat.ops.tensorflow.gradients import detached, differentiable
from homeostat.ops.tensorflow.plain import Plain, centre
from homeostat.spec import Activation

Tensor = Any


def moments(
    x: Tensor,
    axis: int | Iterable[int] = -1,
    *,
    weights: Tensor | None = None,
    all_reduce: Callable[[Tensor], Tensor] | None = None,
) -> Moments:
    """Return the count, mean and population variance of each channel.

    mean = sum(w x) / W and variance = sum(w (x - mean)**2) / W with W = sum(w), the variance
    centred, so it is neither negative nor lost to cancellation. With nothing to average (W = 0)
    both are 0.

    Args:
        x: tensor of any known rank >= 2, floating.
        axis: channel axis or axes.
        weights: weights or mask, of the averaged axes' shape or their leading part, or None.
        all_reduce: sums a tensor over all replicas, or None for this replica alone.

    Returns:
        `Moments`, detached, float32 (float64 for float64 inputs), tensors of the channel shape.

    Raises:
        ShapeError: a shape does not fit.
        DTypeError: x is not floating.

    Example:
        >>> import tensorflow as tf
        >>> batch = moments(tf.constant([[1.0, 10.0], [3.0, 30.0]]))
        >>> batch.count, batch.mean.numpy().tolist(), batch.variance.numpy().tolist()
        (2, [2.0, 20.0], [1.0, 100.0])
    """
    x, weights = tf.convert_to_tensor(x), _optional(weights)
    layout = check(x, axis, weights=weights)
    elements = Elements.of(x, layout, weights, all_reduce)
    pivot, offset, variance = centre(elements, tf.cast(x, elements.dtype))
    return detached(Moments(elements.count, pivot + offset, variance))


def normalize(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    axis: int | Iterable[int] = -1,
    epsilon: float = 1e-3,
    activation: Any = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Return activation(gamma * (x - mean) / sqrt(variance + epsilon) + beta + residual).

    Args:
        x: tensor of any known rank >= 2, floating.
        mean: of the channel shape.
        variance: of the channel shape, the population variance.
        gamma: of the channel shape, or None for 1.
        beta: of the channel shape, or None for 0.
        axis: channel axis or axes.
        epsilon: added to the variance.
        activation: None, "relu" or "leaky_relu" (see `homeostat.Activation`).
        residual: of x's shape, added before the activation, or None.

    Returns:
        Tensor of x's shape and dtype, differentiable in every argument.

    Raises:
        ShapeError: a shape does not fit.
        DTypeError: a tensor is not floating.
        SpecError: epsilon or the activation is not valid.

    Example:
        >>> import tensorflow as tf
        >>> x, mean, variance = tf.constant([[1.0], [3.0]]), tf.constant([2.0]), tf.constant([4.0])
        >>> normalize(x, mean, variance, epsilon=0.0, activation="relu").numpy().tolist()
        [[0.0], [0.5]]
    """
    x, mean, variance = (tf.convert_to_tensor(array) for array in (x, mean, variance))
    gamma, beta, residual = _optional(gamma), _optional(beta), _optional(residual)
    layout = check(
        x, axis, epsilon=epsilon, residual=residual,
        mean=mean, variance=variance, gamma=gamma, beta=beta,
    )  # fmt: skip
    statistics = statistics_dtype(x)
    scale = tf.math.rsqrt(tf.cast(variance, statistics) + epsilon)
    if gamma is not None:
        scale = scale * tf.cast(gamma, statistics)
    # Subtract before scaling: x * a + (beta - mean * a) loses the digits of a large mean.
    z = (tf.cast(x, statistics) - spread(tf.cast(mean, statistics), x, layout)) * spread(
        scale, x, layout
    )
    if beta is not None:
        z = z + spread(tf.cast(beta, statistics), x, layout)
    return finish(z, residual, Activation.of(activation), x.dtype)


def normalize_batch(
    x: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    axis: int | Iterable[int] = -1,
    epsilon: float = 1e-3,
    weights: Tensor | None = None,
    activation: Any = None,
    residual: Tensor | None = None,
    batch: Moments | None = None,
    all_reduce: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Moments]:
    """Normalize with the batch's own moments (Ioffe & Szegedy 2015, Algorithm 1).

    With g = dy * activation'(z), x_hat = (x - mean) * s and s = 1 / sqrt(variance + epsilon), the
    gradients are dbeta = sum(g), dgamma = sum(g * x_hat) and
    dx = gamma * s * (g - (w / W) * (dbeta + x_hat * dgamma)). Besides x only the output is kept for
    them, and only for an activation. Gradients of gradients are right as well, and slower.

    Args:
        x: tensor of any known rank >= 2, floating.
        gamma: of the channel shape, or None for 1.
        beta: of the channel shape, or None for 0.
        axis: channel axis or axes.
        epsilon: added to the variance.
        weights: weights or mask of the statistics (see `moments`), or None.
        activation: None, "relu" or "leaky_relu".
        residual: of x's shape, added before the activation, or None.
        batch: the moments of this very x, where they are known already, or None.
        all_reduce: sums a tensor over all replicas, or None for this replica alone.

    Returns:
        y, of x's shape and dtype, and the batch's `Moments`, detached.

    Raises:
        ShapeError: a shape does not fit.
        DTypeError: a tensor is not floating.
        SpecError: epsilon or the activation is not valid.

    Example:
        >>> import tensorflow as tf
        >>> y, batch = normalize_batch(tf.constant([[1.0], [3.0]]), epsilon=0.0)
        >>> y.numpy().tolist(), batch.mean.numpy().tolist()
        ([[-1.0], [1.0]], [2.0])
    """
    x = tf.convert_to_tensor(x)
    gamma, beta, residual, weights = map(_optional, (gamma, beta, residual, weights))
    layout = check(
        x, axis, epsilon=epsilon, weights=weights, residual=residual, gamma=gamma, beta=beta
    )
    elements = Elements.of(x, layout, weights, all_reduce)
    quick = batch is None and not elements.few and fused.takes(elements, x)
    way = fused.Fused if quick else Plain
    norm = way(elements, float(epsilon), Activation.of(activation), batch)
    inputs = [x, *elements.affine(gamma, beta)]
    if residual is not None:
        inputs.append(residual)
    y, mean, variance = differentiable(norm, inputs)
    return y, detached(Moments(elements.count, mean, variance))


def _optional(array: Tensor | None) -> Tensor | None:
    return None if array is None else tf.convert_to_tensor(array)
