"""Give a training call its hand-written gradient, and that one a gradient of its own."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from homeostat.moments import Moments
from homeostat.ops.tensorflow.plain import Plain

Tensor = Any


def differentiable(norm: Plain, inputs: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Run a call forward, with its backward as the gradient and its composite as the next one.

    Args:
        norm: the call.
        inputs: what its forward takes.

    Returns:
        y, mean and variance.
    """

    @tf.custom_gradient
    def train(*inputs: Tensor) -> Any:
        y, mean, variance, saved = norm.forward(*inputs)

        def gradient(dy: Tensor, *_: Tensor) -> Any:
            return _gradient(norm, saved, y, dy, inputs)

        return (y, mean, variance), gradient

    return train(*inputs)


def _gradient(norm: Plain, saved: Any, y: Tensor, dy: Tensor, inputs: tuple[Tensor, ...]) -> Any:
    @tf.custom_gradient
    def first(dy: Tensor, *inputs: Tensor) -> Any:
        def second(*cotangents: Tensor) -> Any:
            with tf.GradientTape() as outer:
                outer.watch((dy, *inputs))
                with tf.GradientTape() as inner:
                    inner.watch(inputs)
                    output = norm.composite(*inputs)
                gradients = inner.gradient(output, inputs, output_gradients=dy)
            return outer.gradient(
                gradients, (dy, *inputs), output_gradients=cotangents,
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )  # fmt: skip

        return norm.backward(saved, y, dy, *inputs), second

    return first(dy, *inputs)


def detached(batch: Moments) -> Moments:
    """Return a batch's moments without a gradient."""
    count = batch.count if isinstance(batch.count, int) else tf.stop_gradient(batch.count)
    return Moments(count, tf.stop_gradient(batch.mean), tf.stop_gradient(batch.variance))
