"""Faults of today's batch norms: each test fails on Keras's formula and passes on this layer."""

import keras
import numpy as np
import pytest

from homeostat import CONVENTIONS, reference
from homeostat.keras import BatchNormalization
from tests.keras.training import state, train

KerasBatchNormalization = keras.layers.BatchNormalization


def moved(layer, x, **kwargs):
    layer(x, training=True, **kwargs)
    return state(layer)


@pytest.mark.parametrize("ratio", [1e3, 1e4, 1e5])
def test_a_large_mean_does_not_cancel_the_variance(ratio, rng):
    x = rng.normal(ratio, 1.0, (256, 7, 7, 3)).astype("float32")
    _, exact = reference.normalize_batch(x)
    layer = BatchNormalization(momentum=0.0)
    found = train(layer, x, np.ones_like(x))
    tolerance = 1e-5 if ratio <= 1e3 else 1e-4
    np.testing.assert_allclose(state(layer)["moving_variance"], exact.variance, rtol=tolerance)
    np.testing.assert_allclose(found.y.std((0, 1, 2)), np.ones(3), rtol=2e-3)
    if keras.backend.backend() == "torch":
        theirs = moved(KerasBatchNormalization(momentum=0.0), x)["moving_variance"]
        assert not np.allclose(theirs, exact.variance, rtol=1e-2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_bad_value_does_not_poison_the_statistics(value, rng):
    x = rng.normal(2.0, 1.0, (16, 3)).astype("float32")
    bad = x.copy()
    bad[5, 1] = value
    layer, peer = BatchNormalization(momentum=0.9), KerasBatchNormalization(momentum=0.9)
    for batch in (x, bad, x):
        found, theirs = moved(layer, batch), moved(peer, batch)
    assert not np.isfinite(theirs["moving_mean"][1])
    exact = reference.moments(x)
    weight = 1 - 0.9 ** np.array([3, 2, 3])
    np.testing.assert_allclose(found["moving_mean"], exact.mean * weight, rtol=1e-5)
    np.testing.assert_array_equal(found["skipped_updates"], [0, 1, 0])


def test_propagate_does_what_keras_does(rng):
    bad = rng.normal(size=(16, 3)).astype("float32")
    bad[5, 1] = np.nan
    found = moved(BatchNormalization(nonfinite="propagate"), bad)
    np.testing.assert_array_equal(np.isnan(found["moving_mean"]), [False, True, False])
    assert "skipped_updates" not in found


def test_an_empty_batch_leaves_the_statistics():
    empty = np.zeros((0, 3), "float32")
    layer = BatchNormalization()
    layer.build((None, 3))
    found = moved(layer, empty)
    np.testing.assert_array_equal(found["moving_mean"], np.zeros(3))
    np.testing.assert_array_equal(found["moving_variance"], np.ones(3))
    np.testing.assert_array_equal(found["skipped_updates"], np.zeros(3))
    theirs = moved(KerasBatchNormalization(), empty)
    assert np.isnan(theirs["moving_mean"]).all()


def test_a_fully_masked_batch_leaves_the_statistics(rng):
    x, mask = rng.normal(size=(4, 5, 3)).astype("float32"), np.zeros((4, 5), bool)
    layer = BatchNormalization()
    found = moved(layer, x, mask=mask)
    np.testing.assert_array_equal(found["moving_mean"], np.zeros(3))
    np.testing.assert_array_equal(found["moving_variance"], np.ones(3))
    theirs = moved(KerasBatchNormalization(), x, mask=mask)
    assert theirs["moving_variance"].max() < 0.995


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_mask_chooses_elements_on_any_axis(axis, channels, rng):
    shape = (6, 5, channels) if axis == -1 else (6, channels, 5)
    x, mask = rng.normal(1.0, 2.0, shape).astype("float32"), rng.random((6, 5)) < 0.6
    layer = BatchNormalization(axis=axis, momentum=0.0)
    found = train(layer, x, x, mask=mask)
    rows = np.moveaxis(x, axis, -1)[mask].astype("float64")
    np.testing.assert_allclose(state(layer)["moving_mean"], rows.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state(layer)["moving_variance"], rows.var(0), rtol=1e-5)
    exact = reference.backward(x, x, axis=axis, weights=mask)
    np.testing.assert_allclose(found.dx, exact.x, rtol=1e-4, atol=1e-5)


def test_a_masking_layer_reaches_the_statistics(rng):
    x = rng.normal(3.0, 1.0, (4, 6, 2)).astype("float32")
    x[:, 4:] = 0.0
    layer = BatchNormalization(momentum=0.0)
    inputs = keras.Input((6, 2))
    model = keras.Model(inputs, layer(keras.layers.Masking()(inputs)))
    model(x, training=True)
    kept = x[:, :4].reshape(-1, 2).astype("float64")
    np.testing.assert_allclose(state(layer)["moving_mean"], kept.mean(0), rtol=1e-5)


def test_the_stored_variance_is_a_choice(rng):
    x = rng.normal(size=(5, 3)).astype("float32")
    population = moved(BatchNormalization(momentum=0.0), x)["moving_variance"]
    sample = moved(BatchNormalization(momentum=0.0, stored_variance="sample"), x)
    np.testing.assert_allclose(population, x.astype("float64").var(0), rtol=1e-5)
    np.testing.assert_allclose(sample["moving_variance"], x.astype("float64").var(0, ddof=1), 1e-5)
    factor = CONVENTIONS["keras"].variance_factor("sample", count=5)
    np.testing.assert_allclose(sample["moving_variance"] * factor, population, rtol=1e-5)


def test_momentum_weighs_the_old_value(rng):
    x = rng.normal(4.0, 1.0, (32, 2)).astype("float32")
    momentum = CONVENTIONS["torch"].to_old_weight(0.1)
    found = moved(BatchNormalization(momentum=momentum), x)
    np.testing.assert_allclose(found["moving_mean"], 0.1 * x.astype("float64").mean(0), rtol=1e-5)
