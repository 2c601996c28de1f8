"""`tf.estimator.inputs`: input functions for data in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf

from homeostat.errors import DataError, SpecError


def numpy_input_fn(
    x: Any,
    y: Any = None,
    batch_size: int = 128,
    num_epochs: int | None = 1,
    shuffle: bool | None = None,
    queue_capacity: int = 1000,
    num_threads: int = 1,
) -> Callable[[], Any]:
    """Return an input function that gives batches of NumPy arrays.

    Args:
        x: features, an array or a dict of arrays, all of one length.
        y: labels, an array or a dict of arrays of that length; None for none.
        batch_size: examples in a batch; the last batch of all may be smaller.
        num_epochs: how many times the data are given; None for without end.
        shuffle: whether each epoch has an order of its own; must be given.
        queue_capacity: accepted for TF1 programs; there is no queue, and the whole data are
            shuffled.
        num_threads: accepted for TF1 programs; the order never depends on threads.

    Returns:
        A function without arguments that returns features, or (features, labels), as tensors.

    Raises:
        SpecError: `shuffle` is not given, or a number is not positive.
        DataError: no array, arrays without examples, or arrays of several lengths.
    """
    if not isinstance(shuffle, bool | np.bool_):
        raise SpecError(
            f"shuffle={shuffle!r} does not say whether to shuffle: expected True or False. "
            "Use shuffle=True for training and shuffle=False for evaluation and prediction."
        )
    for name, number in (("batch_size", batch_size), ("num_epochs", num_epochs)):
        if (number is None and name == "batch_size") or (number is not None and number < 1):
            raise SpecError(f"{name}={number} is too small: expected {name} >= 1. Increase it.")
    features, labels = _arrays("x", x), _arrays("y", y)
    columns = [*features.values(), *labels.values()]
    length = _length({**_prefixed("x", features), **_prefixed("y", labels)})

    def input_fn() -> Any:
        indices = tf.data.Dataset.range(length)
        if shuffle:
            indices = indices.shuffle(length)
        indices = indices.repeat(num_epochs).batch(batch_size)
        batches = indices.map(lambda batch: _rows(columns, batch))
        tensors = tf.data.make_one_shot_iterator(batches).get_next()
        given = _like(x, features, tensors[: len(features)])
        if y is None:
            return given
        return given, _like(y, labels, tensors[len(features) :])

    return input_fn


def _prefixed(prefix: str, arrays: Mapping[Any, Any]) -> dict[str, Any]:
    return {f"{prefix} {key}": array for key, array in arrays.items()}


def _arrays(name: str, given: Any) -> dict[Any, np.ndarray]:
    if given is None and name == "y":
        return {}
    arrays = dict(given) if isinstance(given, Mapping) else {name: given}
    if not arrays:
        raise DataError(
            f"{name} is an empty dict: expected at least one array. "
            f"Put arrays into it{', or pass y=None' if name == 'y' else ''}."
        )
    arrays = {key: np.asarray(array) for key, array in arrays.items()}
    for key, array in arrays.items():
        if array.ndim == 0:
            raise DataError(
                f"{key!r} of {name} is {array!r}: expected an array whose first axis counts the "
                "examples. Pass an array of one value for each example."
            )
    return arrays


def _length(arrays: Mapping[str, np.ndarray]) -> int:
    lengths = {array.shape[0] for array in arrays.values()}
    if len(lengths) > 1 or lengths == {0}:
        shapes = ", ".join(f"{name}: {array.shape}" for name, array in arrays.items())
        raise DataError(
            f"The arrays do not hold the same examples ({shapes}): expected one length, at least "
            "1, for all. Give each array one row for each example."
        )
    return lengths.pop()


def _rows(columns: list[np.ndarray], batch: Any) -> tuple[Any, ...]:
    """Return the rows of a batch of every column, as tensors with the shapes that are known."""
    types = [tf.as_dtype(column.dtype) for column in columns]
    rows = tf.numpy_function(lambda taken: [column[taken] for column in columns], [batch], types)
    for column, row in zip(columns, rows, strict=True):
        row.set_shape((None, *column.shape[1:]))
    return tuple(rows)


def _like(given: Any, arrays: Mapping[Any, Any], tensors: Any) -> Any:
    """Return tensors in the form in which the arrays were given."""
    return dict(zip(arrays, tensors, strict=True)) if isinstance(given, Mapping) else tensors[0]
