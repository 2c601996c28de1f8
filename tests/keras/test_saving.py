"""Configurations, `.keras` files and weights files, also in another process."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from homeostat import ShapeError, UnsupportedError
from homeostat.keras import BatchNormalization
from tests.keras.training import state

ALL = {
    "axis": [1, 2],
    "momentum": None,
    "epsilon": 1e-4,
    "center": True,
    "scale": True,
    "beta_initializer": "ones",
    "gamma_initializer": "zeros",
    "moving_mean_initializer": "ones",
    "moving_variance_initializer": "ones",
    "beta_regularizer": keras.regularizers.L1(0.1),
    "gamma_regularizer": keras.regularizers.L2(0.2),
    "beta_constraint": "non_neg",
    "gamma_constraint": "non_neg",
    "renorm": True,
    "renorm_clipping": {"rmin": 0.5, "rmax": 2.0, "dmax": 1.0},
    "renorm_momentum": 0.8,
    "virtual_batch_size": 2,
    "activation": {"name": "leaky_relu", "negative_slope": 0.1},
    "stored_variance": "sample",
    "zero_debias": False,
    "nonfinite": "raise",
    "frozen_affine": True,
    "frozen_statistics": True,
    "inference_mode": True,
    "dtype": "mixed_bfloat16",
    "name": "norm",
}


@keras.saving.register_keras_serializable(package="tests")
def jitter(shape):
    return keras.ops.ones(shape[-1:]), keras.ops.zeros(shape[-1:])


def test_every_option_survives_its_configuration():
    layer = BatchNormalization(**ALL)
    config = json.loads(json.dumps(layer.get_config()))
    copy = BatchNormalization.from_config(config)
    assert copy.get_config() == layer.get_config()
    assert copy.spec == layer.spec
    assert (copy.frozen_affine, copy.frozen_statistics, copy.inference_mode) == (True,) * 3
    assert set(ALL) - {"dtype", "name"} <= set(config)


def test_a_registered_adjustment_survives_and_a_lambda_says_why_not(tmp_path):
    layer = BatchNormalization(adjustment=jitter)
    again = BatchNormalization.from_config(layer.get_config())
    assert again.adjustment is jitter
    with pytest.raises(UnsupportedError, match="register_keras_serializable"):
        BatchNormalization(adjustment=lambda shape: (1.0, 0.0)).get_config()


def make_model():
    inputs = keras.Input((6, 6, 3))
    x = keras.layers.Conv2D(4, 3, padding="same", use_bias=False)(inputs)
    y = BatchNormalization(activation="relu", zero_debias=True, name="first")(x)
    x = keras.layers.Conv2D(4, 3, padding="same")(y)
    x = BatchNormalization(activation="relu", name="second")(x, residual=y)
    return keras.Model(inputs, keras.layers.Flatten()(x))


def test_a_saved_model_loads_in_a_fresh_process(tmp_path, rng):
    model, x = make_model(), rng.normal(2.0, 3.0, (4, 6, 6, 3)).astype("float32")
    model(x, training=True)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", keras.ops.convert_to_numpy(model(x)))
    model.save(tmp_path / "model.keras")
    script = """
import sys, keras, numpy as np
import homeostat.keras
folder = sys.argv[1]
model = keras.saving.load_model(folder + "/model.keras")
y = keras.ops.convert_to_numpy(model(np.load(folder + "/x.npy")))
np.testing.assert_allclose(y, np.load(folder + "/y.npy"), rtol=1e-6, atol=1e-6)
assert float(keras.ops.max(model.get_layer("first").updates)) == 1.0
print("the same")
"""
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env=os.environ,
        capture_output=True,
        text=True,
    )
    assert result.stdout.strip().endswith("the same"), result.stderr[-3000:]


def test_weights_files_go_both_ways_where_nothing_is_counted(tmp_path, rng):
    def norms(layer):
        return keras.Sequential([keras.Input((5,)), layer])

    x = rng.normal(3.0, 2.0, (32, 5)).astype("float32")
    theirs = norms(keras.layers.BatchNormalization(momentum=0.5))
    theirs(x, training=True)
    theirs.save_weights(tmp_path / "theirs.weights.h5")
    for nonfinite in ("skip", "propagate"):
        ours = norms(BatchNormalization(momentum=0.5, nonfinite=nonfinite))
        ours.load_weights(tmp_path / "theirs.weights.h5")
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(ours(x)), keras.ops.convert_to_numpy(theirs(x)), atol=1e-6
        )
    ours.save_weights(tmp_path / "ours.weights.h5")
    theirs.load_weights(tmp_path / "ours.weights.h5")


def test_weights_of_another_kind_or_size_are_refused(tmp_path):
    wide = keras.Sequential([keras.Input((5,)), BatchNormalization()])
    wide.save_weights(tmp_path / "wide.weights.h5")
    narrow = keras.Sequential([keras.Input((4,)), BatchNormalization()])
    # Keras puts our message into an error of its own.
    with pytest.raises(ValueError, match=r"expected \(4,\)"):
        narrow.load_weights(tmp_path / "wide.weights.h5")
    renorm = keras.Sequential([keras.Input((5,)), BatchNormalization(renorm=True)])
    with pytest.raises(ValueError, match="renorm_mean"):
        renorm.load_weights(tmp_path / "wide.weights.h5")
    np.testing.assert_array_equal(state(narrow.layers[0])["moving_variance"], np.ones(4))


def test_symbolic_shapes():
    layer = BatchNormalization(axis=1, dtype="mixed_float16")
    y = layer(keras.Input((3, 8, None)))
    assert (y.shape, y.dtype) == ((None, 3, 8, None), "float16")
    assert layer.compute_output_shape((None, 3, 8, None)) == (None, 3, 8, None)
    with pytest.raises(ShapeError, match="residual"):
        layer(keras.Input((3, 8, 8)), residual=keras.Input((3, 8, 4)))
