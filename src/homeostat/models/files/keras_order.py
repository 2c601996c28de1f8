"""The order of a model's batch norms, and names that are there once."""

from __future__ import annotations

from collections.abc import Container, Iterable

from homeostat.models.graph import Graph
from homeostat.models.records import BatchNormRecord


def in_order(norms: Iterable[BatchNormRecord], graph: Graph | None) -> tuple[BatchNormRecord, ...]:
    """Return batch norms in the order of the network: of their first operations, then the rest."""
    places = {} if graph is None else {each.name: at for at, each in enumerate(graph.operations)}

    def place(norm: BatchNormRecord) -> int:
        return min((places[name] for name in norm.operations), default=len(places))

    return tuple(sorted(norms, key=place))


def unused(name: str, taken: Container[str]) -> str:
    """Return a name that is not taken: the name itself, or with a number behind it.

    Example:
        >>> unused("norm", {"norm"})
        'norm#2'
    """
    found, number = name, 1
    while found in taken:
        number += 1
        found = f"{name}#{number}"
    return found
