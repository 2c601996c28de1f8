"""What a model function returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import tensorflow.compat.v1 as tf

from homeostat.errors import SpecError
from homeostat.tf1.estimator.checks import check_hooks
from homeostat.tf1.estimator.modes import ModeKeys

_NEEDED = {
    ModeKeys.TRAIN: ("loss", "train_op"),
    ModeKeys.EVAL: ("loss",),
    ModeKeys.PREDICT: ("predictions",),
}
# What an estimator reports by itself.
_RESERVED_METRICS = ("loss", "global_step")


class _Fields(NamedTuple):
    mode: str
    predictions: Any = None
    loss: Any = None
    train_op: Any = None
    eval_metric_ops: Mapping[str, Any] | None = None
    export_outputs: Mapping[str, Any] | None = None
    training_chief_hooks: tuple[Any, ...] = ()
    training_hooks: tuple[Any, ...] = ()
    scaffold: Any = None
    evaluation_hooks: tuple[Any, ...] = ()
    prediction_hooks: tuple[Any, ...] = ()


class EstimatorSpec(_Fields):
    """The operations and objects by which an estimator runs a model.

    Args:
        mode: one of `ModeKeys`.
        predictions: a tensor, or a dict of them; needed for PREDICT.
        loss: scalar tensor; needed for TRAIN and EVAL.
        train_op: the operation of one training step; needed for TRAIN. Moving statistics of batch
            norm are updated only if it depends on their updates (``tf.GraphKeys.UPDATE_OPS``).
        eval_metric_ops: {name: (value tensor, update operation)}, as `tf.metrics` returns them.
        export_outputs: kept, and not used.
        training_chief_hooks: more hooks for training.
        training_hooks: hooks for training.
        scaffold: a `tf.train.Scaffold` for initialization and saving.
        evaluation_hooks: hooks for evaluation.
        prediction_hooks: hooks for prediction.

    Raises:
        SpecError: what the mode needs is missing, or something is of the wrong type or from
            another graph.
    """

    __slots__ = ()

    def __new__(cls, mode: str, *args: Any, **kwargs: Any) -> EstimatorSpec:
        """Check what the fields hold."""
        given = _Fields(mode, *args, **kwargs)
        _check_mode(given)
        _check_tensors(given)
        _check_metrics(given.eval_metric_ops or {})
        for name in ("training_chief_hooks", "training_hooks", "evaluation_hooks"):
            given = given._replace(**{name: check_hooks(name, getattr(given, name))})
        given = given._replace(
            prediction_hooks=check_hooks("prediction_hooks", given.prediction_hooks),
            eval_metric_ops=dict(given.eval_metric_ops or {}),
            loss=None if given.loss is None else _scalar(given.loss),
        )
        if given.scaffold is not None and not isinstance(given.scaffold, tf.train.Scaffold):
            raise SpecError(
                f"scaffold={given.scaffold!r} is of the wrong type: expected a tf.train.Scaffold. "
                "Build one, or leave scaffold out."
            )
        return super().__new__(cls, *given)


def _check_mode(given: _Fields) -> None:
    if given.mode not in _NEEDED:
        raise SpecError(
            f"mode={given.mode!r} is unknown: expected one of {tuple(_NEEDED)}. "
            "Pass on the mode that the model function was called with."
        )
    for name in _NEEDED[given.mode]:
        if getattr(given, name) is None:
            raise SpecError(
                f"{name} is missing for mode {given.mode!r}: expected an EstimatorSpec with "
                f"{' and '.join(_NEEDED[given.mode])}. Give it {name}=... in this mode."
            )


def _check_tensors(given: _Fields) -> None:
    found = [(name, getattr(given, name)) for name in ("predictions", "loss", "train_op")]
    if isinstance(given.predictions, Mapping):
        found[:1] = [(f"predictions[{key!r}]", value) for key, value in given.predictions.items()]
    for name, value in found:
        if value is None and "[" not in name:
            continue
        if not (tf.is_tensor(value) or (name == "train_op" and isinstance(value, tf.Operation))):
            raise SpecError(
                f"{name}={value!r} is of the wrong type: expected a tensor"
                f"{' or an operation' if name == 'train_op' else ''}. Compute it from the features "
                "by TensorFlow operations."
            )
        if getattr(value, "graph", None) not in (None, tf.get_default_graph()):
            raise SpecError(
                f"{name}={value!r} is of another graph: expected one of the graph that the model "
                "function was called in. Build it inside the model function."
            )


def _check_metrics(metrics: Mapping[str, Any]) -> None:
    if not isinstance(metrics, Mapping):
        raise SpecError(
            f"eval_metric_ops={metrics!r} is of the wrong type: expected a dict. Give each metric "
            "a name, as in {'accuracy': tf.metrics.accuracy(labels, classes)}."
        )
    for name, pair in metrics.items():
        if name in _RESERVED_METRICS:
            raise SpecError(
                f"eval_metric_ops has a metric {name!r}: expected other names than "
                f"{_RESERVED_METRICS}, which every evaluation reports. Rename it."
            )
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise SpecError(
                f"eval_metric_ops[{name!r}]={pair!r} is of the wrong form: expected "
                "(value tensor, update operation). Use a function of tf.metrics."
            )


def _scalar(loss: Any) -> Any:
    loss = tf.convert_to_tensor(loss)
    if not loss.shape.is_compatible_with([]) and loss.shape.num_elements() != 1:
        raise SpecError(
            f"loss has shape {loss.shape}: expected a scalar. Reduce it, as by tf.reduce_mean."
        )
    return loss if loss.shape.rank in (0, None) else tf.reshape(loss, [])
