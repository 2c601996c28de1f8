"""What a graph's batch norms leave behind for whoever looks at the graph later."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tensorflow.compat.v1 as tf

from homeostat.tf1.origin import user_line

_KEPT = "_homeostat_batch_norms"


@dataclass(frozen=True)
class BatchNormCall:
    """One call of a batch-norm layer that has updates of its statistics.

    Args:
        name: the layer's variable scope.
        made_at: the user's line that made the call, "file:line"; "" where nobody knows.
        updates: the operations that update its statistics, one a statistic.
    """

    name: str
    made_at: str
    updates: tuple[Any, ...]


def record_call(name: str, updates: tuple[Any, ...]) -> None:
    """Keep a call in the current graph."""
    # Not in a collection: TensorFlow complains of those that it cannot write to checkpoints.
    graph = tf.get_default_graph()
    setattr(graph, _KEPT, [*calls_in(graph), BatchNormCall(name, user_line(), updates)])


def calls_in(graph: Any) -> list[BatchNormCall]:
    """Return the batch-norm calls of a graph in the order in which they were made."""
    return list(getattr(graph, _KEPT, ()))
