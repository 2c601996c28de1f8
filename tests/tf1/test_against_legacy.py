"""`tf.layers.batch_normalization` against tf-keras's legacy layer, where that layer is right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tf_keras.api._v1.keras.__internal__.legacy.layers import batch_normalization as legacy

import homeostat.tf1 as tf
from tests.tf1.training import Trained, train

# The legacy layer says that it is one.
pytestmark = pytest.mark.filterwarnings("ignore:`tf.layers.batch_normalization` is deprecated")

ours = tf.layers.batch_normalization

# Shapes, channel axes, and what of the shape a placeholder leaves unknown.
SHAPES = [
    ((8, 5), -1, (0,)),
    ((8, 6, 3), 2, (0, 1)),
    ((8, 3, 6), 1, (0,)),
    ((8, 4, 6, 3), -1, (0, 1, 2)),
    ((8, 3, 4, 6), 1, (0,)),
    ((8, 3, 2, 4, 5), -1, (0, 1, 2, 3)),
    ((8, 5, 2, 4, 3), 1, (0,)),
    ((8, 4, 6, 3), [1, 3], (0,)),
    ((8, 4, 6, 3), [3], ()),
]


def adjustment(shape: Any) -> tuple[Any, Any]:
    spread = tf.concat([shape[:1], tf.ones_like(shape[1:])], 0)
    return tf.fill(spread, 1.5), tf.fill(spread, -0.3)


def draw_options(rng: np.random.Generator, axis: Any) -> dict[str, Any]:
    """Draw options that TF1 allows together."""
    options: dict[str, Any] = {
        "axis": axis,
        "momentum": float(rng.choice([0.0, 0.9, 0.99])),
        "epsilon": float(rng.choice([1e-5, 1e-3, 0.1])),
        "center": bool(rng.random() < 0.8),
        "scale": bool(rng.random() < 0.8),
        "beta_initializer": tf.constant_initializer(0.3),
        "gamma_initializer": tf.constant_initializer(-1.2),
        "moving_mean_initializer": tf.constant_initializer(0.1),
        "moving_variance_initializer": tf.constant_initializer(2.0),
    }
    kind = rng.choice(["plain", "unfused", "renorm", "virtual", "virtual-renorm", "adjustment"])
    if kind == "unfused":
        options["fused"] = False
    if "renorm" in kind or (kind == "adjustment" and rng.random() < 0.5):
        options["renorm"] = True
        options["renorm_momentum"] = 0.8
        bounds = {"rmin": 0.6, "rmax": 1.4, "dmax": 0.2}
        if rng.random() < 0.7:
            chosen = [name for name in bounds if rng.random() < 0.7]
            options["renorm_clipping"] = {name: bounds[name] for name in chosen}
    if "virtual" in kind:
        options["virtual_batch_size"] = int(rng.choice([2, 4, 8]))
    if kind == "adjustment":
        options["adjustment"] = adjustment
    return options


def assert_close(a: Trained, b: Trained) -> None:
    def close(name: str, actual: np.ndarray, expected: np.ndarray) -> None:
        assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype), name
        actual, expected = actual.astype(np.float64), expected.astype(np.float64)
        atol = 1e-5 * max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(actual, expected, rtol=0, atol=atol, err_msg=name)

    assert list(a.variables) == list(b.variables)
    for name, value in a.variables.items():
        close(name, value, b.variables[name])
    for i, (y, expected) in enumerate(zip(a.outputs, b.outputs, strict=True)):
        close(f"y {i}", y, expected)
        for name, gradient in a.gradients[i].items():
            close(f"gradient {i} of {name}", gradient, b.gradients[i][name])
    close("inference", a.inference, b.inference)


@pytest.mark.parametrize("seed", range(48))
def test_every_option_gives_the_same_numbers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape, axis, unknown = SHAPES[seed % len(SHAPES)]
    options = draw_options(rng, axis)
    batches = [rng.normal(0.5, 2, shape).astype(np.float32) for _ in range(3)]
    dy = rng.normal(size=shape)
    training = "placeholder" if rng.random() < 0.5 else True
    seen: Any = shape
    if training == "placeholder" and "virtual_batch_size" not in options and rng.random() < 0.7:
        seen = [None if a in unknown else n for a, n in enumerate(shape)]
    runs = [
        train(each, batches, dy, dict(options), training=training, shape=seen)
        for each in (ours, legacy)
    ]
    assert_close(*runs)


@pytest.mark.parametrize("axis", [1, -1])
def test_float16_keeps_float32_variables(axis: int) -> None:
    rng = np.random.default_rng(0)
    shape = (8, 4, 6, 3)
    batches = [rng.normal(0.5, 2, shape).astype(np.float16) for _ in range(3)]
    found, expected = (
        train(each, batches, rng.normal(size=shape) * 0, {"axis": axis, "fused": False})
        for each in (ours, legacy)
    )
    for a, b in zip(found.outputs, expected.outputs, strict=True):
        assert a.dtype == np.float16
        np.testing.assert_allclose(a.astype(np.float32), b.astype(np.float32), atol=4e-3)
    for name, value in expected.variables.items():
        assert found.variables[name].dtype == np.float32
        np.testing.assert_allclose(found.variables[name], value, rtol=1e-4, atol=1e-5)


def test_placeholder_that_says_no_moves_nothing() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (8, 5)).astype(np.float32)
    with tf.Graph().as_default(), tf.Session() as session:
        flag = tf.placeholder_with_default(False, ())
        y = ours(tf.constant(x), training=flag, epsilon=0.0)
        session.run(tf.global_variables_initializer())
        updates = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
        out, _ = session.run([y, updates])
        np.testing.assert_allclose(out, x, rtol=1e-6)
        assert session.run(tf.global_variables("batch_normalization/moving_mean")[0]).any() == 0
        out, _ = session.run([y, updates], {flag: True})
        np.testing.assert_allclose(out.mean(0), 0, atol=1e-6)
        np.testing.assert_allclose(
            session.run(tf.global_variables("batch_normalization/moving_mean")[0]),
            0.01 * x.mean(0),
            rtol=1e-5,
        )
