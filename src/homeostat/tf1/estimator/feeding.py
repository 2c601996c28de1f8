"""From an input function to the tensors of one batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow.compat.v1 as tf

from homeostat.errors import DataError, HomeostatWarning
from homeostat.tf1.estimator.arguments import call_with_taken, named
from homeostat.tf1.estimator.modes import ModeKeys

# Operations that can say that the input has come to its end.
_ENDING = ("Iterator", "Queue", "Reader", "PyFunc")


class Batch(NamedTuple):
    """The tensors of one batch of input.

    Args:
        features: tensor, or a structure of tensors.
        labels: the same, or None.
        hooks: what starts the input in a new session.
    """

    features: Any
    labels: Any
    hooks: tuple[Any, ...]


class _StartIterator(tf.train.SessionRunHook):
    """Starts a data set from its beginning, in each new session, after its tables are filled."""

    def __init__(self, initializer: Any) -> None:
        self._initializer = initializer

    def after_create_session(self, session: Any, coord: Any) -> None:
        session.run(self._initializer)


def batch_of(
    input_fn: Callable[..., Any], mode: str, params: Any, config: Any, *, endless: bool
) -> Batch:
    """Call an input function, in the graph that is the default.

    Args:
        input_fn: returns a data set or tensors; may take mode, params and config.
        mode: one of `ModeKeys`.
        params: of the estimator.
        config: of the estimator.
        endless: whether an input without end will be left by other means.

    Returns:
        One batch; for PREDICT its labels are None.

    Raises:
        SpecError: it is no function, or needs other arguments.
        DataError: it returns nothing, or a tuple that is not (features, labels).
    """
    given = call_with_taken(input_fn, {"mode": mode, "params": params, "config": config})
    hooks: tuple[Any, ...] = ()
    # The data sets of TF1 are derived from those of TF2.
    if isinstance(given, tf.compat.v2.data.Dataset):
        iterator = tf.data.make_initializable_iterator(given)
        hooks = (_StartIterator(iterator.initializer),)
        given = iterator.get_next()
    features, labels = _parts(given, input_fn, mode)
    if not endless and not _can_end(tf.get_default_graph()):
        warnings.warn(
            f"{named(input_fn)} returns tensors that never come to an end: expected a data set, "
            "or steps=... to be given. Stop this run by hand, and give one of the two.",
            HomeostatWarning,
            stacklevel=4,
        )
    return Batch(features, labels, hooks)


def _parts(given: Any, input_fn: Callable[..., Any], mode: str) -> tuple[Any, Any]:
    pair = isinstance(given, tuple | list)
    # Named tuples are structures of features.
    if pair and hasattr(given, "_fields"):
        pair = False
    if given is None or (pair and len(given) != 2 and mode != ModeKeys.PREDICT):
        what = "None" if given is None else f"a tuple of {len(given)}"
        raise DataError(
            f"{named(input_fn)} returns {what}: expected a tf.data.Dataset, (features, labels) or "
            "features. Put several features into a dict."
        )
    if not pair:
        return given, None
    return given[0], None if mode == ModeKeys.PREDICT else given[1]


def _can_end(graph: Any) -> bool:
    return any(kind in operation.type for operation in graph.get_operations() for kind in _ENDING)


def examples_in(batch: Batch) -> Any:
    """Return how many examples a batch holds, as a scalar tensor.

    Args:
        batch: of input.

    Returns:
        The length of the first axis of its first tensor that has one, labels before features; 1
        where none has.
    """
    for part in (batch.labels, batch.features):
        for tensor in [] if part is None else tf.nest.flatten(part):
            if isinstance(tensor, tf.SparseTensor):
                return tensor.dense_shape[0]
            if isinstance(tensor, tf.RaggedTensor):
                return tensor.nrows()
            tensor = tf.convert_to_tensor(tensor)
            if tensor.shape.rank != 0:
                return tf.shape(tensor, out_type=tf.int64)[0]
    return tf.constant(1, tf.int64)
