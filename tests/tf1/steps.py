"""Small training steps with a hand-made batch norm, with and without its updates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import homeostat.tf1 as tf
from homeostat.tf1.records import record_call

BATCH = np.float32([[1, 10], [3, 30]])
"""Two rows whose mean is (2, 20) and whose population variance is (1, 100)."""
RATE = 0.25
MOVED_MEAN = np.float32([0.5, 5.0])
MOVED_VARIANCE = np.float32([0.25, 25.0])
"""The moving statistics after one update from 0."""


def batch_norm(x: Any, name: str = "bn", resource: bool = False) -> Any:
    """Normalize by batch statistics; put the updates where tf.layers puts them."""
    with tf.variable_scope(name, reuse=tf.AUTO_REUSE, use_resource=resource) as scope:
        gamma = tf.get_variable("gamma", [2], initializer=tf.ones_initializer())
        start = {"trainable": False, "initializer": tf.zeros_initializer()}
        moving = [tf.get_variable(f"moving_{of}", [2], **start) for of in ("mean", "variance")]
        now = tf.nn.moments(x, [0])
        updates = tuple(
            tf.assign_sub(old, RATE * (old - new)) for old, new in zip(moving, now, strict=True)
        )
        for update in updates:
            tf.add_to_collection(tf.GraphKeys.UPDATE_OPS, update)
        record_call(scope.name, updates)
        return (x - now[0]) / tf.sqrt(now[1] + 1e-3) * gamma


def loss_of(y: Any) -> Any:
    return tf.reduce_sum(y * tf.constant([[1.0, 2.0], [3.0, 4.0]]))


def minimize(loss: Any, *, updates: bool = False, only: str | None = None) -> Any:
    """Return a training op, with the updates or without, for the variables of a scope."""
    run = tf.get_collection(tf.GraphKeys.UPDATE_OPS) if updates else []
    with tf.control_dependencies(run):
        variables = tf.get_collection(tf.GraphKeys.TRAINABLE_VARIABLES, scope=only)
        return tf.train.GradientDescentOptimizer(0.1).minimize(loss, var_list=variables)


_LINES = Path(__file__).read_text().splitlines()
RECORDED_AT = f"{__file__}:{_LINES.index('        record_call(scope.name, updates)') + 1}"
"""Where `batch_norm` makes its calls."""
