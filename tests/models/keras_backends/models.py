"""Models for tests of the adapter, and what they hold."""

import keras
import numpy as np

from homeostat.keras import BatchNormalization


def numpy(tensor):
    return np.array(keras.ops.convert_to_numpy(tensor))


def state(model):
    """Everything about a model that running it could change."""
    norms = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization | BatchNormalization)
    ]
    modes = [(layer.trainable, "call" in vars(layer), layer.momentum) for layer in norms]
    losses = [id(loss) for layer in model._flatten_layers() for loss in layer._losses]
    return [numpy(variable) for variable in model.variables], modes, losses


def unchanged(before, model):
    after = state(model)
    assert before[1:] == after[1:]
    assert len(before[0]) == len(after[0])
    return all(np.array_equal(a, b) for a, b in zip(before[0], after[0], strict=True))


def truth(x, weights=None, axis=-1):
    """The float64 count, mean and variance of each channel."""
    x = np.moveaxis(np.asarray(x, np.float64), axis, -1)
    channels = x.shape[-1]
    w = np.ones(x.shape[:-1]) if weights is None else np.asarray(weights, np.float64)
    w = np.broadcast_to(w.reshape(w.shape + (1,) * (x.ndim - 1 - w.ndim)), x.shape[:-1])
    x, w = x.reshape(-1, channels)[w.reshape(-1) > 0], w.reshape(-1)[w.reshape(-1) > 0]
    mean = w @ x / w.sum()
    return w.sum(), mean, w @ (x - mean) ** 2 / w.sum()


def agrees(moments, expected, rtol=1e-6):
    assert moments.mean.dtype == moments.variance.dtype == np.float64
    np.testing.assert_allclose(float(moments.count), expected[0], rtol=1e-12)
    np.testing.assert_allclose(moments.mean, expected[1], rtol=rtol, atol=1e-12)
    np.testing.assert_allclose(moments.variance, expected[2], rtol=rtol, atol=1e-12)
    return True


def randomized(model, rng):
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization | BatchNormalization):
            for variable in (layer.gamma, layer.moving_variance):
                if variable is not None:
                    variable.assign(rng.uniform(0.5, 2.0, tuple(variable.shape)))
            layer.moving_mean.assign(rng.normal(0, 1, tuple(layer.moving_mean.shape)))
    return model


def stack(norm=keras.layers.BatchNormalization, **options):
    """Two norms with a convolution, a dropout and a seed between them."""
    return keras.Sequential(
        [
            keras.Input((6, 5, 3)),
            norm(name="first", **options),
            keras.layers.Conv2D(4, 3, activation="relu", activity_regularizer="l2", name="conv"),
            keras.layers.Dropout(0.5, name="dropout"),
            keras.layers.GaussianNoise(1.0, name="noise"),
            norm(name="second", **options),
            keras.layers.Flatten(name="flat"),
            keras.layers.Dense(2, name="head"),
        ],
        name="stack",
    )


class Subclassed(keras.Model):
    """Norms in lists, mappings and wrappers, one used twice."""

    def __init__(self):
        super().__init__(name="subclassed")
        self.blocks = [keras.layers.Dense(3, name="dense"), keras.layers.BatchNormalization()]
        self.more = {"deep": [keras.layers.BatchNormalization(name="deep")]}
        self.steps = keras.layers.TimeDistributed(BatchNormalization(name="step"), name="steps")

    def call(self, x, training=None):
        for block in self.blocks:
            x = block(x, training=training) if "batch" in block.name else block(x)
        x = self.more["deep"][0](x, training=training)
        return self.steps(self.more["deep"][0](x * 2, training=training), training=training)
