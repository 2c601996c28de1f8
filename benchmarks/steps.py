"""One training step, forward and backward, of a Keras layer on each of Keras's backends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np

Step = Callable[[], Any]


class Arrays(NamedTuple):
    """A step's results as NumPy arrays."""

    y: np.ndarray
    dx: np.ndarray
    dgamma: np.ndarray
    dbeta: np.ndarray


class Case(NamedTuple):
    """A timed step, the same step's results, and a copy of its input for scale."""

    step: Step
    results: Callable[[], Arrays]
    copy: Step


def make(layer: keras.Layer, relu: bool, x: np.ndarray, dy: np.ndarray) -> Case:
    """Return the step y = layer(x, training=True), then ReLU if asked, and its gradients by dy."""
    layer.build(x.shape)
    return {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}[keras.backend.backend()](
        layer, relu, x, dy
    )


def _tensorflow(layer: keras.Layer, relu: bool, x: np.ndarray, dy: np.ndarray) -> Case:
    import tensorflow as tf

    gamma, beta = layer.gamma.value, layer.beta.value

    @tf.function
    def step(x: tf.Tensor, dy: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
            y = tf.nn.relu(y) if relu else y
        return y, tape.gradient(y, (x, gamma, beta), output_gradients=dy)

    inputs = tf.constant(x), tf.constant(dy)

    def results() -> Arrays:
        y, gradients = step(*inputs)
        return Arrays(y.numpy(), *(gradient.numpy() for gradient in gradients))

    return Case(lambda: step(*inputs), results, lambda: tf.raw_ops.DeepCopy(x=inputs[0]))


def _jax(layer: keras.Layer, relu: bool, x: np.ndarray, dy: np.ndarray) -> Case:
    import jax

    trainable = [variable.value for variable in layer.trainable_variables]
    state = [variable.value for variable in layer.non_trainable_variables]

    def forward(x: jax.Array, trainable: Any) -> Any:
        y, new_state = layer.stateless_call(trainable, state, x, training=True)
        return jax.nn.relu(y) if relu else y, new_state

    @jax.jit
    def step(x: jax.Array, trainable: Any, dy: jax.Array) -> Any:
        y, pull, new_state = jax.vjp(forward, x, trainable, has_aux=True)
        return y, pull(dy), new_state

    inputs = jax.numpy.asarray(x), trainable, jax.numpy.asarray(dy)
    copy = jax.jit(jax.numpy.copy)

    def results() -> Arrays:
        y, (dx, (dgamma, dbeta)), _ = step(*inputs)
        return Arrays(*(np.asarray(array) for array in (y, dx, dgamma, dbeta)))

    return Case(
        lambda: jax.block_until_ready(step(*inputs)),
        results,
        lambda: copy(inputs[0]).block_until_ready(),
    )


def _torch(layer: keras.Layer, relu: bool, x: np.ndarray, dy: np.ndarray) -> Case:
    import torch

    gamma, beta = layer.gamma.value, layer.beta.value
    inputs, gradient = torch.from_numpy(x).requires_grad_(), torch.from_numpy(dy)

    def step() -> Any:
        y = layer(inputs, training=True)
        y = torch.relu(y) if relu else y
        return y, torch.autograd.grad(y, (inputs, gamma, beta), gradient)

    def results() -> Arrays:
        y, gradients = step()
        return Arrays(y.detach().numpy(), *(gradient.numpy() for gradient in gradients))

    return Case(step, results, lambda: inputs.detach().clone())
