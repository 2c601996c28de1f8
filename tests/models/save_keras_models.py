"""Save real models with Keras 3 and tf-keras into a folder, each with the record of the live one.

Run in a process of its own, so that no test process is bound to a backend. ``FOLDER small`` leaves
the large networks out.
"""

from __future__ import annotations

import pickle
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import tf_keras

from homeostat.keras import BatchNormalization
from homeostat.models.keras import KerasModel

FOLDER = Path(sys.argv[1])
RNG = np.random.default_rng(3)


def nested(keras):
    """Nested, shared and wrapped batch norms, in the words that both Keras 2 and 3 know."""
    layers = keras.layers
    inner = keras.Sequential(
        [
            keras.Input((8, 8, 4)),
            layers.Conv2D(4, 3, padding="same", activation="relu", name="conv"),
            layers.BatchNormalization(name="norm"),
        ],
        name="inner",
    )
    entry = keras.Input((8, 8, 4))
    shared = keras.Model(entry, layers.BatchNormalization(name="norm")(entry), name="shared")
    x = images = keras.Input((8, 8, 3), name="images")
    x = layers.Conv2D(4, 3, padding="same", use_bias=False, name="conv")(x)
    x = layers.BatchNormalization(name="first", momentum=0.9, epsilon=1e-5)(x)
    x = inner(x)
    x = shared(shared(x))
    x = layers.Add(name="sum")([x, inner(x)])
    x = layers.Dropout(0.3, name="dropout")(x)
    x = layers.Reshape((2, 2), name="pairs")(layers.GlobalAveragePooling2D(name="pool")(x))
    x = layers.TimeDistributed(layers.BatchNormalization(scale=False, name="step"), name="steps")(x)
    x = layers.BatchNormalization(
        center=False, trainable=False, dtype="mixed_float16", name="last"
    )(x)
    return keras.Model(images, layers.Dense(3, activation="softmax", name="head")(x))


def ours():
    x = images = keras.Input((6, 6, 3))
    y = BatchNormalization(name="first", activation="relu", zero_debias=True)(x)
    x = keras.layers.Conv2D(3, 1, use_bias=False, name="conv")(y)
    x = BatchNormalization(
        name="second", stored_variance="sample", momentum=None, frozen_statistics=True
    )(x, residual=y)
    x = BatchNormalization(name="third", nonfinite="propagate", scale=False, renorm=True)(x)
    model = keras.Model(images, keras.layers.Flatten()(x))
    batch = RNG.normal(1, 2, (8, 6, 6, 3)).astype("float32")
    batch[0, 0, 0, 1] = np.nan
    for _ in range(3):
        model(batch, training=True)
    return model


class Block(keras.layers.Layer):
    """A layer whose configuration does not tell what is in it."""

    def __init__(self, **options):
        super().__init__(**options)
        self.hidden = keras.layers.BatchNormalization(name="hidden")

    def build(self, shape):
        self.hidden.build(shape)

    def call(self, x, training=None):
        return self.hidden(x, training=training)


def randomize(model):
    for variable in model.weights:
        if variable.dtype == "float32" or "float32" in str(variable.dtype):
            value = RNG.uniform(0.5, 2.0, tuple(variable.shape))
            variable.assign(value.astype("float32"))
    return model


def save(name, model, *suffixes):
    for suffix in suffixes:
        path = FOLDER / f"{name}{suffix}"
        if suffix == ".weights.h5":
            model.save_weights(path)
        else:
            model.save(path)
    (FOLDER / f"{name}.pickle").write_bytes(pickle.dumps(KerasModel(model).record()))


def save_small():
    save("nested", randomize(nested(keras)), ".keras", ".h5", ".weights.h5")
    save("ours", ours(), ".keras")
    x = keras.Input((4,))
    inside = keras.Model(x, keras.layers.BatchNormalization(name="norm")(Block(name="block")(x)))
    save("inside", randomize(inside), ".keras", ".weights.h5")
    old = randomize(nested(tf_keras))
    old.save(FOLDER / "old.keras")
    old.save(FOLDER / "old.h5")
    old.save_weights(FOLDER / "old_weights.h5", save_format="h5")
    old.save_weights(FOLDER / "old.weights.h5")
    values = {variable.name: variable.numpy() for variable in old.variables}
    values["count"] = old.count_params()
    (FOLDER / "old.pickle").write_bytes(pickle.dumps(values))


def save_large():
    save("ResNet50", keras.applications.ResNet50(weights=None), ".keras")
    save("MobileNetV2", keras.applications.MobileNetV2(weights=None), ".keras", ".weights.h5")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    save_small()
    if sys.argv[2:] != ["small"]:
        save_large()
