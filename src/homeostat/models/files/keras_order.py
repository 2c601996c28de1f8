"""The order of a model's batch norms."""

from __future__ import annotations

from collections.abc import Iterable

from homeostat.models.graph import Graph
from homeostat.models.records import BatchNormRecord


def in_order(norms: Iterable[BatchNormRecord], graph: Graph | None) -> tuple[BatchNormRecord, ...]:
    """Return batch norms in the order of the network: of their first operations, then the rest."""
    places = {} if graph is None else {each.name: at for at, each in enumerate(graph.operations)}

    def place(norm: BatchNormRecord) -> int:
        return min((places[name] for name in norm.operations), default=len(places))

    return tuple(sorted(norms, key=place))
