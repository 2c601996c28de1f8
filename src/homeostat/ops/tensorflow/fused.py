"""Training batch norm through TensorFlow's fused CPU op, made exact.

The fused op is the fastest that a CPU has for this (oneDNN), but it sums in float32 row after row:
its variance is off by about 1e-10 per row, and by much more where a channel's mean is large against
its spread. Long columns are therefore summed here, and badly conditioned data are shifted first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import tensorflow as tf

from homeostat.ops.tensorflow.elements import (
    LIKELY_BATCH,
    Elements,
    finish,
    gpu_present,
    in_xla,
    product,
    through_activation,
)
from homeostat.ops.tensorflow.plain import CENTRED, Plain, badly_conditioned

Tensor = Any

# Rows up to which the fused op's own statistics are good to 1e-5.
FEW_ROWS = 2**15
# The largest mean**2 / variance for which E[x**2] - E[x]**2 is good to 1e-5.
UNCENTRED = 16.0


def takes(elements: Elements, x: Tensor) -> bool:
    """Return whether the fused op can do this call, and does it best.

    XLA takes the fused op apart into a variance by E[x**2] - E[x]**2 that one core computes, and on
    a GPU the choice below would make the host wait for the device.
    """
    axes = elements.layout.channel_axes
    return (
        elements.plain
        and x.dtype in (tf.float16, tf.bfloat16, tf.float32)
        and axes == tuple(range(axes[0], axes[-1] + 1))
        and elements.layout.count != 0
        and not in_xla()
        and not gpu_present()
    )


class Normed(NamedTuple):
    """An output and the moments it was normalized with, per channel."""

    y: Tensor
    mean: Tensor
    variance: Tensor


class Saved(NamedTuple):
    """What the backward needs, per channel: the shift, and the moments of the shifted data."""

    bad: Tensor
    pivot: Tensor
    mean: Tensor
    variance: Tensor


@dataclass(frozen=True)
class Fused(Plain):
    """One training call through `FusedBatchNormV3`."""

    def forward(
        self, x: Tensor, gamma: Tensor, beta: Tensor, residual: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Any]:
        """Return y, mean, variance and what the backward needs."""
        values = self._view(x)
        affine = (self._flat(gamma), self._flat(beta))

        added = None if residual is None else self._view(residual)

        def finished(normed: Normed) -> Normed:
            # Right behind the op, before any reshape, so that TensorFlow fuses the activation.
            y = finish(normed.y, added, self.activation, x.dtype)
            return normed._replace(y=self._back(y, x))

        def shifted() -> tuple[Tensor, ...]:
            # The op's own mean may be several standard deviations off by now.
            pivot = self._mean(values) if few else quick.mean
            return (pivot, *finished(self._by_sums(self._shift(values, pivot), *affine)))

        few = self._few_rows(x)
        quick = finished((self._by_op if few else self._by_sums)(values, *affine))
        bad = badly_conditioned(quick.mean, quick.variance, CENTRED if few else UNCENTRED)
        pivot, y, mean, variance = tf.cond(
            bad, shifted, lambda: (tf.zeros_like(quick.mean), *quick)
        )
        saved = Saved(bad, pivot, mean, variance)
        shape = self.elements.channel_shape
        mean, variance = tf.reshape(pivot + mean, shape), tf.reshape(variance, shape)
        return tf.ensure_shape(y, x.shape), mean, variance, saved

    def backward(
        self,
        saved: Any,
        y: Tensor,
        dy: Tensor,
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        residual: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Return the gradients to x, gamma, beta and, if there is one, the residual."""
        g = through_activation(dy, y, self.activation)
        values = self._view(x)
        values = tf.cond(saved.bad, lambda: self._shift(values, saved.pivot), lambda: values)
        dx, dgamma, dbeta, *_ = tf.raw_ops.FusedBatchNormGradV3(
            y_backprop=self._view(g),
            x=values,
            scale=self._flat(gamma),
            reserve_space_1=saved.mean,
            reserve_space_2=saved.variance,
            reserve_space_3=tf.zeros([0]),
            epsilon=self.epsilon,
            data_format=self._data_format,
            is_training=True,
        )
        shape = self.elements.channel_shape
        gradients = (
            self._back(dx, x),
            tf.cast(tf.reshape(dgamma, shape), gamma.dtype),
            tf.cast(tf.reshape(dbeta, shape), beta.dtype),
        )
        return gradients if residual is None else (*gradients, tf.cast(g, residual.dtype))

    def _few_rows(self, x: Tensor) -> bool:
        """Return whether the fused op's statistics are good enough, or the dtype is coarser."""
        sizes = [LIKELY_BATCH if n is None else n for n in self.elements.layout.shape]
        rows = math.prod(sizes[a] for a in self.elements.layout.reduction_axes)
        return rows <= FEW_ROWS or x.dtype != tf.float32

    def _by_op(self, values: Tensor, gamma: Tensor, beta: Tensor) -> Normed:
        y, mean, variance = self._op(values, gamma, beta, tf.zeros([0]), tf.zeros([0]), True)
        count = tf.cast(self.elements.count, variance.dtype)
        # The op returns the sample variance, and NaN for an empty batch.
        variance = variance * (tf.maximum(count - 1.0, 0.0) / tf.maximum(count, 1.0))
        if not isinstance(self.elements.count, int):
            mean = tf.where(count > 0, mean, tf.zeros_like(mean))
            variance = tf.where(count > 0, variance, tf.zeros_like(variance))
        return Normed(y, mean, variance)

    def _by_sums(self, values: Tensor, gamma: Tensor, beta: Tensor) -> Normed:
        mean = self._mean(values)
        square = self._flat(self.elements.mean_square(self._unview(values)))
        variance = tf.maximum(square - mean * mean, 0.0)
        return Normed(self._op(values, gamma, beta, mean, variance, False)[0], mean, variance)

    def _op(
        self,
        values: Tensor,
        gamma: Tensor,
        beta: Tensor,
        mean: Tensor,
        variance: Tensor,
        is_training: bool,
    ) -> Any:
        return tf.raw_ops.FusedBatchNormV3(
            x=values,
            scale=gamma,
            offset=beta,
            mean=mean,
            variance=variance,
            epsilon=self.epsilon,
            data_format=self._data_format,
            is_training=is_training,
        )[:3]

    @property
    def _data_format(self) -> str:
        return "NHWC" if self.elements.layout.channels_last else "NCHW"

    def _view(self, x: Tensor) -> Tensor:
        """View x as four axes: as it is, (rows, 1, 1, C), or (rows, C, columns, 1)."""
        if self._fits:
            return x
        axes, shape = self.elements.layout.channel_axes, self.elements.shape
        channels = product(shape[axes[0] : axes[-1] + 1])
        if self.elements.layout.channels_last:
            return tf.reshape(x, [product(shape[: axes[0]]), 1, 1, channels])
        before, after = product(shape[: axes[0]]), product(shape[axes[-1] + 1 :])
        return tf.reshape(x, [before, channels, after, 1])

    @property
    def _fits(self) -> bool:
        """Whether the input has the op's four axes, which it computes a little faster with."""
        return len(self.elements.shape) == 4 and self.elements.layout.channel_axes == (3,)

    def _back(self, values: Tensor, x: Tensor) -> Tensor:
        return values if self._fits else tf.reshape(values, tf.shape(x))

    def _unview(self, values: Tensor) -> Tensor:
        return tf.cast(tf.reshape(values, self.elements.shape), tf.float32)

    def _mean(self, values: Tensor) -> Tensor:
        return self._flat(self.elements.mean(self._unview(values)))

    def _flat(self, channels: Tensor) -> Tensor:
        return tf.reshape(tf.cast(channels, tf.float32), [-1])

    def _shift(self, values: Tensor, pivot: Tensor) -> Tensor:
        shape = [-1] if self._data_format == "NHWC" else [-1, 1, 1]
        return values - tf.cast(tf.reshape(pivot, shape), values.dtype)
