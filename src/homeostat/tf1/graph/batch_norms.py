"""Find the batch norms of a graph by the statistics that they keep and what updates those."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest
from typing import Any

from homeostat.tf1.graph.variables import VARIABLES, Variable, statistics_home
from homeostat.tf1.origin import line_of
from homeostat.tf1.records import BatchNormCall, calls_in
from homeostat.tf1.walk import assigned

# What a batch's statistics are made with; initial values and what is restored are not.
_REDUCTIONS = frozenset(
    (
        *("Mean", "Sum", "SquaredDifference", "PartitionedCall", "StatefulPartitionedCall"),
        *("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3", "If", "StatelessIf"),
    )
)


def find_calls(graph: Any, variables: Iterable[Variable]) -> list[BatchNormCall]:
    """Return the calls of batch norms that have updates, recorded by their layers or not.

    Args:
        graph: a `tf.Graph` or a `StoredGraph`.
        variables: the variables of its layers.

    Returns:
        The recorded calls, then those of layers that record none, one for every time that the
        moving mean or variance is updated.
    """
    recorded = calls_in(graph)
    names = {call.name for call in recorded}
    updates = _updates(graph, variables)
    found = (_calls(name, each) for name, each in updates.items() if name not in names)
    return [*recorded, *(call for calls in found for call in calls)]


def _updates(graph: Any, variables: Iterable[Variable]) -> dict[str, dict[str, list[Any]]]:
    """Return for every batch norm what updates each of its statistics, in order."""
    statistics = {variable.op: variable for variable in variables if variable.statistic}
    found: dict[str, dict[str, list[Any]]] = {}
    for operation in graph.get_operations():
        for each in assigned([operation]) & statistics.keys():
            if _follows_a_batch(operation):
                variable = statistics[each]
                kinds = found.setdefault(statistics_home(variable), {})
                kinds.setdefault(variable.statistic, []).append(operation)
    return found


def _calls(name: str, updates: dict[str, list[Any]]) -> list[BatchNormCall]:
    # What else moves, as in renorm, moves with these.
    wanted = [each for of, each in updates.items() if of in ("mean", "var", "variance")]
    calls = []
    for each in zip_longest(*wanted):
        operations = tuple(operation for operation in each if operation is not None)
        calls.append(BatchNormCall(name, line_of(operations[0]), operations))
    return calls


def _follows_a_batch(update: Any) -> bool:
    """Return whether the new value of a statistic is made of a reduction."""
    waiting = [tensor.op for tensor in update.inputs[1:]]
    seen = set(waiting)
    while waiting:
        operation = waiting.pop()
        if operation.type in _REDUCTIONS:
            return True
        for tensor in operation.inputs:
            if tensor.op not in seen and tensor.op.type not in VARIABLES:
                seen.add(tensor.op)
                waiting.append(tensor.op)
    return False
