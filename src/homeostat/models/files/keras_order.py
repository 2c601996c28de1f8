"""The order of a model's batch norms, and names that are there once."""

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


def unused(name: str, taken: dict[str, int]) -> str:
    """Return a name that is not taken, the name itself or with a number behind it, and take it.

    Args:
        name: the name that is wished for.
        taken: how often each name was wished for.

    Example:
        >>> taken = {}
        >>> unused("norm", taken), unused("norm", taken)
        ('norm', 'norm#2')
    """
    found = name
    while found in taken:
        taken[name] += 1
        found = f"{name}#{taken[name]}"
    taken[found] = 1
    return found
