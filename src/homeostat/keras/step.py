"""One training step of the Keras layer: which statistics, which gamma and beta, what moves."""

from __future__ import annotations

import warnings
from typing import Any

import keras

from homeostat.errors import OneElementWarning, UnsupportedError
from homeostat.keras.backend import (
    changes_in_place,
    fail_if,
    namespace,
    operations,
    replica_sum,
    value_of,
)
from homeostat.layout import Layout, show
from homeostat.moments import (
    Average,
    Moments,
    MovingStatistics,
    RenormCorrection,
    advance,
    average_groups,
    corrected,
    renorm_correction,
)

Tensor = Any


def train(layer: Any, x: Tensor, mask: Tensor | None, residual: Tensor | None) -> Tensor:
    """Normalize with the batch's statistics and let the layer's moving statistics follow.

    Args:
        layer: a built `homeostat.keras.BatchNormalization`.
        x: the input.
        mask: see the layer.
        residual: see the layer.
    """
    layout = Layout.of(x.shape, layer.spec.axes)
    if layout.count == 1:
        _warn_of_one_element(layout)
    if layer.adjustment is not None:
        y, batch = _adjusted(layer, x, layout, mask, residual)
    elif layer.spec.virtual_batch_size is not None:
        y, batch = _ghost_batches(layer, x, layout, mask, residual)
    else:
        gamma, beta = value_of(layer.gamma), value_of(layer.beta)
        activation = layer.spec.activation
        if mask is None and changes_in_place() and _is_plain(layer):
            y, batch = _normalize_and_move(layer, x, layout, gamma, beta, residual)
        else:
            y, batch = _normalize(layer, x, layout, gamma, beta, activation, mask, residual)
    if not layer.frozen_statistics and batch is not None:
        _move_statistics(layer, batch)
    return y


def _is_plain(layer: Any) -> bool:
    """Return whether the moving statistics are exponential averages that follow every batch."""
    spec = layer.spec
    special = layer.frozen_statistics or spec.renorm or spec.synchronized
    return not special and not Average.of(spec).counts


def _normalize_and_move(
    layer: Any,
    x: Tensor,
    layout: Layout,
    gamma: Tensor | None,
    beta: Tensor | None,
    residual: Tensor | None,
) -> tuple[Tensor, Moments | None]:
    """Normalize with the batch's statistics; they are None where the moving ones followed."""
    ops, spec = operations(), layer.spec
    mean, variance = value_of(layer.moving_mean), value_of(layer.moving_variance)
    moving = ops.Moving(mean, variance, None, spec.momentum, spec.stored_variance == "sample")
    return ops.normalize_and_move(
        x,
        gamma,
        beta,
        moving,
        axis=layout.channel_axes,
        epsilon=spec.epsilon,
        activation=spec.activation,
        residual=residual,
    )


def _normalize(
    layer: Any,
    x: Tensor,
    layout: Layout,
    gamma: Tensor | None,
    beta: Tensor | None,
    activation: Any,
    mask: Tensor | None = None,
    residual: Tensor | None = None,
) -> tuple[Tensor, Moments]:
    """Normalize with the batch's statistics, renormalized if the options say so."""
    ops = operations()
    statistics = {
        "axis": layout.channel_axes,
        "weights": mask,
        "all_reduce": replica_sum() if layer.spec.synchronized else None,
    }
    batch = None
    if layer.spec.renorm:
        batch = ops.moments(x, **statistics)
        gamma, beta = _renormed(layer, batch, gamma, beta)
    return ops.normalize_batch(
        x,
        gamma,
        beta,
        epsilon=layer.spec.epsilon,
        activation=activation,
        residual=residual,
        batch=batch,
        **statistics,
    )


def _renormed(
    layer: Any, batch: Moments, gamma: Tensor | None, beta: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return gamma and beta with renorm's r and d in them."""
    correction = renorm_correction(
        batch,
        value_of(layer.renorm_mean),
        value_of(layer.renorm_stddev),
        layer.spec.epsilon,
        layer.spec.clipping,
        namespace(),
    )
    correction = RenormCorrection(*(keras.ops.stop_gradient(each) for each in correction))
    dtype = correction.r.dtype
    gamma, beta = (None if c is None else keras.ops.cast(c, dtype) for c in (gamma, beta))
    return corrected(gamma, beta, correction)


def _ghost_batches(
    layer: Any, x: Tensor, layout: Layout, mask: Tensor | None, residual: Tensor | None
) -> tuple[Tensor, Moments]:
    """Normalize each ghost batch by its own statistics (Hoffer et al. 2017)."""
    if mask is not None:
        raise UnsupportedError(
            "a mask came to a batch norm with virtual_batch_size: expected no mask, since "
            "ghost batches with unequal counts have no common statistics. Drop one of the two."
        )
    _, parted = layout.ghost(layer.spec.virtual_batch_size)
    sizes = keras.ops.shape(x)
    view = (layer.spec.virtual_batch_size, -1, *sizes[1:])
    groups = (sizes[0] // layer.spec.virtual_batch_size, *layout.known_channel_shape)

    def grouped(channels: Any) -> Tensor | None:
        return None if channels is None else keras.ops.broadcast_to(value_of(channels), groups)

    y, batch = _normalize(
        layer,
        keras.ops.reshape(x, view),
        parted,
        grouped(layer.gamma),
        grouped(layer.beta),
        layer.spec.activation,
        residual=None if residual is None else keras.ops.reshape(residual, view),
    )
    return keras.ops.reshape(y, sizes), average_groups(batch, 0, namespace())


def _adjusted(
    layer: Any, x: Tensor, layout: Layout, mask: Tensor | None, residual: Tensor | None
) -> tuple[Tensor, Moments]:
    """Scale and shift the normalized values as the adjustment says, then by gamma and beta."""
    z, batch = _normalize(layer, x, layout, None, None, None, mask)
    scale, bias = layer.adjustment(keras.ops.shape(x))
    z = keras.ops.cast(z, batch.mean.dtype)
    z = z * keras.ops.cast(scale, z.dtype) + keras.ops.cast(bias, z.dtype)
    spread = [-1 if n is None else n for n in layout.broadcast_shape]
    if layer.gamma is not None:
        z = z * keras.ops.reshape(keras.ops.cast(layer.gamma, z.dtype), spread)
    if layer.beta is not None:
        z = z + keras.ops.reshape(keras.ops.cast(layer.beta, z.dtype), spread)
    if residual is not None:
        z = z + keras.ops.cast(residual, z.dtype)
    activation = layer.spec.fused_activation
    if activation is not None:
        z = keras.ops.leaky_relu(z, activation.negative_slope)
    return keras.ops.cast(z, x.dtype), batch


def _move_statistics(layer: Any, batch: Moments) -> None:
    variables = MovingStatistics(
        mean=layer.moving_mean,
        variance=layer.moving_variance,
        updates=layer.updates,
        skipped=layer.skipped_updates,
        stddev=layer.moving_stddev,
        renorm_mean=layer.renorm_mean,
        renorm_stddev=layer.renorm_stddev,
    )
    old = MovingStatistics(*(value_of(variable) for variable in variables))
    dtype = old.mean.dtype
    if batch.mean.dtype != dtype:
        mean, variance = (keras.ops.cast(part, dtype) for part in batch[1:])
        batch = Moments(batch.count, mean, variance)
    new = advance(old, batch, layer.spec, namespace())
    # Compared before the assignment: a variable's value may be the variable itself.
    bad = layer.spec.nonfinite == "raise" and keras.ops.any(new.skipped > old.skipped)
    for variable, value in zip(variables, new, strict=True):
        if variable is not None:
            variable.assign(value)
    if layer.spec.nonfinite == "raise":
        fail_if(
            bad,
            f"the batch statistics of layer {layer.name!r} are not finite in at least one "
            "channel: expected finite inputs. Find the layer before it that makes NaN or "
            "infinity, or use nonfinite='skip'. The moving statistics are unharmed.",
        )


def _warn_of_one_element(layout: Layout) -> None:
    warnings.warn(
        f"batch norm is training on one element per channel (input shape {show(layout.shape)}): "
        "the variance is 0 and every output equals beta. Train on larger batches, or call the "
        "layer with training=False.",
        OneElementWarning,
        stacklevel=2,
    )
