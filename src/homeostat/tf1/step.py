"""One call of the TF1 layer in training: which statistics, which gamma and beta, what moves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import tensorflow.compat.v1 as tf

from homeostat.layout import Layout, known_sizes
from homeostat.moments import (
    Moments,
    MovingStatistics,
    average_groups,
    renorm_correction,
)
from homeostat.ops import tensorflow as ops

Tensor = Any

# The array namespace that the core's arithmetic takes.
NAMESPACE = SimpleNamespace(
    where=tf.where_v2,
    isfinite=tf.math.is_finite,
    zeros_like=tf.zeros_like,
    ones_like=tf.ones_like,
    sqrt=tf.sqrt,
    mean=tf.reduce_mean,
)


def train(
    layer: Any, x: Tensor, old: MovingStatistics, weights: Tensor | None = None
) -> tuple[Tensor, MovingStatistics]:
    """Normalize with the batch's statistics.

    Args:
        layer: a built `homeostat.tf1.normalization.BatchNormalization`.
        x: the input.
        old: the layer's statistics, of the channel shape.
        weights: weight of each example in the statistics, or None; not with virtual batches.

    Returns:
        y, and the statistics after this batch.
    """
    layout = Layout.of(known_sizes(x), layer.spec.axes)
    if layer.adjustment is not None:
        y, batch = _adjusted(layer, x, layout, old, weights)
    elif layer.spec.virtual_batch_size is not None:
        y, batch = _virtual_batches(layer, x, layout, old)
    else:
        batch = None
        gamma, beta = layer.channels(layer.gamma), layer.channels(layer.beta)
        if layer.spec.renorm:
            batch = ops.moments(x, layout.channel_axes, weights=weights)
            gamma, beta = _renormed(layer, batch, old, gamma, beta)
        y, batch = ops.normalize_batch(
            x, gamma, beta, axis=layout.channel_axes, epsilon=layer.spec.epsilon,
            weights=weights, batch=batch,
        )  # fmt: skip
    return y, layer.advance(old, batch)


def infer(layer: Any, x: Tensor, old: MovingStatistics) -> Tensor:
    """Normalize with the moving statistics."""
    gamma, beta = layer.channels(layer.gamma), layer.channels(layer.beta)
    return ops.normalize(
        x, old.mean, old.variance, gamma, beta, axis=layer.spec.axes, epsilon=layer.spec.epsilon
    )


def _correction(layer: Any, batch: Moments, old: MovingStatistics) -> tuple[Tensor, Tensor]:
    """Return renorm's r and d, constants to the gradient."""
    correction = renorm_correction(
        batch, old.renorm_mean, old.renorm_stddev, layer.spec.epsilon, layer.clipping, NAMESPACE
    )
    return tuple(tf.stop_gradient(each) for each in correction)


def _renormed(
    layer: Any, batch: Moments, old: MovingStatistics, gamma: Tensor | None, beta: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return gamma * r and beta + gamma * d: (x_hat * r + d) * gamma + beta."""
    r, d = _correction(layer, batch, old)
    if gamma is not None:
        r, d = gamma * r, gamma * d
    return r, d if beta is None else beta + d


def _virtual_batches(
    layer: Any, x: Tensor, layout: Layout, old: MovingStatistics
) -> tuple[Tensor, Moments]:
    """Normalize each virtual batch by its own statistics.

    As in TF1, example i belongs to group i mod number of groups, the moving statistics follow the
    groups' average, and with renorm all groups are corrected by that average's r and d.
    """
    size = layer.spec.virtual_batch_size
    _, parted = layout.ghost(size)
    sizes = tf.shape(x)
    grouped = tf.reshape(x, tf.concat([[size, -1], sizes[1:]], 0))
    grouped.set_shape([size, *parted.shape[1:]])
    batch = ops.moments(grouped, parted.channel_axes)
    averaged = average_groups(batch, 0, NAMESPACE)
    gamma, beta = layer.channels(layer.gamma), layer.channels(layer.beta)
    if layer.spec.renorm:
        gamma, beta = _renormed(layer, averaged, old, gamma, beta)
    spread = tf.shape(batch.mean)
    gamma, beta = (None if c is None else tf.broadcast_to(c, spread) for c in (gamma, beta))
    y, _ = ops.normalize_batch(
        grouped, gamma, beta, axis=parted.channel_axes, epsilon=layer.spec.epsilon, batch=batch
    )
    y = tf.reshape(y, sizes)
    y.set_shape(x.shape)
    return y, averaged


def _adjusted(
    layer: Any, x: Tensor, layout: Layout, old: MovingStatistics, weights: Tensor | None
) -> tuple[Tensor, Moments]:
    """Scale and shift the normalized values as the adjustment says, then by gamma and beta."""
    batch = ops.moments(x, layout.channel_axes, weights=weights)
    r, d = _correction(layer, batch, old) if layer.spec.renorm else (None, None)
    z, _ = ops.normalize_batch(
        x, r, d, axis=layout.channel_axes, epsilon=layer.spec.epsilon, weights=weights, batch=batch
    )
    scale, bias = layer.adjustment(tf.shape(x))
    z = tf.cast(z, batch.mean.dtype)
    z = z * tf.cast(scale, z.dtype) + tf.cast(bias, z.dtype)
    spread = layout.broadcast_shape
    for channels, apply in ((layer.gamma, tf.multiply), (layer.beta, tf.add)):
        if channels is not None:
            z = apply(z, tf.reshape(tf.cast(layer.channels(channels), z.dtype), spread))
    z.set_shape(x.shape)
    return tf.cast(z, x.dtype), batch
