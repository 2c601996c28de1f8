"""What Keras's own layer does not have, against the float64 oracle over several steps."""

import keras
import numpy as np
import pytest

from homeostat import (
    BatchNormSpec,
    HomeostatError,
    OneElementWarning,
    ShapeError,
    SpecError,
    UnsupportedError,
    reference,
)
from homeostat.keras import BatchNormalization
from tests.keras.training import state, train

LEAKY = {"name": "leaky_relu", "negative_slope": 0.3}
OPTIONS = [
    {"axis": [1, 3]},
    {"axis": [-1, 1], "renorm": True},
    {"virtual_batch_size": 4},
    {"virtual_batch_size": 4, "renorm": True, "activation": "relu"},
    {"activation": "relu"},
    {"activation": LEAKY, "axis": 1},
    {"momentum": None},
    {"momentum": None, "stored_variance": "sample"},
    {"zero_debias": True, "momentum": 0.9},
    {"zero_debias": True, "momentum": 0.9, "renorm": True},
    {"nonfinite": "propagate"},
]


@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_the_oracle_after_three_steps(options, residual, rng):
    spec = BatchNormSpec(**options)
    shape, layer = (8, 3, 2, 5), BatchNormalization(**options)
    layer.build(shape)
    channels = tuple(layer.moving_mean.shape)
    gamma = rng.normal(1.0, 0.3, channels).astype("float32")
    beta = rng.normal(size=channels).astype("float32")
    layer.gamma.assign(gamma)
    layer.beta.assign(beta)
    expected = reference.start(channels)
    for _ in range(3):
        x = rng.normal(1.0, 2.0, shape).astype("float32")
        dy = rng.normal(size=shape).astype("float32")
        r = rng.normal(size=shape).astype("float32") if residual else None
        before = expected
        step = reference.train_step(x, before, spec, gamma, beta, residual=r)
        gradients = reference.step_gradients(dy, x, before, spec, gamma, beta, residual=r)
        mine = train(layer, x, dy, residual=r)
        np.testing.assert_allclose(mine.y, step.y, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(mine.dx, gradients.x, rtol=1e-4, atol=2e-5)
        for name in ("gamma", "beta"):
            wanted = getattr(gradients, name)
            np.testing.assert_allclose(mine.weights[name], wanted, rtol=1e-4, atol=1e-4)
        if residual:
            np.testing.assert_allclose(mine.residual, gradients.residual, atol=1e-6)
        expected = step.state
    names = {
        "mean": "moving_mean",
        "variance": "moving_variance",
        "updates": "updates",
        "skipped": "skipped_updates",
        "stddev": "moving_stddev",
        "renorm_mean": "renorm_mean",
        "renorm_stddev": "renorm_stddev",
    }
    found = state(layer)
    checked = [field for field, name in names.items() if name in found]
    assert {"mean", "variance"} <= set(checked)
    for field in checked:
        np.testing.assert_allclose(
            found[names[field]], getattr(expected, field), rtol=1e-5, atol=1e-6, err_msg=field
        )


def test_gradients_reach_the_residual_and_the_groups(rng):
    layer = BatchNormalization(virtual_batch_size=2, activation="relu")
    x, r, dy = (rng.normal(size=(6, 4)).astype("float32") for _ in range(3))
    mine = train(layer, x, dy, residual=r)
    for group in range(3):
        rows = slice(group, None, 3)
        exact = reference.backward(dy[rows], x[rows], activation="relu", residual=r[rows])
        np.testing.assert_allclose(mine.dx[rows], exact.x, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(mine.residual[rows], exact.residual, atol=1e-6)


@pytest.mark.parametrize("renorm", [False, True])
def test_adjustment_scales_and_shifts_the_normalized_values(renorm, rng):
    seen = []

    def adjustment(shape):
        seen.append(tuple(int(n) for n in shape))
        scale = keras.ops.reshape(keras.ops.arange(1, shape[0] + 1, dtype="float32"), (-1, 1))
        return scale, keras.ops.full((shape[-1],), 0.25)

    layer = BatchNormalization(adjustment=adjustment, renorm=renorm, activation="relu")
    x = rng.normal(size=(4, 3)).astype("float32")
    layer.build(x.shape)
    layer.gamma.assign([1.0, 2.0, -1.0])
    layer.beta.assign([0.5, 0.0, 0.1])
    y = keras.ops.convert_to_numpy(layer(x, training=True))
    spec = BatchNormSpec(renorm=renorm)
    normalized = reference.train_step(x, reference.start((3,)), spec).y
    adjusted = normalized * np.arange(1, 5)[:, None] + 0.25
    np.testing.assert_allclose(
        y, np.maximum(adjusted * [1.0, 2.0, -1.0] + [0.5, 0.0, 0.1], 0), rtol=1e-5, atol=1e-5
    )
    assert seen == [(4, 3)]
    plain = reference.normalize(
        x, state(layer)["moving_mean"], state(layer)["moving_variance"],
        [1.0, 2.0, -1.0], [0.5, 0.0, 0.1], activation="relu",
    )  # fmt: skip
    np.testing.assert_allclose(keras.ops.convert_to_numpy(layer(x)), plain, rtol=1e-5, atol=1e-5)


def test_three_ways_to_freeze(rng):
    x = rng.normal(5.0, 3.0, (64, 4)).astype("float32")
    normalized, _ = reference.normalize_batch(x)

    affine = BatchNormalization(frozen_affine=True)
    y = train(affine, x, np.ones_like(x))
    assert not y.weights
    np.testing.assert_allclose(y.y, normalized, atol=1e-5)
    assert state(affine)["moving_mean"].max() > 0.04

    statistics = BatchNormalization(frozen_statistics=True)
    y = train(statistics, x, x)
    assert set(y.weights) == {"gamma", "beta"}
    np.testing.assert_allclose(y.y, normalized, atol=1e-5)
    np.testing.assert_array_equal(state(statistics)["moving_mean"], np.zeros(4))

    inference = BatchNormalization(inference_mode=True)
    y = train(inference, x, np.ones_like(x))
    np.testing.assert_allclose(y.y, x / np.sqrt(1.001), rtol=1e-5)
    np.testing.assert_allclose(y.weights["beta"], np.full(4, 64.0))
    np.testing.assert_array_equal(state(inference)["moving_variance"], np.ones(4))


def test_one_element_per_channel_warns():
    layer = BatchNormalization()
    with pytest.warns(OneElementWarning, match="one element per channel"):
        y = layer(np.full((1, 3), 7.0, "float32"), training=True)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(y), np.zeros((1, 3)))
    np.testing.assert_allclose(state(layer)["moving_mean"], np.full(3, 0.07), rtol=1e-6)


BAD = [
    ({"momentum": 1.5}, None, SpecError, "0 <= momentum <= 1"),
    ({"epsilon": -1.0}, None, SpecError, "epsilon"),
    ({"axis": 0.5}, None, SpecError, "integer"),
    ({"axis": [1, 1]}, None, SpecError, "repeats"),
    ({"axis": 2}, (4, 3), ShapeError, "out of range"),
    ({"axis": [1, -1]}, (4, 3), ShapeError, "same axis twice"),
    ({"axis": [0, 1]}, (4, 3), ShapeError, "nothing to average"),
    ({"axis": -1}, (4, None), ShapeError, "unknown"),
    ({"virtual_batch_size": 3}, (4, 3), ShapeError, "does not divide"),
    ({"virtual_batch_size": 0}, None, SpecError, "positive"),
    ({"virtual_batch_size": 2, "axis": 0}, None, SpecError, "axis 0"),
    ({"virtual_batch_size": 2, "adjustment": print}, None, SpecError, "exclude"),
    ({"renorm_clipping": {"rmax": 2.0}}, None, SpecError, "renorm=True"),
    ({"renorm": True, "renorm_clipping": {"smax": 2.0}}, None, SpecError, "unknown keys"),
    ({"renorm": True, "renorm_clipping": {"rmin": 3, "rmax": 2}}, None, SpecError, "rmin"),
    ({"activation": "gelu"}, None, SpecError, "cannot be fused"),
    ({"nonfinite": "ignore"}, None, SpecError, "nonfinite"),
    ({"zero_debias": True, "momentum": None}, None, SpecError, "zero_debias"),
]


@pytest.mark.parametrize(("options", "shape", "error", "words"), BAD, ids=str)
def test_bad_options_say_what_was_expected(options, shape, error, words, rng):
    def use():
        layer = BatchNormalization(**options)
        if shape is not None and None in shape:
            layer.build(shape)
        elif shape is not None:
            layer(rng.normal(size=shape).astype("float32"), training=True)

    with pytest.raises(error, match=words) as caught:
        use()
    assert isinstance(caught.value, HomeostatError)
    assert "xpected" in str(caught.value) or "xclude" in str(caught.value)


def test_a_mask_of_the_wrong_shape(rng):
    layer, x = BatchNormalization(), rng.normal(size=(4, 5, 3)).astype("float32")
    with pytest.raises(ShapeError, match=r"expected \(4, 5\)"):
        layer(x, training=True, mask=np.ones((4, 3), bool))
    with pytest.raises(ShapeError, match=r"residual has shape \(4, 3\)"):
        layer(x, training=True, residual=np.ones((4, 3), "float32"))


def test_a_mask_with_ghost_batches_is_refused(rng):
    layer, x = BatchNormalization(virtual_batch_size=2), rng.normal(size=(4, 5, 3))
    with pytest.raises(UnsupportedError, match="mask"):
        layer(x.astype("float32"), training=True, mask=np.ones((4, 5), bool))


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="TensorFlow has replicas")
def test_synchronized_needs_tensorflow():
    with pytest.raises(SpecError, match="TensorFlow"):
        BatchNormalization(synchronized=True)
