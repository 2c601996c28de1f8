"""Batch norm written with `tf.nn` by hand: TensorFlow's own functions, and the layer's numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow.compat.v1 as v1

import homeostat.tf1 as tf
from homeostat import reference

DECAY, EPSILON, RATE = 0.99, 0.001, 0.05
FUNCTIONS = ["moments", "batch_normalization", "fused_batch_norm", "weighted_moments"]


@pytest.fixture(autouse=True)
def graph():
    with tf.Graph().as_default() as graph:
        yield graph


@pytest.mark.parametrize("name", FUNCTIONS)
def test_they_are_tensorflows_own(name: str) -> None:
    assert getattr(tf.nn, name) is getattr(v1.nn, name)


def by_hand(x: Any, is_training: Any, axes: list[int]) -> Any:
    """Write batch norm as programs did before there was a layer."""
    channels = x.shape[-1:].as_list()
    scale, shift = tf.Variable(tf.ones(channels)), tf.Variable(tf.zeros(channels))
    population_mean = tf.Variable(tf.zeros(channels), trainable=False)
    population_variance = tf.Variable(tf.ones(channels), trainable=False)

    def training() -> Any:
        mean, variance = tf.nn.moments(x, axes)
        moved = [
            tf.assign(old, old * DECAY + new * (1 - DECAY))
            for old, new in ((population_mean, mean), (population_variance, variance))
        ]
        with tf.control_dependencies(moved):
            return tf.nn.batch_normalization(x, mean, variance, shift, scale, EPSILON)

    def predicting() -> Any:
        return tf.nn.batch_normalization(
            x, population_mean, population_variance, shift, scale, EPSILON
        )

    return tf.cond(is_training, training, predicting)


def by_formula(x: Any, is_training: Any, axes: list[int]) -> Any:
    """Write the formula, (x - mean) / sqrt(variance + epsilon) * scale + shift."""
    y = by_hand(x, is_training, axes)
    # The variables that the other made.
    scale, shift, mean, variance = tf.global_variables()[-4:]
    batch_mean, batch_variance = tf.nn.moments(x, axes)
    mean = tf.where(is_training, batch_mean, mean)
    variance = tf.where(is_training, batch_variance, variance)
    with tf.control_dependencies([y]):
        return (x - mean) / tf.sqrt(variance + EPSILON) * scale + shift


def by_layer(x: Any, is_training: Any, axes: list[int]) -> Any:
    return tf.layers.batch_normalization(
        x, training=is_training, momentum=DECAY, epsilon=EPSILON, fused=False
    )


@pytest.mark.parametrize("shape", [(None, 6), (None, 5, 4, 6)], ids=["units", "maps"])
def test_dense_units_and_feature_maps_as_by_the_layer(shape: tuple[int | None, ...]) -> None:
    x, is_training = tf.placeholder(tf.float32, shape), tf.placeholder(tf.bool, ())
    axes = list(range(len(shape) - 1))
    outputs = []
    for way in (by_hand, by_layer):
        with tf.variable_scope(way.__name__):
            outputs.append(way(x, is_training, axes))
    # What is written by hand moves with its output.
    steps, updates = [], ([], tf.get_collection(tf.GraphKeys.UPDATE_OPS))
    for y, run in zip(outputs, updates, strict=True):
        with tf.control_dependencies(run):
            steps.append(tf.train.GradientDescentOptimizer(RATE).minimize(tf.reduce_mean(y**3)))
    draw = np.random.default_rng(0)
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        for _ in range(20):
            batch = draw.normal(1, 2, (16, *shape[1:])).astype(np.float32)
            for step in steps:
                session.run(step, {x: batch, is_training: True})
        # With True what is written by hand moves once more.
        for flag in (False, True):
            hand, layer = session.run(outputs, {x: batch, is_training: flag})
            np.testing.assert_allclose(hand, layer, rtol=1e-5, atol=1e-5)


def test_the_formula_is_the_function() -> None:
    x, is_training = tf.placeholder(tf.float32, (None, 3)), tf.placeholder(tf.bool, ())
    y = by_formula(x, is_training, [0])
    batch = np.random.default_rng(1).normal(1, 2, (8, 3)).astype(np.float32)
    expected, _ = reference.normalize_batch(batch, np.ones(3), np.zeros(3), epsilon=EPSILON)
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        found = session.run(y, {x: batch, is_training: True})
        np.testing.assert_allclose(found, expected, atol=1e-5)
        mean, variance = session.run(tf.global_variables()[-2:])
        np.testing.assert_allclose(mean, (1 - DECAY) * batch.mean(0), rtol=1e-4)
        np.testing.assert_allclose(variance, DECAY + (1 - DECAY) * batch.var(0), rtol=1e-4)
        by_population = session.run(y, {x: batch, is_training: False})
        np.testing.assert_allclose(
            by_population, (batch - mean) / np.sqrt(variance + EPSILON), rtol=1e-4, atol=1e-5
        )


def test_the_fused_function_gives_sample_variances() -> None:
    batch = np.random.default_rng(2).normal(1, 2, (8, 3, 3, 4)).astype(np.float32)
    y, mean, variance = tf.nn.fused_batch_norm(batch, tf.ones(4), tf.zeros(4), epsilon=EPSILON)
    expected, moments = reference.normalize_batch(batch, np.ones(4), np.zeros(4), epsilon=EPSILON)
    with tf.Session() as session:
        found = session.run([y, mean, variance])
    np.testing.assert_allclose(found[0], expected, atol=1e-5)
    np.testing.assert_allclose(found[1], moments.mean, atol=1e-5)
    np.testing.assert_allclose(found[2], moments.variance * 72 / 71, rtol=1e-5)
