"""One run of training, in a graph of its own."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import tensorflow.compat.v1 as tf

from homeostat.errors import HomeostatWarning, SpecError
from homeostat.tf1.estimator.run_config import RunConfig
from homeostat.tf1.estimator.specs import EstimatorSpec

_log = logging.getLogger("homeostat.tf1.estimator")


def run_training(
    spec: EstimatorSpec,
    config: RunConfig,
    hooks: Sequence[Any],
    listeners: Sequence[Any],
) -> None:
    """Train in the default graph, from the latest checkpoint on, until a hook or the input ends it.

    Args:
        spec: of the model, for TRAIN.
        config: with the folder of the checkpoints.
        hooks: of the caller.
        listeners: called at each checkpoint.

    Raises:
        SpecError: there are listeners, but no checkpoints are saved by the estimator.
    """
    _keep_checkpoints(spec.scaffold, config)
    scaffold = spec.scaffold or tf.train.Scaffold()
    if not any(summary.op.name == "loss" for summary in tf.get_collection(tf.GraphKeys.SUMMARIES)):
        tf.summary.scalar("loss", spec.loss)
    chief_hooks = list(spec.training_chief_hooks)
    given = [*hooks, *chief_hooks, *spec.training_hooks]
    chief_hooks += _saver_hooks(given, config, scaffold, listeners)
    with tf.train.MonitoredTrainingSession(
        checkpoint_dir=config.model_dir,
        scaffold=scaffold,
        hooks=[*hooks, tf.train.NanTensorHook(spec.loss), *spec.training_hooks],
        chief_only_hooks=chief_hooks,
        save_checkpoint_secs=None,
        save_checkpoint_steps=None,
        save_summaries_steps=config.save_summary_steps or None,
        save_summaries_secs=None,
        config=session_config(config),
        log_step_count_steps=config.log_step_count_steps or None,
    ) as session:
        loss = None
        while not session.should_stop():
            _, loss = session.run([spec.train_op, spec.loss])
    _tell_end(loss)


def session_config(config: RunConfig) -> Any:
    """Return the configuration of sessions."""
    return config.session_config or tf.ConfigProto(allow_soft_placement=True)


def _keep_checkpoints(scaffold: Any, config: RunConfig) -> None:
    """Give the graph a saver of the configuration, unless it has one."""
    if (scaffold is not None and scaffold.saver) or tf.get_collection(tf.GraphKeys.SAVERS):
        return
    saver = tf.train.Saver(
        max_to_keep=config.keep_checkpoint_max or None,
        keep_checkpoint_every_n_hours=config.keep_checkpoint_every_n_hours,
        sharded=True,
        defer_build=True,
        save_relative_paths=True,
    )
    tf.add_to_collection(tf.GraphKeys.SAVERS, saver)


def _saver_hooks(
    given: Sequence[Any], config: RunConfig, scaffold: Any, listeners: Sequence[Any]
) -> list[Any]:
    """Return the hook that saves checkpoints, if the caller's own hooks do not."""
    own = any(isinstance(hook, tf.train.CheckpointSaverHook) for hook in given)
    spaced = config.save_checkpoints_steps or config.save_checkpoints_secs
    if not own and spaced:
        return [
            tf.train.CheckpointSaverHook(
                config.model_dir,
                save_secs=config.save_checkpoints_secs,
                save_steps=config.save_checkpoints_steps,
                scaffold=scaffold,
                listeners=list(listeners),
            )
        ]
    if listeners:
        raise SpecError(
            "saving_listeners are given, but the estimator saves no checkpoints here: expected "
            "save_checkpoints_steps or save_checkpoints_secs in its RunConfig, and no "
            "CheckpointSaverHook among the hooks. Set one, or give that hook the listeners."
        )
    return []


def _tell_end(loss: Any) -> None:
    if loss is None:
        warnings.warn(
            "Training made no step: expected at least one batch of input. Check that the input "
            "function gives data, and that no hook stops the run at its start.",
            HomeostatWarning,
            stacklevel=4,
        )
    else:
        _log.info("Loss of the last step: %s", loss)
