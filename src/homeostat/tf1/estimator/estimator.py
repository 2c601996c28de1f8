"""A model function with its checkpoints: train, evaluate, predict."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tensorflow.compat.v1 as tf

from homeostat.errors import SpecError, UnsupportedError
from homeostat.tf1.estimator.arguments import arguments_taken, named
from homeostat.tf1.estimator.checkpoints import checkpoint_to_read, start_from, step_of
from homeostat.tf1.estimator.checks import check_count, check_hooks, check_listeners
from homeostat.tf1.estimator.evaluation import run_evaluation, write_results
from homeostat.tf1.estimator.feeding import Batch, batch_of
from homeostat.tf1.estimator.modes import ModeKeys
from homeostat.tf1.estimator.prediction import chosen, run_prediction
from homeostat.tf1.estimator.run_config import RunConfig, placed
from homeostat.tf1.estimator.specs import EstimatorSpec
from homeostat.tf1.estimator.training import run_training, session_config

_log = logging.getLogger("homeostat.tf1.estimator")


class Estimator:
    """A model function with its checkpoints.

    Every call builds the model in a graph of its own, restores the latest checkpoint and closes
    its session at the end; the default graph of the program is left alone.

    Args:
        model_fn: takes features, and those of labels, mode, params and config that it wants, by
            these names; returns an `EstimatorSpec`.
        model_dir: folder of checkpoints and summaries; None for that of `config`, or a new one.
        config: a `RunConfig`; None for the defaults.
        params: anything, for the model function and the input functions; a copy is taken.
        warm_start_from: checkpoint, or folder of one, whose values the variables begin with when
            `model_dir` has no checkpoint: the trainable variables and moving statistics.

    Raises:
        SpecError: arguments that contradict each other, or a model function that needs others.
        UnsupportedError: `warm_start_from` is no path.
    """

    def __init__(
        self,
        model_fn: Callable[..., EstimatorSpec],
        model_dir: str | os.PathLike[str] | None = None,
        config: RunConfig | None = None,
        params: Any = None,
        warm_start_from: str | os.PathLike[str] | None = None,
    ) -> None:
        offered = ("features", "labels", "mode", "params", "config")
        self._taken = arguments_taken(model_fn, offered)
        self._model_fn = model_fn
        self._config = placed(config, model_dir)
        self._params = copy.deepcopy(params) if params is not None else {}
        if "features" not in self._taken or ("params" not in self._taken and params):
            lacking = "params" if "features" in self._taken else "features"
            raise SpecError(
                f"{named(model_fn)} takes no {lacking}: expected a model function with an argument "
                f"of that name. Add it{', or give no params' if lacking == 'params' else ''}."
            )
        if warm_start_from is not None and not isinstance(warm_start_from, str | os.PathLike):
            raise UnsupportedError(
                f"warm_start_from={warm_start_from!r} is no path: expected a checkpoint or its "
                "folder. For a choice of variables use tf.train.init_from_checkpoint in model_fn."
            )
        self._warm_start = None if warm_start_from is None else os.fspath(warm_start_from)

    @property
    def model_dir(self) -> str:
        """The folder of checkpoints and summaries."""
        return self._config.model_dir

    @property
    def config(self) -> RunConfig:
        """A copy of the configuration, with the folder."""
        return copy.copy(self._config)

    @property
    def params(self) -> Any:
        """A copy of the params."""
        return copy.deepcopy(self._params)

    @property
    def model_fn(self) -> Callable[..., EstimatorSpec]:
        """The model function."""
        return self._model_fn

    def train(
        self,
        input_fn: Callable[..., Any],
        hooks: Iterable[Any] | None = None,
        steps: int | None = None,
        max_steps: int | None = None,
        saving_listeners: Iterable[Any] | None = None,
    ) -> Estimator:
        """Train from the latest checkpoint on.

        Args:
            input_fn: returns a `tf.data.Dataset`, (features, labels) or features; may take mode,
                params and config.
            hooks: `tf.train.SessionRunHook` objects.
            steps: how many steps to add at most; None, with `max_steps` None too, to train until
                the input ends.
            max_steps: the global step to train to; nothing is done if it is reached.
            saving_listeners: `tf.train.CheckpointSaverListener` objects.

        Returns:
            Itself.

        Raises:
            SpecError: both `steps` and `max_steps`, numbers below 1, or a bad return of the model
                function.
            DataError: a bad return of the input function.
        """
        if steps is not None and max_steps is not None:
            raise SpecError(
                f"steps={steps} and max_steps={max_steps} are both given: expected one of them. "
                "Use steps to count from the present step, and max_steps from the first."
            )
        check_count("steps", steps)
        check_count("max_steps", max_steps)
        hooks = check_hooks("hooks", hooks)
        listeners = check_listeners(saving_listeners)
        if max_steps is not None and step_of(self.latest_checkpoint()) >= max_steps:
            _log.info("Not training: max_steps=%d is reached.", max_steps)
            return self
        with self._graph():
            endless = steps is not None or max_steps is not None or bool(hooks)
            batch = self._batch(input_fn, ModeKeys.TRAIN, endless=endless)
            spec = self._spec(batch, ModeKeys.TRAIN)
            if self._warm_start is not None and self.latest_checkpoint() is None:
                start_from(self._warm_start)
            stop = [tf.train.StopAtStepHook(steps, max_steps)] if steps or max_steps else []
            run_training(spec, self._config, [*batch.hooks, *hooks, *stop], listeners)
        return self

    def evaluate(
        self,
        input_fn: Callable[..., Any],
        steps: int | None = None,
        hooks: Iterable[Any] | None = None,
        checkpoint_path: str | None = None,
        name: str | None = None,
    ) -> dict[str, Any]:
        """Evaluate a checkpoint.

        Args:
            input_fn: as for `train`.
            steps: how many batches at most; None for all of the input.
            hooks: as for `train`.
            checkpoint_path: checkpoint to evaluate; None for the latest.
            name: of this evaluation, if there are several; its summaries go to ``eval_<name>``.

        Returns:
            The model's metrics; "loss", the mean over the batches, each weighted by its number of
            examples; and "global_step".

        Raises:
            DataError: there is no checkpoint, or no input.
            SpecError: as for `train`.
        """
        check_count("steps", steps)
        hooks = check_hooks("hooks", hooks)
        checkpoint = checkpoint_to_read(self.model_dir, checkpoint_path)
        with self._graph():
            endless = steps is not None or bool(hooks)
            batch = self._batch(input_fn, ModeKeys.EVAL, endless=endless)
            spec = self._spec(batch, ModeKeys.EVAL)
            results = run_evaluation(spec, batch, self._config, hooks, checkpoint, steps)
        write_results(results, self.eval_dir(name))
        return results

    def predict(
        self,
        input_fn: Callable[..., Any],
        predict_keys: Iterable[str] | None = None,
        hooks: Iterable[Any] | None = None,
        checkpoint_path: str | None = None,
        yield_single_examples: bool = True,
    ) -> Iterator[Any]:
        """Return a generator of predictions.

        Args:
            input_fn: as for `train`; labels are ignored.
            predict_keys: names of the predictions wanted; None for all.
            hooks: as for `train`.
            checkpoint_path: checkpoint to predict by; None for the latest.
            yield_single_examples: whether to yield by example rather than by batch.

        Returns:
            Arrays, or dicts of arrays. The graph is built now; the session opens with the
            first of them, and is closed when the generator is exhausted or closed.

        Raises:
            DataError: there is no checkpoint.
            SpecError: as for `train`, or names that are not predicted.
        """
        hooks = check_hooks("hooks", hooks)
        checkpoint = checkpoint_to_read(self.model_dir, checkpoint_path)
        with self._graph():
            # Who iterates may stop at any time.
            batch = self._batch(input_fn, ModeKeys.PREDICT, endless=True)
            spec = self._spec(batch, ModeKeys.PREDICT)
            predictions = chosen(spec.predictions, predict_keys)
            graph = tf.get_default_graph()
        creator = tf.train.ChiefSessionCreator(
            spec.scaffold,
            config=session_config(self._config),
            checkpoint_filename_with_path=checkpoint,
        )
        hooks = [*batch.hooks, *hooks, *spec.prediction_hooks]
        return run_prediction(graph, creator, hooks, predictions, yield_single_examples)

    def latest_checkpoint(self) -> str | None:
        """Return the prefix of the latest checkpoint; None if there is none."""
        return tf.train.latest_checkpoint(self.model_dir)

    def get_variable_names(self) -> list[str]:
        """Return the names of the variables of the latest checkpoint."""
        return [name for name, _ in tf.train.list_variables(checkpoint_to_read(self.model_dir))]

    def get_variable_value(self, name: str) -> Any:
        """Return the value of a variable of the latest checkpoint, by its name.

        Args:
            name: as in `get_variable_names`; a ``:0`` at its end is ignored.

        Returns:
            An array.

        Raises:
            DataError: there is no checkpoint.
            SpecError: it has no variable of that name.
        """
        names = self.get_variable_names()
        if name.removesuffix(":0") not in names:
            raise SpecError(
                f"The latest checkpoint has no variable {name!r}: expected one of {names}. "
                "Correct the name."
            )
        return tf.train.load_variable(self.model_dir, name.removesuffix(":0"))

    def eval_dir(self, name: str | None = None) -> str:
        """Return the folder of the summaries of an evaluation."""
        return os.path.join(self.model_dir, f"eval_{name}" if name else "eval")  # noqa: PTH118

    @contextlib.contextmanager
    def _graph(self) -> Iterator[None]:
        with tf.Graph().as_default():
            tf.set_random_seed(self._config.tf_random_seed)
            tf.train.create_global_step()
            yield

    def _batch(self, input_fn: Callable[..., Any], mode: str, *, endless: bool) -> Batch:
        return batch_of(input_fn, mode, self.params, self.config, endless=endless)

    def _spec(self, batch: Batch, mode: str) -> EstimatorSpec:
        offered = {"labels": batch.labels, "mode": mode}
        offered |= {"params": self.params, "config": self.config}
        if batch.labels is not None and "labels" not in self._taken:
            raise SpecError(
                f"{named(self._model_fn)} takes no labels, but the input has some: expected a "
                "model function with an argument labels. Add it, or give features only."
            )
        wanted = {name: value for name, value in offered.items() if name in self._taken}
        spec = self._model_fn(features=batch.features, **wanted)
        if not isinstance(spec, EstimatorSpec) or spec.mode != mode:
            raise SpecError(
                f"{named(self._model_fn)} returned {_told(spec)}: expected an EstimatorSpec for "
                f"mode {mode!r}. Return EstimatorSpec(mode=mode, ...)."
            )
        return spec


def _told(spec: Any) -> str:
    if isinstance(spec, EstimatorSpec):
        return f"an EstimatorSpec for mode {spec.mode!r}"
    return f"{type(spec).__name__}"
