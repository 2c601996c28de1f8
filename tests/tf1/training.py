"""Training steps of one batch norm in a graph of its own: ours or tf-keras's legacy one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf

BatchNorm = Callable[..., Any]


@dataclass(frozen=True)
class Trained:
    """What came of it: outputs and gradients of every step, and all variables at the end."""

    outputs: list[np.ndarray]
    gradients: list[dict[str, np.ndarray]]
    variables: dict[str, np.ndarray]
    inference: np.ndarray


def train(
    batch_norm: BatchNorm,
    batches: list[np.ndarray],
    dy: np.ndarray,
    options: dict[str, Any],
    *,
    training: Any = True,
    shape: Any = None,
    rate: float = 0.1,
) -> Trained:
    """Take one step for each batch, then infer with the last one.

    Args:
        batch_norm: ``tf.layers.batch_normalization`` or another of its kind.
        batches: the inputs.
        dy: the gradient of the loss by the output.
        options: of the batch norm.
        training: True, or "placeholder".
        shape: the placeholder's, the batches' if None.
        rate: the learning rate of gamma and beta.
    """
    dtype = batches[0].dtype
    with tf.Graph().as_default() as graph:
        tf.set_random_seed(1)
        x = tf.placeholder(dtype, shape or batches[0].shape)
        flag = tf.placeholder_with_default(False, ()) if training == "placeholder" else True
        y = batch_norm(x, training=flag, name="bn", **options)
        inferred = batch_norm(x, training=False, name="bn", reuse=True, **options)
        loss = tf.reduce_sum(tf.cast(y, tf.float32) * dy.astype("float32"))
        trainable = tf.trainable_variables()
        names = ["x", *(v.op.name for v in trainable)]
        gradients = tf.gradients(loss, [x, *trainable])
        # Given the gradients, nothing runs forward once more.
        given = [tf.placeholder(g.dtype, g.shape) for g in gradients[1:]]
        steps = [tf.assign_sub(v, rate * g) for v, g in zip(trainable, given, strict=True)]
        updates = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
        assert len(updates) == (0 if options.get("updates_collections", "") is None else 2)
        outputs, found = [], []
        with tf.Session(graph=graph) as session:
            session.run(tf.global_variables_initializer())
            for batch in batches:
                feed = {x: batch} | ({flag: True} if training == "placeholder" else {})
                out, grads, _ = session.run([y, gradients, updates], feed)
                session.run(steps, dict(zip(given, grads[1:], strict=True)))
                outputs.append(out)
                found.append(dict(zip(names, grads, strict=True)))
            values = {v.op.name: session.run(v) for v in tf.global_variables()}
            return Trained(outputs, found, values, session.run(inferred, {x: batches[-1]}))
