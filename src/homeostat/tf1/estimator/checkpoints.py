"""What an estimator reads of its checkpoints."""

from __future__ import annotations

from typing import Any

import tensorflow.compat.v1 as tf

from homeostat.errors import DataError


def checkpoint_to_read(model_dir: str, checkpoint_path: str | None = None) -> str:
    """Return the checkpoint to restore.

    Args:
        model_dir: folder whose latest checkpoint is meant.
        checkpoint_path: another one, by its prefix; None for the latest.

    Returns:
        Its prefix.

    Raises:
        DataError: there is none.
    """
    path = checkpoint_path or tf.train.latest_checkpoint(model_dir)
    if path is None:
        raise DataError(
            f"There is no checkpoint in {model_dir}: expected one of a trained model. "
            "Call train() first, or give checkpoint_path."
        )
    if not tf.train.checkpoint_exists(path):
        raise DataError(
            f"There is no checkpoint {path}: expected the prefix of its files, as in "
            "'model_dir/model.ckpt-100'. Correct checkpoint_path, or leave it out for the latest."
        )
    return path


def step_of(checkpoint: str | None) -> int:
    """Return the global step of a checkpoint, 0 for None."""
    if checkpoint is None:
        return 0
    return int(tf.train.load_checkpoint(checkpoint).get_tensor(tf.GraphKeys.GLOBAL_STEP))


def start_from(warm_start_from: str) -> None:
    """Let the variables of the default graph begin with the values of a checkpoint.

    These are all trainable variables, and those other variables of the checkpoint that belong to
    the model, such as moving statistics; not the global step and not the optimizer's slots.

    Args:
        warm_start_from: prefix of a checkpoint, or a folder that has some.

    Raises:
        DataError: there is no checkpoint, or it lacks a trainable variable or has it in another
            shape.
    """
    path = tf.train.latest_checkpoint(warm_start_from) or warm_start_from
    shapes = tf.train.load_checkpoint(checkpoint_to_read(path, path)).get_variable_to_shape_map()
    chosen: dict[str, Any] = {}
    trainable = tf.trainable_variables()
    for variable in trainable:
        name = variable.op.name
        if shapes.get(name) != variable.shape.as_list():
            raise DataError(
                f"The checkpoint {path} has {name} in shape {shapes.get(name)}: expected "
                f"{variable.shape.as_list()}. Warm-start from a checkpoint of the same model."
            )
        chosen[name] = variable
    for variable in tf.global_variables():
        name = variable.op.name
        # Optimizers name a slot after its variable, and keep scalars.
        slot = any(name.startswith(f"{other.op.name}/") for other in trainable)
        if not slot and variable.shape.rank and shapes.get(name) == variable.shape.as_list():
            chosen[name] = variable
    tf.train.init_from_checkpoint(path, chosen)
