"""Training batch norm in elementary TensorFlow ops: any axes, weights, dtype, replicas and XLA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import tensorflow as tf

from homeostat.moments import Moments
from homeostat.ops.tensorflow.elements import Elements, finish, gpu_present, through_activation
from homeostat.spec import Activation

Tensor = Any

# The largest mean**2 / variance for which a centred variance is good to 1e-6: the rounding of a
# float32 mean shows from mean / std = 100 on.
CENTRED = 1e4


class Centre(NamedTuple):
    """A mean in two parts, pivot + offset, so that x - mean keeps its digits, and the variance."""

    pivot: Tensor
    offset: Tensor
    variance: Tensor


def badly_conditioned(mean: Tensor, variance: Tensor, limit: float) -> Tensor:
    """Return whether any channel has mean**2 > limit * variance, a scalar bool."""
    return tf.reduce_any(mean * mean > limit * variance)


def centre(elements: Elements, x: Tensor) -> Centre:
    """Return the mean and the centred variance of each channel, in two passes or three.

    Args:
        elements: what is averaged.
        x: the input in the statistics' dtype.
    """
    if elements.weights is not None:
        x = tf.where(elements.weights > 0, x, tf.zeros_like(x))
    pivot = elements.mean(x)
    centred = x - elements.spread(pivot)
    variance = elements.mean_square(centred)

    def corrected() -> tuple[Tensor, Tensor]:
        offset = elements.mean(centred)
        return offset, tf.maximum(variance - offset * offset, 0.0)

    # A GPU would make the host wait for the answer, replicas must sum the same things, and for a
    # few elements the branch costs more.
    if gpu_present() or elements.all_reduce is not None or elements.few:
        offset, variance = corrected()
    else:
        bad = badly_conditioned(pivot, variance, CENTRED)
        offset, variance = tf.cond(bad, corrected, lambda: (tf.zeros_like(pivot), variance))
    return Centre(pivot, offset, variance)


class PlainSaved(NamedTuple):
    """What the plain way keeps for its backward, per channel.

    The scale holds gamma as it was: in a TF1 graph the optimizer may change the variable before the
    backward is done with it. The centred input is kept only if it is small.
    """

    pivot: Tensor
    offset: Tensor
    inverse: Tensor
    scale: Tensor
    centred: Tensor | None


@dataclass(frozen=True)
class Plain:
    """One training call: its elements and options, with forward, backward and composite."""

    elements: Elements
    epsilon: float
    activation: Activation | None
    batch: Moments | None = None

    def forward(
        self, x: Tensor, gamma: Tensor, beta: Tensor, residual: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Any]:
        """Return y, mean, variance and what the backward needs."""
        elements, dtype = self.elements, self.elements.dtype
        values = tf.cast(x, dtype)
        if self.batch is None:
            pivot, offset, variance = centre(elements, values)
        else:
            pivot, variance = (tf.cast(part, dtype) for part in self.batch[1:])
            offset = tf.zeros_like(pivot)
        z, saved = self._normalized(values, Centre(pivot, offset, variance), gamma, beta)
        y = finish(z, residual, self.activation, x.dtype)
        return y, pivot + offset, variance, saved

    def _normalized(
        self, values: Tensor, by: Centre, gamma: Tensor, beta: Tensor
    ) -> tuple[Tensor, PlainSaved]:
        elements, dtype = self.elements, self.elements.dtype
        inverse = tf.math.rsqrt(by.variance + self.epsilon)
        scale = inverse * tf.cast(gamma, dtype)
        shift = tf.cast(beta, dtype) - by.offset * scale
        centred = values - elements.spread(by.pivot)
        z = centred * elements.spread(scale) + elements.spread(shift)
        kept = centred if elements.few else None
        return z, PlainSaved(by.pivot, by.offset, inverse, scale, kept)

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
        elements, dtype = self.elements, self.elements.dtype
        pivot, offset, inverse, scale, centred = saved
        g = through_activation(dy, y, self.activation)
        values = tf.cast(g, dtype)
        if centred is None:
            centred = tf.cast(x, dtype) - elements.spread(pivot)
        dbeta = elements.sum(values)
        counted = centred
        if elements.weights is not None:
            # What lies under a mask may be NaN: it counts only where a gradient comes in.
            counted = tf.where(tf.equal(values, 0), tf.zeros_like(centred), centred)
        dgamma = inverse * (elements.dot(values, counted) - offset * dbeta)
        mean_g = self._through_moments(elements.reduced(dbeta) / elements.divisor)
        slope = self._through_moments(inverse * elements.reduced(dgamma) / elements.divisor)
        through_moments = centred * elements.spread(slope) + elements.spread(
            mean_g - offset * slope
        )
        if elements.weights is not None:
            through_moments = tf.where(
                elements.weights > 0,
                through_moments * elements.weights,
                tf.zeros_like(through_moments),
            )
        dx = (values - through_moments) * elements.spread(scale)
        gradients = (
            tf.cast(dx, x.dtype),
            tf.cast(dgamma, gamma.dtype),
            tf.cast(dbeta, beta.dtype),
        )
        return gradients if residual is None else (*gradients, tf.cast(g, residual.dtype))

    def _through_moments(self, channels: Tensor) -> Tensor:
        """Return what of a per-channel gradient goes through the batch's moments: all of it."""
        return channels

    def composite(
        self, x: Tensor, gamma: Tensor, beta: Tensor, residual: Tensor | None = None
    ) -> Tensor:
        """Return y by ops that TensorFlow differentiates, as often as one likes."""
        elements, dtype = self.elements, self.elements.dtype
        values = tf.cast(x, dtype)
        pivot = tf.stop_gradient(elements.mean(values))
        centred = values - elements.spread(pivot)
        centred = centred - elements.spread(elements.mean(centred))
        inverse = tf.math.rsqrt(elements.mean(centred * centred) + self.epsilon)
        z = centred * elements.spread(inverse * tf.cast(gamma, dtype))
        z = z + elements.spread(tf.cast(beta, dtype))
        return finish(z, residual, self.activation, x.dtype)
