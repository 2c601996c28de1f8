"""One run of evaluation, in a graph of its own."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf

from homeostat.errors import DataError
from homeostat.tf1.estimator.feeding import Batch, examples_in
from homeostat.tf1.estimator.run_config import RunConfig
from homeostat.tf1.estimator.specs import EstimatorSpec
from homeostat.tf1.estimator.training import session_config

_log = logging.getLogger("homeostat.tf1.estimator")


def run_evaluation(
    spec: EstimatorSpec,
    batch: Batch,
    config: RunConfig,
    hooks: Sequence[Any],
    checkpoint: str,
    steps: int | None,
) -> dict[str, Any]:
    """Evaluate in the default graph, over all of the input or some batches of it.

    Args:
        spec: of the model, for EVAL.
        batch: of the input.
        config: of the estimator.
        hooks: of the caller.
        checkpoint: what to restore.
        steps: how many batches at most; None for all.

    Returns:
        The values of the metrics, "loss" and "global_step".

    Raises:
        DataError: the input gave no batch.
    """
    values = {name: pair[0] for name, pair in (spec.eval_metric_ops or {}).items()}
    values["global_step"] = tf.train.get_global_step()
    final = tf.train.FinalOpsHook(values)
    creator = tf.train.ChiefSessionCreator(
        spec.scaffold, config=session_config(config), checkpoint_filename_with_path=checkpoint
    )
    # The input starts before the hooks of others use it; the values are read when all has run.
    hooks = [*batch.hooks, *hooks, *spec.evaluation_hooks, final]
    updates = [pair[1] for pair in (spec.eval_metric_ops or {}).values()]
    fetches = {"loss": spec.loss, "examples": examples_in(batch), "updates": tf.group(*updates)}
    total, examples, done = 0.0, 0, 0
    with tf.train.MonitoredSession(creator, hooks) as session:
        while not session.should_stop() and (steps is None or done < steps):
            fetched = session.run(fetches)
            total += float(fetched["loss"]) * int(fetched["examples"])
            examples += int(fetched["examples"])
            done += 1
    if examples == 0:
        raise DataError(
            "Evaluation was given no example: expected at least one batch of input. Check that "
            "the input function gives data."
        )
    loss = np.asarray(total / examples, spec.loss.dtype.as_numpy_dtype)[()]
    return {**final.final_ops_values, "loss": loss}


def write_results(results: Mapping[str, Any], folder: str) -> None:
    """Write the results of an evaluation as summaries.

    Args:
        results: as `run_evaluation` returns them; what is no number is left out.
        folder: where event files go.
    """
    summary = tf.Summary()
    for name, value in sorted(results.items()):
        if name != "global_step" and np.ndim(value) == 0 and np.issubdtype(type(value), np.number):
            summary.value.add(tag=name, simple_value=float(value))
    step = int(results["global_step"])
    with tf.Graph().as_default():
        writer = tf.summary.FileWriter(os.fspath(folder))
        writer.add_summary(summary, step)
        writer.close()
    told = ", ".join(f"{name} = {value}" for name, value in sorted(results.items()))
    _log.info("Evaluation at step %d: %s", step, told)
