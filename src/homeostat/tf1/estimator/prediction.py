"""One run of prediction, in a graph of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf

from homeostat.errors import SpecError


def chosen(predictions: Any, predict_keys: Iterable[str] | None) -> Any:
    """Return the predictions of some names.

    Args:
        predictions: a tensor, or a dict of them.
        predict_keys: names; None for all.

    Returns:
        A tensor, or a dict of them.

    Raises:
        SpecError: a name that is not there, or names for a tensor.
    """
    if predict_keys is None:
        return predictions
    keys = [predict_keys] if isinstance(predict_keys, str) else list(predict_keys)
    present = list(predictions) if isinstance(predictions, Mapping) else []
    if not present:
        raise SpecError(
            f"predict_keys={keys} cannot choose from a tensor: expected a model that predicts a "
            "dict. Leave predict_keys out."
        )
    if not keys or set(keys) - set(present):
        raise SpecError(
            f"predict_keys={keys} are not all predicted: expected some of {present}. "
            "Correct the names."
        )
    return {key: predictions[key] for key in keys}


def run_prediction(
    graph: Any, creator: Any, hooks: Iterable[Any], predictions: Any, single: bool
) -> Iterator[Any]:
    """Yield the predictions for all of the input.

    Args:
        graph: of the model.
        creator: of the session, which is closed at the end.
        hooks: that run in it.
        predictions: a tensor of the graph, or a dict of them.
        single: whether to yield them by example rather than by batch.

    Yields:
        An array, or a dict of arrays.

    Raises:
        SpecError: `single` is True and the predictions are not of one length.
    """
    # The graph is the default only while the session opens, not while the caller has its turn.
    with graph.as_default():
        session = tf.train.MonitoredSession(creator, list(hooks))
    with session:
        while not session.should_stop():
            batch = session.run(predictions)
            if single:
                yield from _examples(batch)
            else:
                yield batch


def _examples(batch: Any) -> Iterator[Any]:
    arrays = batch if isinstance(batch, Mapping) else {"predictions": batch}
    lengths = {np.shape(array)[0] if np.ndim(array) else None for array in arrays.values()}
    if None in lengths or len(lengths) != 1:
        shapes = ", ".join(f"{name}: {np.shape(array)}" for name, array in arrays.items())
        raise SpecError(
            f"Predictions cannot be split into examples ({shapes}): expected one length of the "
            "first axis for all. Use yield_single_examples=False to have them by batch."
        )
    for index in range(lengths.pop()):
        if isinstance(batch, Mapping):
            yield {name: array[index] for name, array in batch.items()}
        else:
            yield batch[index]
