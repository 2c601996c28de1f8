"""Write checkpoints of TensorFlow 1 graphs into a folder: for each rule one on which it speaks.

A script, since TensorFlow 1 wants a process of its own: ``python -m ... FOLDER``. `healthy` is
there too, and `spared`, of a norm that left a broken batch out. The norms are all called "norm".
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf

from homeostat.tf1.contrib import slim

Array = np.ndarray[Any, np.dtype[Any]]
CHANNELS = 8


def batches(number: int = 20, mean: float = 2.0) -> list[Array]:
    random = np.random.default_rng(0)
    return [random.normal(mean, 1.5, (32, CHANNELS)).astype(np.float32) for _ in range(number)]


def of_slim(x: Any) -> Any:
    return slim.batch_norm(x, decay=0.9, scale=True, is_training=True, scope="norm")


def by_hand(x: Any) -> Any:
    """Return a norm as programs of that time write it themselves, without a guard."""
    with tf.variable_scope("norm"):
        zeros, ones = tf.zeros_initializer(), tf.ones_initializer()
        starts = {"gamma": ones, "beta": zeros, "moving_mean": zeros, "moving_variance": ones}
        gamma, beta, *moving = (
            tf.get_variable(name, (CHANNELS,), initializer=start, trainable=name[0] != "m")
            for name, start in starts.items()
        )
    seen = tf.nn.moments(x, [0])
    for variable, value in zip(moving, seen, strict=True):
        update = tf.assign_sub(variable, 0.1 * (variable - value))
        tf.add_to_collection(tf.GraphKeys.UPDATE_OPS, update)
    return tf.nn.batch_normalization(x, *seen, beta, gamma, 1e-3)


def write(
    path: Path,
    inputs: list[Array],
    *,
    updates: bool = True,
    rate: float = 0.05,
    decay: float = 0.0,
    before: Callable[[Any], Any] = lambda x: x,
    norm: Callable[[Any], Any] = of_slim,
    after: Callable[[dict[str, Any]], list[Any]] = lambda variables: [],
) -> None:
    """Train a norm and save it.

    Args:
        path: of the checkpoint, without its endings.
        inputs: a batch for each step.
        updates: whether the training step also runs UPDATE_OPS.
        rate: of gradient descent; 0 for none.
        decay: weight of the penalty of all squared parameters.
        before: what is in front of the norm.
        norm: makes it.
        after: assignments at the end, from the norm's variables by name.
    """
    with tf.Graph().as_default(), tf.Session() as session:
        tf.set_random_seed(0)
        x = tf.placeholder(tf.float32, (None, CHANNELS))
        y = norm(before(x))
        weights = tf.get_variable("weights", (CHANNELS, 1))
        loss = tf.reduce_mean((tf.nn.relu(y) @ weights - x[:, :1]) ** 2)
        loss += decay / 2 * sum(tf.reduce_sum(one**2) for one in tf.trainable_variables())
        steps: list[Any] = [tf.train.GradientDescentOptimizer(rate).minimize(loss)]
        steps += tf.get_collection(tf.GraphKeys.UPDATE_OPS) if updates else []
        variables = {v.op.name.removeprefix("norm/"): v for v in tf.global_variables("norm/")}
        assignments = after(variables)
        session.run(tf.global_variables_initializer())
        for batch in inputs:
            session.run(steps, {x: batch})
        session.run(assignments)
        tf.train.Saver().save(session, str(path), write_meta_graph=False)


def rounded(variables: dict[str, Any]) -> list[Any]:
    """Compute E[x²] − E[x]² in float32, of inputs far from 0."""
    x = np.random.default_rng(0).normal(3000, 0.01, (2048, CHANNELS)).astype(np.float32)
    variance = (x * x).mean(0) - x.mean(0) ** 2
    assert (variance < 0).any()
    return [
        tf.assign(variables["moving_mean"], x.mean(0)),
        tf.assign(variables["moving_variance"], variance),
    ]


def pruned(variables: dict[str, Any]) -> list[Any]:
    gamma = variables["gamma"]
    return [tf.assign(gamma, tf.where(tf.range(CHANNELS) < CHANNELS // 2, 0 * gamma, gamma))]


def dead(x: Any) -> Any:
    """A bias that went far below 0 in front of ReLU, at half of the channels."""
    return tf.nn.relu(x + np.where(np.arange(CHANNELS) < CHANNELS // 2, -1000.0, 0.0))


def main(folder: Path) -> None:
    broken = batches(1)[0].copy()
    broken[0] = np.nan
    healthy = batches() * 3
    write(folder / "healthy", healthy)
    write(folder / "BN001", healthy, updates=False)
    write(folder / "BN002", [*healthy, broken], rate=0.0, norm=by_hand)
    write(folder / "spared", [*healthy, broken], rate=0.0)
    write(folder / "BN003", healthy, after=rounded)
    write(folder / "BN004", batches() * 10, before=dead, rate=0.0)
    write(folder / "BN005", batches(mean=5e4) * 6, rate=0.0)
    write(folder / "BN010", batches(4), rate=1e30)
    write(folder / "BN011", healthy, after=pruned)
    write(folder / "BN012", batches(25, mean=0.0), rate=0.1, decay=5.0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
