"""`tf.contrib.learn`: experiments with estimators."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from homeostat.errors import SpecError, UnsupportedError
from homeostat.tf1.estimator.checkpoints import step_of
from homeostat.tf1.estimator.checks import check_count, check_hooks
from homeostat.tf1.estimator.estimator import Estimator
from homeostat.tf1.estimator.schedule import Evaluations


class Experiment:
    """An estimator with the inputs to train it and to evaluate it.

    Args:
        estimator: a `homeostat.tf1.estimator.Estimator`.
        train_input_fn: as for `Estimator.train`.
        eval_input_fn: as for `Estimator.evaluate`.
        eval_metrics: None; the metrics are the model function's.
        train_steps: the global step to train to; None to train until the input ends.
        eval_steps: batches of an evaluation at most; None for all of the input.
        train_monitors: hooks for training.
        eval_hooks: hooks for evaluation.
        min_eval_frequency: in `train_and_evaluate`, least number of steps between two evaluations;
            they happen at new checkpoints. None for 1; 0 for one evaluation, at the end.
        eval_delay_secs: accepted for TF1 programs; nothing waits on one machine.
        continuous_eval_throttle_secs: accepted for TF1 programs.
        export_strategies: None; models are not exported.

    Raises:
        SpecError: no estimator, something that is no hook, or a number below 1.
        UnsupportedError: metrics or exports are given.
    """

    def __init__(
        self,
        estimator: Estimator,
        train_input_fn: Callable[..., Any],
        eval_input_fn: Callable[..., Any],
        eval_metrics: None = None,
        train_steps: int | None = None,
        eval_steps: int | None = 100,
        train_monitors: Iterable[Any] | None = None,
        eval_hooks: Iterable[Any] | None = None,
        min_eval_frequency: int | None = None,
        eval_delay_secs: float = 120,
        continuous_eval_throttle_secs: float = 60,
        export_strategies: None = None,
    ) -> None:
        if not isinstance(estimator, Estimator):
            raise SpecError(
                f"estimator is of the wrong type ({type(estimator).__name__}): expected an "
                "Estimator. Use that of homeostat.tf1.estimator."
            )
        for name, given, instead in (
            ("eval_metrics", eval_metrics, "Return them as eval_metric_ops of the EstimatorSpec."),
            ("export_strategies", export_strategies, "Save the model by tf.saved_model."),
        ):
            if given:
                raise UnsupportedError(f"{name} are given: expected none. {instead}")
        check_count("train_steps", train_steps)
        check_count("eval_steps", eval_steps)
        self._estimator = estimator
        self._train_input_fn = train_input_fn
        self._eval_input_fn = eval_input_fn
        self._train_steps = train_steps
        self._eval_steps = eval_steps
        self._train_hooks = check_hooks("train_monitors", train_monitors)
        self._eval_hooks = check_hooks("eval_hooks", eval_hooks)
        self._min_eval_frequency = 1 if min_eval_frequency is None else min_eval_frequency

    @property
    def estimator(self) -> Estimator:
        """The estimator."""
        return self._estimator

    @property
    def train_steps(self) -> int | None:
        """The global step to train to."""
        return self._train_steps

    @property
    def eval_steps(self) -> int | None:
        """The batches of an evaluation at most."""
        return self._eval_steps

    def extend_train_hooks(self, additional_hooks: Iterable[Any]) -> None:
        """Add hooks for training."""
        self._train_hooks += check_hooks("additional_hooks", additional_hooks)

    def train(self, delay_secs: float | None = None) -> Estimator:
        """Train to `train_steps`.

        Args:
            delay_secs: accepted for TF1 programs; nothing waits on one machine.

        Returns:
            The estimator.
        """
        return self._train()

    def _train(self, listeners: Iterable[Any] = ()) -> Estimator:
        return self._estimator.train(
            self._train_input_fn,
            hooks=self._train_hooks,
            max_steps=self._train_steps,
            saving_listeners=listeners,
        )

    def evaluate(self, delay_secs: float | None = None, name: str | None = None) -> dict[str, Any]:
        """Evaluate the latest checkpoint.

        Args:
            delay_secs: accepted for TF1 programs; nothing waits on one machine.
            name: of this evaluation; None for "one_pass".

        Returns:
            As `Estimator.evaluate`.
        """
        return self._evaluate(self._eval_steps, name or "one_pass")

    def _evaluate(self, steps: int | None, name: str = "one_pass") -> dict[str, Any]:
        return self._estimator.evaluate(
            self._eval_input_fn, steps=steps, hooks=self._eval_hooks, name=name
        )

    def train_and_evaluate(self) -> tuple[dict[str, Any], list[Any]]:
        """Train to `train_steps`, evaluating new checkpoints in between and the last at the end.

        Returns:
            The results of the last evaluation, and an empty list where TF1 returned exports.
        """
        evaluations = Evaluations(self.evaluate, throttle_steps=self._min_eval_frequency or 1)
        self._train([evaluations] if self._min_eval_frequency else [])
        return evaluations.finish(step_of(self._estimator.latest_checkpoint())), []

    def test(self) -> tuple[dict[str, Any], list[Any]]:
        """Train one step and evaluate one batch, to see that all fits together.

        Returns:
            As `train_and_evaluate`.
        """
        self._estimator.train(self._train_input_fn, hooks=self._train_hooks, steps=1)
        return self._evaluate(steps=1), []
