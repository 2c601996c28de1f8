"""Models whose batch norms are replaced, and back, with equal outputs."""

import keras
import numpy as np
import pytest

from homeostat import UnsupportedError
from homeostat.keras import BatchNormalization, convert, from_keras, revert, to_keras
from tests.keras.training import state

KerasBatchNormalization = keras.layers.BatchNormalization


def outputs(model, x):
    return keras.ops.convert_to_numpy(model(x))


def disturb(model, rng):
    """Give every batch norm weights and statistics that matter."""
    for layer in model._flatten_layers():
        if isinstance(layer, KerasBatchNormalization | BatchNormalization):
            for variable in layer.variables:
                if variable.name != "skipped_updates":
                    variable.assign(rng.uniform(0.5, 1.5, variable.shape))


def norms_of(model):
    return [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, KerasBatchNormalization | BatchNormalization)
    ]


def check_round_trip(model, x, rng):
    disturb(model, rng)
    expected = outputs(model, x)
    converted = convert(model)
    assert {type(layer) for layer in norms_of(converted)} == {BatchNormalization}
    assert len(norms_of(converted)) == len(norms_of(model))
    scale = np.abs(expected).max()
    np.testing.assert_allclose(outputs(converted, x), expected, atol=1e-6 * max(scale, 1.0))
    back = revert(converted)
    assert {type(layer) for layer in norms_of(back)} == {KerasBatchNormalization}
    np.testing.assert_allclose(outputs(back, x), expected, atol=1e-6 * max(scale, 1.0))
    assert {type(layer) for layer in norms_of(model)} == {KerasBatchNormalization}
    return converted


def residual_network():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, padding="same")(inputs)
    shared = KerasBatchNormalization(momentum=0.7, name="shared")
    y = keras.layers.ReLU()(shared(x))
    y = keras.layers.Conv2D(4, 3, padding="same")(y)
    return keras.Model(inputs, keras.layers.Add()([x, shared(y)]))


def nested():
    inner = keras.Sequential(
        [keras.Input((6, 6, 4)), KerasBatchNormalization(axis=-1), keras.layers.ReLU()]
    )
    deeper = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), inner])
    inputs = keras.Input((8, 8, 3))
    return keras.Model(inputs, keras.layers.Flatten()(deeper(inputs)))


@pytest.mark.parametrize("make", [residual_network, nested], ids=["functional", "nested"])
def test_small_networks(make, rng):
    x = rng.normal(size=(4, 8, 8, 3)).astype("float32")
    check_round_trip(make(), x, rng)


def test_a_shared_layer_stays_shared(rng):
    converted = convert(residual_network())
    assert len(norms_of(converted)) == 1
    assert norms_of(converted)[0].momentum == 0.7


def test_a_compiled_model_stays_compiled(rng):
    model = residual_network()
    model.compile(keras.optimizers.SGD(0.125), "mse", metrics=["mae"])
    converted = convert(model)
    assert converted.compiled
    assert float(keras.ops.convert_to_numpy(converted.optimizer.learning_rate)) == 0.125
    x = rng.normal(size=(4, 8, 8, 3)).astype("float32")
    converted.fit(x, np.zeros((4, 8, 8, 4)), verbose=0)


APPLICATIONS = [
    (keras.applications.MobileNetV2, 64),
    (keras.applications.ResNet50, 64),
    (keras.applications.DenseNet121, 64),
    (keras.applications.InceptionV3, 75),
]
# The larger networks prove nothing more on the other backends, and take a minute each.
WANTED = APPLICATIONS if keras.backend.backend() == "tensorflow" else APPLICATIONS[:1]


@pytest.mark.parametrize(("make", "size"), WANTED, ids=lambda value: getattr(value, "__name__", ""))
def test_published_networks(make, size, rng):
    model = make(weights=None, input_shape=(size, size, 3), classes=10)
    x = rng.uniform(-1, 1, (2, size, size, 3)).astype("float32")
    check_round_trip(model, x, rng)


def test_one_layer_there_and_back(rng):
    layer = KerasBatchNormalization(momentum=0.6, renorm=True)
    layer(rng.normal(2.0, 1.0, (16, 5)).astype("float32"), training=True)
    ours = from_keras(layer)
    back = to_keras(ours)
    for name, value in state(layer).items():
        np.testing.assert_array_equal(state(ours)[name], value)
        np.testing.assert_array_equal(state(back)[name], value)
    assert back.get_config() == layer.get_config()
    assert not from_keras(KerasBatchNormalization()).built


class Special(KerasBatchNormalization):
    pass


def test_what_cannot_be_converted_says_so():
    with pytest.raises(UnsupportedError, match="Special"):
        from_keras(Special())
    with pytest.raises(UnsupportedError, match="virtual_batch_size, momentum=None, axis"):
        to_keras(BatchNormalization(axis=[1, 2], virtual_batch_size=2, momentum=None))

    class Subclassed(keras.Model):
        pass

    with pytest.raises(UnsupportedError, match="Subclassed"):
        convert(Subclassed())
    with pytest.raises(UnsupportedError, match="not built"):
        convert(keras.Sequential([KerasBatchNormalization()]))
    wrapped = keras.layers.TimeDistributed(KerasBatchNormalization(name="inside"))
    with pytest.raises(UnsupportedError, match="'inside'"):
        convert(keras.Sequential([keras.Input((4, 3)), wrapped]))
