"""One call of the TF1 layer in training: which statistics, which gamma and beta, what moves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import tensorflow.compat.v1 as tf

from homeostat.layout import Layout, known_sizes
from homeostat.moments import (
    Moments,
    MovingStatistics,
    RenormCorrection,
    average_groups,
    corrected,
    renorm_correction,
)
from homeostat.ops import tensorflow as ops
from homeostat.ops.tensorflow.either import normalize_either

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
) -> tuple[Tensor, Moments]:
    """Normalize with the batch's statistics.

    Args:
        layer: a built `homeostat.tf1.normalization.BatchNormalization`.
        x: the input.
        old: the layer's statistics, of the channel shape.
        weights: weight of each example in the statistics, or None; not with virtual batches.

    Returns:
        y, and the moments that the statistics follow.
    """
    layout = Layout.of(known_sizes(x), layer.spec.axes)
    if layer.adjustment is not None:
        return _adjusted(layer, x, layout, old, weights)
    if layer.spec.virtual_batch_size is not None:
        return _virtual_batches(layer, x, layout, old)
    batch = None
    gamma, beta = layer.channels(layer.gamma), layer.channels(layer.beta)
    if layer.spec.renorm:
        batch = ops.moments(x, layout.channel_axes, weights=weights)
        gamma, beta = corrected(gamma, beta, _correction(layer, batch, old))
    return ops.normalize_batch(
        x, gamma, beta, axis=layout.channel_axes, epsilon=layer.spec.epsilon,
        weights=weights, batch=batch,
    )  # fmt: skip


def either(
    layer: Any,
    x: Tensor,
    training: Tensor,
    old: MovingStatistics,
    weights: Tensor | None = None,
) -> tuple[Tensor, Moments]:
    """Normalize as `train` where a scalar bool tensor is true, else as `infer`.

    Returns:
        y, and the moments that the statistics follow, of count 0 where training is false.
    """
    spec = layer.spec
    if not (spec.renorm or spec.virtual_batch_size or layer.adjustment or weights is not None):
        gamma, beta = layer.channels(layer.gamma), layer.channels(layer.beta)
        return normalize_either(
            x, training, old.mean, old.variance, gamma, beta,
            axis=spec.axes, epsilon=spec.epsilon,
        )  # fmt: skip

    def trained() -> tuple[Tensor, ...]:
        y, batch = train(layer, x, old, weights)
        return y, tf.cast(batch.count, old.mean.dtype), batch.mean, batch.variance

    def inferred() -> tuple[Tensor, ...]:
        return infer(layer, x, old), tf.zeros((), old.mean.dtype), old.mean, old.variance

    y, *batch = tf.cond(training, trained, inferred)
    y.set_shape(x.shape)
    return y, Moments(*batch)


def infer(layer: Any, x: Tensor, old: MovingStatistics) -> Tensor:
    """Normalize with the moving statistics."""
    gamma, beta = layer.channels(layer.gamma), layer.channels(layer.beta)
    return ops.normalize(
        x, old.mean, old.variance, gamma, beta, axis=layer.spec.axes, epsilon=layer.spec.epsilon
    )


def _correction(layer: Any, batch: Moments, old: MovingStatistics) -> RenormCorrection:
    """Return renorm's r and d, constants to the gradient."""
    correction = renorm_correction(
        batch, old.renorm_mean, old.renorm_stddev, layer.spec.epsilon, layer.clipping, NAMESPACE
    )
    return RenormCorrection(*(tf.stop_gradient(each) for each in correction))


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
        gamma, beta = corrected(gamma, beta, _correction(layer, averaged, old))
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
