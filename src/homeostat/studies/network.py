"""The lesson's network, 100-100-100-10 fully connected, and its start weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from homeostat.keras import BatchNormalization
from homeostat.studies.data import CLASSES

HIDDEN = (100, 100, 100)
MOMENTUM = 0.99
EPSILON = 1e-3

Arrays = list[npt.NDArray[Any]]


@dataclass(frozen=True)
class Start:
    """Values for every variable of a network, in the order of the model's own lists."""

    trainable: Arrays
    non_trainable: Arrays


class Network:
    """The model, with and without batch norm alike but for the normalization and the biases.

    With batch norm a hidden layer is a matrix product, the normalization and the activation;
    without, a matrix product, a bias and the activation. The last layer always has a bias.

    Args:
        pixels: size of an image.
        activation: of the hidden layers.
        batch_norm: whether hidden layers are normalized.
    """

    def __init__(self, pixels: int, activation: str, batch_norm: bool) -> None:
        inputs = hidden = keras.Input((pixels,))
        dense: list[Any] = []
        for width in HIDDEN:
            dense.append(keras.layers.Dense(width, use_bias=not batch_norm))
            hidden = dense[-1](hidden)
            if batch_norm:
                hidden = BatchNormalization(momentum=MOMENTUM, epsilon=EPSILON)(hidden)
            before = hidden
            hidden = keras.layers.Activation(activation)(hidden)
        dense.append(keras.layers.Dense(CLASSES))
        logits = dense[-1](hidden)
        self.batch_norm = batch_norm
        # The second output lets probes see the inputs of the last hidden layer's activation.
        self.model = keras.Model(inputs, [logits, before])
        self.classifier = keras.Model(inputs, logits)
        paths = [variable.path for variable in self.model.trainable_variables]
        self.kernel_positions = [paths.index(layer.kernel.path) for layer in dense]
        self._shapes = [tuple(layer.kernel.shape) for layer in dense]
        self._first = Start(
            [keras.ops.convert_to_numpy(v) for v in self.model.trainable_variables],
            [keras.ops.convert_to_numpy(v) for v in self.model.non_trainable_variables],
        )

    def start(self, seed: int, scale: float) -> Start:
        """Return start values: weights from N(0, scale), everything else as its layer starts.

        The weights depend on the seed and the scale alone, so networks with and without batch
        norm start from the same ones.
        """
        rng = np.random.default_rng(seed)
        values = list(self._first.trainable)
        for position, shape in zip(self.kernel_positions, self._shapes, strict=True):
            values[position] = rng.normal(0.0, scale, shape).astype(np.float32)
        return Start(values, list(self._first.non_trainable))


def order_batches(seed: int, images: int, steps: int, batch_size: int) -> npt.NDArray[np.int32]:
    """Return which images each step takes: every image once, in random order, then again.

    Returns:
        Indices of shape (steps, batch_size).
    """
    rng = np.random.default_rng([seed, 1])
    needed = steps * batch_size
    rounds = [rng.permutation(images) for _ in range(-(-needed // images))]
    flat = np.concatenate(rounds)[:needed] if rounds else np.empty(0)
    return flat.astype(np.int32).reshape(steps, batch_size)
