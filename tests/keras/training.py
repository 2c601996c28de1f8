"""One training call of a Keras layer with its gradients, on whichever backend is in use."""

from typing import Any, NamedTuple

import keras
import numpy as np


class Trained(NamedTuple):
    y: np.ndarray
    dx: np.ndarray
    weights: dict[str, np.ndarray]
    residual: np.ndarray | None


def train(layer, x, dy, residual=None, **kwargs) -> Trained:
    """Call the layer in training mode, keep its new state, and return gradients of sum(y * dy)."""
    if not layer.built:
        layer.build(x.shape)
    run = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}[keras.backend.backend()]
    inputs = [x] if residual is None else [x, residual]
    y, (dx, *dresidual), weights = run(layer, inputs, dy, kwargs)
    names = [variable.name for variable in layer.trainable_variables]
    return Trained(y, dx, dict(zip(names, weights, strict=True)), *(dresidual or [None]))


def _call(layer, inputs, kwargs):
    extra = {"residual": inputs[1]} if len(inputs) == 2 else {}
    return layer(inputs[0], training=True, **extra, **kwargs)


def _tensorflow(layer, inputs, dy, kwargs) -> Any:
    import tensorflow as tf

    inputs = [tf.constant(array) for array in inputs]
    weights = [variable.value for variable in layer.trainable_variables]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        y = _call(layer, inputs, kwargs)
    dx, dweights = tape.gradient(y, (inputs, weights), output_gradients=tf.constant(dy, y.dtype))
    return y.numpy(), [g.numpy() for g in dx], [g.numpy() for g in dweights]


def _jax(layer, inputs, dy, kwargs) -> Any:
    import jax

    inputs = [jax.numpy.asarray(array) for array in inputs]
    weights = [variable.value for variable in layer.trainable_variables]
    state = [variable.value for variable in layer.non_trainable_variables]

    def forward(inputs, weights):
        extra = {"residual": inputs[1]} if len(inputs) == 2 else {}
        return layer.stateless_call(weights, state, inputs[0], training=True, **extra, **kwargs)

    y, pull, new_state = jax.vjp(forward, inputs, weights, has_aux=True)
    for variable, value in zip(layer.non_trainable_variables, new_state, strict=True):
        variable.assign(value)
    dx, dweights = pull(jax.numpy.asarray(dy, y.dtype))
    return np.asarray(y), [np.asarray(g) for g in dx], [np.asarray(g) for g in dweights]


def _torch(layer, inputs, dy, kwargs) -> Any:
    import torch

    inputs = [torch.tensor(array, requires_grad=True) for array in inputs]
    weights = [variable.value for variable in layer.trainable_variables]
    y = _call(layer, inputs, kwargs)
    gradients = torch.autograd.grad(y, (*inputs, *weights), torch.tensor(dy).to(y.dtype))
    gradients = [g.numpy() for g in gradients]
    return y.detach().numpy(), gradients[: len(inputs)], gradients[len(inputs) :]


def state(layer) -> dict[str, np.ndarray]:
    """Return the layer's weights by name."""
    return {v.name: keras.ops.convert_to_numpy(v) for v in layer.variables}
