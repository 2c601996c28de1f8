"""What is told of a graph."""

from __future__ import annotations

from dataclasses import dataclass

RUN, NOT_RUN, REPEATED, APART = "run", "not run", "repeated", "run apart"
NO_STEP, UNUSED, UNKNOWN = "no training op", "not trained", "not known"
"""What training ops do with a batch norm's updates."""


@dataclass(frozen=True)
class LayerRow:
    """One layer of a graph.

    Args:
        name: its scope.
        kind: what it is, such as "conv2d"; "" where nothing tells.
        output: shape of its output, with None for sizes that are not known; None if it is not.
        parameters: number of elements of its variables, the statistics' with them; None where a
            shape is not known.
        made_at: the user's line that made it, "file:line"; "" where nobody knows.
        updates: names of the operations that update its statistics.
        verdict: what training ops do with them, one of the constants above; "" for none.
    """

    name: str
    kind: str = ""
    output: tuple[int | None, ...] | None = None
    parameters: int | None = 0
    made_at: str = ""
    updates: tuple[str, ...] = ()
    verdict: str = ""

    @property
    def is_batch_norm(self) -> bool:
        """Whether it is a batch norm, or has one in it."""
        return "batch norm" in self.kind


@dataclass(frozen=True)
class GraphReport:
    """What a graph holds and whether its training ops run the updates of its batch norms.

    Args:
        title: where the graph comes from.
        layers: its layers in the order in which they were made.
        steps: names of its training ops.
        findings: updates that are forgotten or repeated, each in words and with its remedy.
        notes: what else is to be known, such as what could not be.
        forgotten: whether a training op forgets updates.
    """

    title: str
    layers: tuple[LayerRow, ...] = ()
    steps: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    forgotten: bool = False
