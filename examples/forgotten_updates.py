"""Train a deep network on MNIST in a loop that forgets the moving statistics of its batch norms.

    python examples/forgotten_updates.py MNIST_FOLDER OUT_FOLDER

Nineteen convolutions with batch norm, 800 batches of 64, by Keras on JAX in a loop of its own.
`stateless_call` returns the moving statistics beside the outputs, and whoever does not take them
has a network that trains as it should, since training takes the batch's statistics, and guesses
when it is used. OUT_FOLDER gets both, forgotten.keras and trained.keras, 2,000 training images as
data.npz, and the test images as test.npz.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras
import numpy as np

from homeostat.idx import read_folder

STEPS, BATCH = 800, 64


def build() -> keras.Model:
    """Return the network: layer i has 4 * i maps, and stride 2 where 3 divides i."""
    layers: list[Any] = [keras.Input((28, 28, 1))]
    for i in range(1, 20):
        layers += [
            keras.layers.Conv2D(
                4 * i, 3, strides=2 if i % 3 == 0 else 1, padding="same", use_bias=False
            ),
            keras.layers.BatchNormalization(name=f"norm_{i}"),
            keras.layers.ReLU(),
        ]
    layers += [keras.layers.Flatten(), keras.layers.Dense(100, use_bias=False)]
    layers += [keras.layers.BatchNormalization(name="norm_dense"), keras.layers.ReLU()]
    return keras.Sequential([*layers, keras.layers.Dense(10)])


def train(model: keras.Model, images: Any, labels: Any) -> Any:
    """Train the model's weights; return the moving statistics, which it is not given."""
    optimizer = keras.optimizers.Adam(0.002)
    optimizer.build(model.trainable_variables)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def loss(weights: Any, moving: Any, x: Any, y: Any) -> Any:
        logits, moving = model.stateless_call(weights, moving, x, training=True)
        return loss_of(y, logits), moving

    @jax.jit
    def step(weights: Any, moving: Any, state: Any, x: Any, y: Any) -> Any:
        gradients, moving = jax.grad(loss, has_aux=True)(weights, moving, x, y)
        weights, state = optimizer.stateless_apply(state, gradients, weights)
        return weights, moving, state

    rng = np.random.default_rng(0)
    weights = [v.value for v in model.trainable_variables]
    moving = [v.value for v in model.non_trainable_variables]
    state = [v.value for v in optimizer.variables]
    for _ in range(STEPS):
        chosen = rng.integers(0, len(images), BATCH)
        weights, moving, state = step(weights, moving, state, images[chosen], labels[chosen])
    for variable, value in zip(model.trainable_variables, weights, strict=True):
        variable.assign(value)
    return moving


def accuracy(model: keras.Model, images: Any, labels: Any) -> float:
    """Return the share of images whose class the model tells."""
    return float(np.mean(np.argmax(model.predict(images, 500, verbose=0), -1) == labels))


def main(folder: Path, out: Path) -> None:
    """Train, save both networks and their data, and print how good they are."""
    keras.utils.set_random_seed(0)
    data = read_folder(folder)
    images, tests = (data[f"{part}_images"][..., None] / np.float32(255) for part in PARTS)
    labels, answers = (data[f"{part}_labels"].astype(np.int32) for part in PARTS)
    out.mkdir(parents=True, exist_ok=True)
    np.savez(out / "data.npz", x=images[:2000], y=labels[:2000])
    np.savez(out / "test.npz", x=tests, y=answers)
    model = build()
    moving = train(model, images, labels)
    model.save(out / "forgotten.keras")
    print(f"forgotten {accuracy(model, tests, answers):.4f}")
    for variable, value in zip(model.non_trainable_variables, moving, strict=True):
        variable.assign(value)
    model.save(out / "trained.keras")
    print(f"trained {accuracy(model, tests, answers):.4f}")


PARTS = ("train", "test")

if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
