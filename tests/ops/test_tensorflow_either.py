"""Moments that a tensor chooses: outputs, gradients and gradients of gradients of both choices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from homeostat import reference

tf = pytest.importorskip("tensorflow")

from homeostat.ops import tensorflow as ops  # noqa: E402
from homeostat.ops.tensorflow.either import normalize_either  # noqa: E402
from homeostat.ops.tensorflow.elements import FEW  # noqa: E402

v1 = tf.compat.v1
# Small, large, and channels first.
SHAPES = {"few": ((16, 5), -1), "many": ((FEW // 8 + 16, 8), -1), "first": ((6, 3, 4), 1)}


@pytest.fixture(params=SHAPES)
def given(request: pytest.FixtureRequest) -> dict[str, Any]:
    shape, axis = SHAPES[request.param]
    draw, channels = np.random.default_rng(3), (shape[axis],)
    return {
        "axis": axis,
        "x": draw.normal(1, 2, shape).astype("f"),
        "dy": draw.normal(size=shape).astype("f"),
        "mean": draw.normal(size=channels).astype("f"),
        "variance": draw.uniform(0.5, 2, channels).astype("f"),
        "gamma": draw.normal(size=channels).astype("f"),
        "beta": draw.normal(size=channels).astype("f"),
    }


NAMES = ("x", "gamma", "beta", "mean", "variance")


def graph_of(given: dict[str, Any], unknown_batch: bool) -> tuple[Any, ...]:
    """Build a call; return its placeholders, flag, output, moments and gradients."""
    shapes = {n: list(given[n].shape) for n in NAMES}
    if unknown_batch:
        shapes["x"][0] = None
    held = {n: v1.placeholder(tf.float32, shapes[n]) for n in NAMES}
    flag = v1.placeholder(tf.bool, ())
    y, batch = normalize_either(
        held["x"], flag, held["mean"], held["variance"], held["gamma"], held["beta"],
        axis=given["axis"], epsilon=1e-3,
    )  # fmt: skip
    gradients = tf.gradients(y, [held[n] for n in NAMES], given["dy"])
    return held, flag, y, batch, gradients


@pytest.mark.parametrize("unknown_batch", [False, True])
def test_the_batch_is_taken_in_training(given: dict[str, Any], unknown_batch: bool) -> None:
    options = {"axis": given["axis"], "epsilon": 1e-3}
    x, gamma, beta = (given[n] for n in ("x", "gamma", "beta"))
    expected, moments = reference.normalize_batch(x, gamma, beta, **options)
    exact = reference.backward(given["dy"], x, gamma, beta, **options)
    with tf.Graph().as_default(), v1.Session() as session:
        held, flag, *results = graph_of(given, unknown_batch)
        feed = {held[n]: given[n] for n in NAMES} | {flag: True}
        y, batch, gradients = session.run(results, feed)
    np.testing.assert_allclose(y, expected, atol=2e-5)
    assert (batch.count == moments.count).all()
    np.testing.assert_allclose(batch.mean, moments.mean, atol=1e-5)
    np.testing.assert_allclose(batch.variance, moments.variance, rtol=1e-5)
    for found, wanted in zip(gradients, (exact.x, exact.gamma, exact.beta, 0, 0), strict=True):
        np.testing.assert_allclose(found, wanted + np.zeros_like(found), rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("unknown_batch", [False, True])
def test_what_is_given_is_taken_otherwise(given: dict[str, Any], unknown_batch: bool) -> None:
    with tf.Graph().as_default(), v1.Session() as session:
        held, flag, *results = graph_of(given, unknown_batch)
        moments = held["mean"], held["variance"]
        plain = ops.normalize(
            held["x"], *moments, held["gamma"], held["beta"], axis=given["axis"], epsilon=1e-3
        )
        wanted = plain, tf.gradients(plain, [held[n] for n in NAMES], given["dy"])
        feed = {held[n]: given[n] for n in NAMES} | {flag: False}
        (y, batch, gradients), (expected, exact) = session.run((results, wanted), feed)
    assert batch.count == 0
    np.testing.assert_allclose(y, expected, atol=1e-5)
    for found, each in zip(gradients, exact, strict=True):
        np.testing.assert_allclose(found, each, rtol=1e-4, atol=2e-4)


def test_a_batch_that_is_not_finite_harms_no_inference(given: dict[str, Any]) -> None:
    x = given["x"].copy()
    x[0] = np.nan
    with tf.Graph().as_default(), v1.Session() as session:
        held, flag, y, _, gradients = graph_of(given, False)
        feed = {held[n]: given[n] for n in NAMES} | {held["x"]: x, flag: False}
        y, dx = session.run((y, gradients[0]), feed)
    assert np.isfinite(y[1:]).all()
    assert np.isfinite(dx[1:]).all()


@pytest.mark.parametrize("training", [False, True])
def test_gradients_of_gradients(training: bool) -> None:
    draw = np.random.default_rng(5)
    x, dy = (draw.normal(size=(6, 3)) for _ in range(2))
    channels = {n: draw.uniform(0.5, 2, 3) for n in NAMES[1:]}

    def penalty(tf_x: Any, either: bool) -> Any:
        held = {n: tf.constant(channels[n]) for n in NAMES[1:]}
        affine = held["gamma"], held["beta"]
        if either:
            flag = v1.placeholder_with_default(training, ())
            y, _ = normalize_either(tf_x, flag, held["mean"], held["variance"], *affine)
        elif training:
            mean, variance = tf.nn.moments(tf_x, [0])
            y = tf.nn.batch_normalization(tf_x, mean, variance, *affine[::-1], 1e-3)
        else:
            y = ops.normalize(tf_x, held["mean"], held["variance"], *affine)
        (dx,) = tf.gradients(tf.sin(y), tf_x, dy)
        return tf.gradients(tf.reduce_sum(dx**2), tf_x)

    with tf.Graph().as_default(), v1.Session() as session:
        tf_x = tf.constant(x)
        found, wanted = session.run((penalty(tf_x, True), penalty(tf_x, False)))
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-6, atol=1e-8)
