"""On ordinary data the layer equals Keras's own: outputs, gradients, statistics, configuration."""

import keras
import numpy as np
import pytest

from homeostat.keras import BatchNormalization
from tests.keras.training import state, train

OPTIONS = [
    {},
    {"axis": 1},
    {"momentum": 0.5, "epsilon": 1e-5},
    {"center": False},
    {"scale": False},
    {"center": False, "scale": False},
    {"gamma_initializer": "ones", "moving_mean_initializer": keras.initializers.Constant(3.0)},
    {"renorm": True},
    {"renorm": True, "renorm_momentum": 0.9},
    {"renorm": True, "renorm_clipping": {"rmax": 1.5, "rmin": 0.6, "dmax": 0.3}},
    {"gamma_regularizer": "l2", "beta_regularizer": "l1", "gamma_constraint": "non_neg"},
]
SHAPES = [(16, 6), (8, 5, 6), (8, 6, 4, 6), (4, 6, 3, 4, 6)]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_keras(options, shape, rng):
    peer, ours = keras.layers.BatchNormalization(**options), BatchNormalization(**options)
    for step in range(3):
        x = rng.normal(1.0, 2.0, shape).astype("float32")
        dy = rng.normal(size=shape).astype("float32")
        theirs, mine = train(peer, x, dy), train(ours, x, dy)
        np.testing.assert_allclose(mine.y, theirs.y, rtol=1e-5, atol=1e-5, err_msg=str(step))
        np.testing.assert_allclose(mine.dx, theirs.dx, rtol=1e-4, atol=1e-5)
        assert mine.weights.keys() == theirs.weights.keys()
        for name, gradient in theirs.weights.items():
            np.testing.assert_allclose(mine.weights[name], gradient, rtol=1e-4, atol=2e-4)
    for name, value in state(peer).items():
        np.testing.assert_allclose(state(ours)[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(ours(x)), keras.ops.convert_to_numpy(peer(x)), atol=1e-5
    )
    np.testing.assert_allclose(
        [keras.ops.convert_to_numpy(loss) for loss in ours.losses],
        [keras.ops.convert_to_numpy(loss) for loss in peer.losses],
        rtol=1e-6,
    )


def test_every_argument_of_keras_has_the_same_default():
    theirs = keras.layers.BatchNormalization().get_config()
    ours = BatchNormalization().get_config()
    theirs.pop("name")
    assert theirs.items() <= ours.items()


def test_a_keras_configuration_is_read(rng):
    config = keras.layers.BatchNormalization(axis=1, momentum=0.7, name="norm").get_config()
    layer = BatchNormalization.from_config(config)
    assert (layer.axis, layer.momentum, layer.name) == (1, 0.7, "norm")


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16", "float16"])
def test_sixteen_bit_policies_keep_float32_statistics(policy, rng):
    layer = BatchNormalization(dtype=policy, momentum=0.0)
    x = rng.normal(3.0, 2.0, (64, 5)).astype("float32")
    y = layer(x, training=True)
    assert keras.backend.standardize_dtype(y.dtype) == policy.removeprefix("mixed_")
    assert keras.backend.standardize_dtype(layer.moving_variance.dtype) == "float32"
    rounded = keras.ops.convert_to_numpy(keras.ops.cast(keras.ops.cast(x, y.dtype), "float32"))
    np.testing.assert_allclose(
        state(layer)["moving_variance"], rounded.astype("float64").var(0), rtol=1e-5
    )


def test_trainable_false_is_inference_mode_as_in_keras(rng):
    x = rng.normal(5.0, 1.0, (32, 4)).astype("float32")
    peer, ours = keras.layers.BatchNormalization(), BatchNormalization()
    for layer in (peer, ours):
        layer.trainable = False
        layer.build(x.shape)
    y = keras.ops.convert_to_numpy(ours(x, training=True))
    np.testing.assert_allclose(y, keras.ops.convert_to_numpy(peer(x, training=True)), atol=1e-5)
    np.testing.assert_array_equal(state(ours)["moving_mean"], np.zeros(4))
    assert not ours.trainable_variables
