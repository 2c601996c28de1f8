"""Models for the tests of estimators."""

from __future__ import annotations

import numpy as np
import tensorflow.compat.v1 as tf

from homeostat.tf1.estimator import EstimatorSpec, ModeKeys

MOMENTUM = 0.9


def counting_model(features, labels, mode, params):
    """The loss is mean(features) + weight; one step adds 1 to the weight."""
    weight = tf.get_variable("weight", [], initializer=tf.zeros_initializer())
    if mode == ModeKeys.PREDICT:
        return EstimatorSpec(mode, predictions={"sum": features + weight, "x": features})
    loss = tf.reduce_mean(features) + weight
    step = tf.train.get_global_step()
    # A step that the end of the input cannot cut in two.
    with tf.control_dependencies([loss]):
        train_op = tf.group(tf.assign_add(weight, 1.0), tf.assign_add(step, 1))
    return EstimatorSpec(
        mode,
        loss=loss,
        train_op=train_op,
        eval_metric_ops={"mean": tf.metrics.mean(features)},
        training_hooks=params.get("training_hooks"),
        training_chief_hooks=params.get("training_chief_hooks"),
        evaluation_hooks=params.get("evaluation_hooks"),
        scaffold=params["scaffold"]() if "scaffold" in params else None,
    )


def batch_norm(inputs, training):
    """Batch norm with moving averages, written out."""
    channels = inputs.shape[-1]
    with tf.variable_scope("bn"):
        gamma = tf.get_variable("gamma", channels, initializer=tf.ones_initializer())
        beta = tf.get_variable("beta", channels, initializer=tf.zeros_initializer())
        kept = {"initializer": tf.zeros_initializer(), "trainable": False}
        moving_mean = tf.get_variable("moving_mean", channels, **kept)
        kept["initializer"] = tf.ones_initializer()
        moving_variance = tf.get_variable("moving_variance", channels, **kept)
    mean, variance = moving_mean, moving_variance
    if training:
        mean, variance = tf.nn.moments(inputs, [0])
        for moving, value in ((moving_mean, mean), (moving_variance, variance)):
            update = tf.assign_sub(moving, (1 - MOMENTUM) * (moving - value))
            tf.add_to_collection(tf.GraphKeys.UPDATE_OPS, update)
    return tf.nn.batch_normalization(inputs, mean, variance, beta, gamma, 1e-3)


def digits_model(features, labels, mode, params):
    """A dense network with one batch norm."""
    first = tf.get_variable("first", [64, params["units"]])
    last = tf.get_variable("last", [params["units"], 10])
    hidden = tf.nn.relu(batch_norm(tf.matmul(features, first), mode == ModeKeys.TRAIN))
    logits = tf.matmul(hidden, last)
    classes = tf.argmax(logits, 1)
    if mode == ModeKeys.PREDICT:
        return EstimatorSpec(mode, predictions={"classes": classes, "logits": logits})
    loss = tf.losses.sparse_softmax_cross_entropy(labels, logits)
    train_op = None
    if mode == ModeKeys.TRAIN:
        with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
            optimizer = tf.train.MomentumOptimizer(params["rate"], 0.9)
            train_op = optimizer.minimize(loss, tf.train.get_global_step())
    metrics = {"accuracy": tf.metrics.accuracy(labels, classes)}
    return EstimatorSpec(mode, loss=loss, train_op=train_op, eval_metric_ops=metrics)


def ones(batches=None, size=4):
    """An input of ones, without end unless a number of batches is given."""

    def input_fn():
        data = tf.data.Dataset.from_tensors(np.ones(size, np.float32)).repeat(batches)
        return data.map(lambda x: (x, x))

    return input_fn


class Record(tf.train.SessionRunHook):
    """Counts what a hook is called for."""

    def __init__(self):
        self.calls = []

    def begin(self):
        self.calls.append("begin")

    def after_create_session(self, session, coord):
        self.calls.append("session")

    def before_run(self, run_context):
        self.calls.append("run")

    def end(self, session):
        self.calls.append("end")
