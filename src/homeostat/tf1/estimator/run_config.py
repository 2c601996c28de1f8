"""How an estimator runs: seeds, checkpoints, summaries and the session."""

from __future__ import annotations

import copy
import json
import os
import tempfile
from typing import Any

import tensorflow.compat.v1 as tf

from homeostat.errors import SpecError, UnsupportedError

# What TF1 saved by when nothing was asked for.
_DEFAULT_SAVE_SECS = 600
_COUNTS = (
    *("save_summary_steps", "save_checkpoints_steps", "save_checkpoints_secs"),
    *("keep_checkpoint_max", "keep_checkpoint_every_n_hours", "log_step_count_steps"),
)


class RunConfig:
    """How an estimator runs.

    Args:
        model_dir: folder of checkpoints and summaries.
        tf_random_seed: seed of each graph.
        save_summary_steps: steps between two summaries; None for none.
        save_checkpoints_steps: steps between two checkpoints.
        save_checkpoints_secs: seconds between two checkpoints; 600 if neither is given. With
            None for both, no checkpoint is saved.
        session_config: a `tf.ConfigProto`.
        keep_checkpoint_max: how many checkpoints are kept; None or 0 for all.
        keep_checkpoint_every_n_hours: hours after which one more is kept for good.
        log_step_count_steps: steps between two lines of the log; None for none.
        train_distribute: None; training is on one machine.

    Raises:
        SpecError: a number is negative, or both spacings of checkpoints are given.
        UnsupportedError: distributed training was asked for, here or by TF_CONFIG.

    Attributes:
        model_dir: and so on, as given.
        is_chief: True.
        master: an empty text.
        num_worker_replicas: 1.
        task_type: "worker".
        task_id: 0.
    """

    is_chief = True
    master = ""
    evaluation_master = ""
    num_ps_replicas = 0
    num_worker_replicas = 1
    task_type = "worker"
    task_id = 0

    def __init__(
        self,
        model_dir: str | os.PathLike[str] | None = None,
        tf_random_seed: int | None = None,
        save_summary_steps: int | None = 100,
        save_checkpoints_steps: int | str | None = "default",
        save_checkpoints_secs: float | str | None = "default",
        session_config: Any = None,
        keep_checkpoint_max: int | None = 5,
        keep_checkpoint_every_n_hours: float = 10000,
        log_step_count_steps: int | None = 100,
        train_distribute: None = None,
    ) -> None:
        steps, secs = _saving(save_checkpoints_steps, save_checkpoints_secs)
        self.model_dir = None if model_dir is None else os.fspath(model_dir)
        self.tf_random_seed = tf_random_seed
        self.save_summary_steps = save_summary_steps
        self.save_checkpoints_steps = steps
        self.save_checkpoints_secs = secs
        self.session_config = session_config
        self.keep_checkpoint_max = keep_checkpoint_max
        self.keep_checkpoint_every_n_hours = keep_checkpoint_every_n_hours
        self.log_step_count_steps = log_step_count_steps
        self._check(train_distribute)

    def _check(self, train_distribute: Any) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 0:
                raise SpecError(
                    f"{name}={value} is negative: expected {name} >= 0. Use None for none."
                )
        if self.session_config is not None and not isinstance(self.session_config, tf.ConfigProto):
            raise SpecError(
                f"session_config={self.session_config!r} is of the wrong type: expected a "
                "tf.ConfigProto. Build one, or leave it out."
            )
        if train_distribute is not None or json.loads(os.environ.get("TF_CONFIG") or "{}").get(
            "cluster"
        ):
            raise UnsupportedError(
                "Distributed training was asked for, by train_distribute or by a cluster in "
                "TF_CONFIG: expected training on one machine. Remove it, or train by tf.keras."
            )

    def replace(self, **changes: Any) -> RunConfig:
        """Return a copy with other values of some arguments.

        Args:
            **changes: arguments of the class by name.

        Returns:
            The new configuration.

        Raises:
            SpecError: as for the class, or a name that is none of its arguments.
        """
        unknown = sorted(set(changes) - set(vars(self)))
        if unknown:
            raise SpecError(
                f"{unknown} are no options: expected some of {sorted(vars(self))}. "
                "Correct the names."
            )
        if changes.get("save_checkpoints_steps") and "save_checkpoints_secs" not in changes:
            changes["save_checkpoints_secs"] = None
        if changes.get("save_checkpoints_secs") and "save_checkpoints_steps" not in changes:
            changes["save_checkpoints_steps"] = None
        if changes.get("model_dir") is not None:
            changes["model_dir"] = os.fspath(changes["model_dir"])
        # A copy rather than a new one: classes derived from this one may hold more.
        changed = copy.copy(self)
        vars(changed).update(changes)
        _saving(changed.save_checkpoints_steps, changed.save_checkpoints_secs)
        changed._check(train_distribute=None)
        return changed

    def __repr__(self) -> str:
        return f"RunConfig({', '.join(f'{k}={v!r}' for k, v in vars(self).items())})"


def _saving(steps: Any, secs: Any) -> tuple[int | None, float | None]:
    """Return the steps and the seconds between two checkpoints, one of them None."""
    if steps == "default":
        return None, _DEFAULT_SAVE_SECS if secs == "default" else secs
    if secs == "default":
        return steps, None
    if steps is not None and secs is not None:
        raise SpecError(
            f"save_checkpoints_steps={steps} and save_checkpoints_secs={secs} are both given: "
            "expected one of them. Remove the other."
        )
    return steps, secs


def placed(config: RunConfig | None, model_dir: str | os.PathLike[str] | None) -> RunConfig:
    """Return a configuration with the folder that is meant.

    Args:
        config: None for the defaults.
        model_dir: None for the folder of `config`, or a new one.

    Returns:
        A copy.

    Raises:
        SpecError: two folders are given, or something that is no configuration.
    """
    if config is not None and not isinstance(config, RunConfig):
        raise SpecError(
            f"config={config!r} is of the wrong type: expected a RunConfig. Build one by "
            "homeostat.tf1.estimator.RunConfig(...)."
        )
    config = RunConfig() if config is None else config
    folder = None if model_dir is None else os.fspath(model_dir)
    if folder and config.model_dir and folder != config.model_dir:
        raise SpecError(
            f"model_dir={folder!r} and config.model_dir={config.model_dir!r} differ: expected one "
            "folder. Remove one of the two."
        )
    return config.replace(model_dir=folder or config.model_dir or tempfile.mkdtemp())
