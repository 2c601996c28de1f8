"""Training with evaluations in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import tensorflow.compat.v1 as tf

from homeostat.errors import SpecError, UnsupportedError
from homeostat.tf1.estimator.checkpoints import step_of
from homeostat.tf1.estimator.checks import check_count, check_hooks
from homeostat.tf1.estimator.estimator import Estimator


@dataclass(frozen=True)
class TrainSpec:
    """What to train on, and to which step.

    Args:
        input_fn: as for `Estimator.train`.
        max_steps: the global step to train to; None to train until the input ends.
        hooks: as for `Estimator.train`.

    Raises:
        SpecError: `max_steps` is below 1, or something is no hook.
    """

    input_fn: Callable[..., Any]
    max_steps: int | None = None
    hooks: Iterable[Any] | None = None

    def __post_init__(self) -> None:
        check_count("max_steps", self.max_steps)
        object.__setattr__(self, "hooks", check_hooks("hooks", self.hooks))


@dataclass(frozen=True)
class EvalSpec:
    """What to evaluate on, and how often.

    Args:
        input_fn: as for `Estimator.evaluate`.
        steps: how many batches at most; None for all of the input.
        name: of this evaluation, if there are several.
        hooks: as for `Estimator.evaluate`.
        exporters: None; models are not exported.
        start_delay_secs: accepted for TF1 programs; nothing waits on one machine.
        throttle_secs: how many seconds lie at least between the starts of two evaluations, but
            for the last of all.

    Raises:
        SpecError: a number is too small, or something is no hook.
        UnsupportedError: there are exporters.
    """

    input_fn: Callable[..., Any]
    steps: int | None = 100
    name: str | None = None
    hooks: Iterable[Any] | None = None
    exporters: Any = None
    start_delay_secs: float = 120
    throttle_secs: float = 600

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        object.__setattr__(self, "hooks", check_hooks("hooks", self.hooks))
        for name in ("start_delay_secs", "throttle_secs"):
            if getattr(self, name) < 0:
                raise SpecError(
                    f"{name}={getattr(self, name)} is negative: expected {name} >= 0. Use 0 to "
                    "wait for nothing."
                )
        if self.exporters:
            raise UnsupportedError(
                "exporters are given: expected none, as models are not exported here. Remove them, "
                "and save the model by tf.saved_model after training."
            )


class Evaluations(tf.train.CheckpointSaverListener):
    """Evaluates an estimator at its new checkpoints while it trains.

    Args:
        evaluate: evaluates the latest checkpoint.
        throttle_secs: least time between the starts of two evaluations.
        throttle_steps: least number of steps between two evaluations.
    """

    def __init__(
        self,
        evaluate: Callable[[], dict[str, Any]],
        throttle_secs: float = 0,
        throttle_steps: int = 1,
    ) -> None:
        self._evaluate = evaluate
        self._throttle_secs = throttle_secs
        self._throttle_steps = throttle_steps
        self._first_step: int | None = None
        self._started: float | None = None
        self.results: dict[str, Any] | None = None

    def after_save(self, session: Any, global_step_value: int) -> None:
        """Evaluate the new checkpoint, unless it is too early."""
        # The first checkpoint holds what training began with.
        if self._first_step is None:
            self._first_step = global_step_value
            return
        last = self._first_step if self.results is None else self.results["global_step"]
        early = self._started is not None and (
            time.monotonic() - self._started < self._throttle_secs
        )
        if not early and global_step_value - last >= self._throttle_steps:
            self._run()

    def finish(self, step: int) -> dict[str, Any]:
        """Evaluate the last checkpoint, unless that is done; return the results.

        Args:
            step: its global step.

        Returns:
            As `Estimator.evaluate`.
        """
        if self.results is None or self.results["global_step"] != step:
            self._run()
        return self.results

    def _run(self) -> None:
        self._started = time.monotonic()
        self.results = self._evaluate()


def train_and_evaluate(
    estimator: Estimator, train_spec: TrainSpec, eval_spec: EvalSpec
) -> tuple[dict[str, Any], list[Any]]:
    """Train, evaluating new checkpoints in between and the last one at the end.

    Args:
        estimator: whose configuration says when checkpoints are saved.
        train_spec: of training.
        eval_spec: of evaluation.

    Returns:
        The results of the last evaluation, and an empty list where TF1 returned exports.

    Raises:
        SpecError: an argument is of the wrong type.
    """
    for name, given, kind in (
        ("estimator", estimator, Estimator),
        ("train_spec", train_spec, TrainSpec),
        ("eval_spec", eval_spec, EvalSpec),
    ):
        if not isinstance(given, kind):
            raise SpecError(
                f"{name} is of the wrong type ({type(given).__name__}): expected {kind.__name__}. "
                "Use that of homeostat.tf1.estimator."
            )

    def evaluate() -> dict[str, Any]:
        return estimator.evaluate(
            eval_spec.input_fn, eval_spec.steps, eval_spec.hooks, name=eval_spec.name
        )

    evaluations = Evaluations(evaluate, throttle_secs=eval_spec.throttle_secs)
    estimator.train(
        train_spec.input_fn,
        hooks=train_spec.hooks,
        max_steps=train_spec.max_steps,
        saving_listeners=[evaluations],
    )
    return evaluations.finish(step_of(estimator.latest_checkpoint())), []
