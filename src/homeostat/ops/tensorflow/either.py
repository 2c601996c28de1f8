"""Normalize by the batch's moments or by given ones, as a tensor says, without a branch.

In a session a branch costs more than what it saves on a small input: both kinds of moments are at
hand, and each channel takes one of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from homeostat.moments import Moments
from homeostat.ops.arguments import check
from homeostat.ops.tensorflow import normalize, normalize_batch
from homeostat.ops.tensorflow.elements import Elements, finish
from homeostat.ops.tensorflow.gradients import detached, differentiable
from homeostat.ops.tensorflow.plain import Centre, Plain, centre

Tensor = Any


def normalize_either(
    x: Tensor,
    training: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    axis: int | Iterable[int] = -1,
    epsilon: float = 1e-3,
) -> tuple[Tensor, Moments]:
    """Normalize as `normalize_batch` where training is true, else by given moments.

    Args:
        x: tensor of any known rank >= 2, floating.
        training: scalar bool tensor.
        mean: of the channel shape.
        variance: of the channel shape, the population variance.
        gamma: of the channel shape, or None for 1.
        beta: of the channel shape, or None for 0.
        axis: channel axis or axes.
        epsilon: added to the variance.

    Returns:
        y, of x's shape and dtype, and the batch's `Moments`, detached; their count is 0 where
        training is false.

    Raises:
        ShapeError: a shape does not fit.
        DTypeError: a tensor is not floating.
        SpecError: epsilon is not valid.

    Example:
        >>> import tensorflow as tf
        >>> x, mean, variance = tf.constant([[1.0], [3.0]]), tf.constant([0.0]), tf.constant([4.0])
        >>> y, batch = normalize_either(x, tf.constant(False), mean, variance, epsilon=0.0)
        >>> y.numpy().tolist(), float(batch.count)
        ([[0.5], [1.5]], 0.0)
    """
    x, mean, variance = (tf.convert_to_tensor(array) for array in (x, mean, variance))
    layout = check(x, axis, epsilon=epsilon, mean=mean, variance=variance, gamma=gamma, beta=beta)
    elements = Elements.of(x, layout, None, None)
    options: dict[str, Any] = {"axis": layout.channel_axes, "epsilon": epsilon}
    if elements.few:
        norm = Either(elements, float(epsilon), None, training=training)
        given = (tf.cast(part, elements.dtype) for part in (mean, variance))
        y, *found = differentiable(norm, [x, *elements.affine(gamma, beta), *given])
    else:

        def trained() -> tuple[Tensor, ...]:
            y, batch = normalize_batch(x, gamma, beta, **options)
            return y, batch.mean, batch.variance

        def inferred() -> tuple[Tensor, ...]:
            return normalize(x, mean, variance, gamma, beta, **options), mean, variance

        y, *found = tf.cond(training, trained, inferred)
        y.set_shape(x.shape)
    count = tf.cast(elements.count, elements.dtype)
    count = tf.where(training, count, tf.zeros_like(count))
    return y, detached(Moments(count, *found))


@dataclass(frozen=True)
class Either(Plain):
    """One call whose moments a scalar chooses.

    Args:
        training: a scalar bool: whether the batch's own moments are taken.
    """

    training: Tensor = None

    def forward(
        self, x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, variance: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Any]:
        """Return y, the batch's mean and variance, and what the backward needs."""
        values = tf.cast(x, self.elements.dtype)
        batch = centre(self.elements, values)
        by = Centre(
            tf.where(self.training, batch.pivot, mean),
            self._through_moments(batch.offset),
            tf.where(self.training, batch.variance, variance),
        )
        z, saved = self._normalized(values, by, gamma, beta)
        y = finish(z, None, self.activation, x.dtype)
        return y, batch.pivot + batch.offset, batch.variance, saved

    def backward(
        self,
        saved: Any,
        y: Tensor,
        dy: Tensor,
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        mean: Tensor,
        variance: Tensor,
    ) -> tuple[Tensor, ...]:
        """Return the gradients to x, gamma, beta and the given moments."""
        dx, dgamma, dbeta = super().backward(saved, y, dy, x, gamma, beta)
        dtype = self.elements.dtype
        dmean = -saved.scale * tf.cast(dbeta, dtype)
        dvariance = -0.5 * saved.scale * saved.inverse * tf.cast(dgamma, dtype)
        given = (tf.where(self.training, tf.zeros_like(d), d) for d in (dmean, dvariance))
        return dx, dgamma, dbeta, *given

    def composite(
        self, x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, variance: Tensor
    ) -> Tensor:
        """Return y by ops that TensorFlow differentiates, as often as one likes."""
        own = super().composite(x, gamma, beta)
        by = Centre(mean, tf.zeros_like(mean), variance)
        z, _ = self._normalized(tf.cast(x, self.elements.dtype), by, gamma, beta)
        return tf.where(self.training, own, finish(z, None, self.activation, x.dtype))

    def _through_moments(self, channels: Tensor) -> Tensor:
        """Return a per-channel value where the batch's own moments are taken, 0 elsewhere."""
        return tf.where(self.training, channels, tf.zeros_like(channels))
