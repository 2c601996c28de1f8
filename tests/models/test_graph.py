from __future__ import annotations

import pytest

from homeostat.errors import SpecError
from homeostat.models import Graph, Operation

GRAPH = Graph(
    (
        Operation("x", "input"),
        Operation("conv", "conv", ("x",)),
        Operation("same", "identity", ("conv",)),
        Operation("bn", "batch_norm", ("same",)),
        Operation("add", "add", ("bn", "same")),
    ),
    outputs=("add",),
)


def test_what_feeds_what() -> None:
    assert [operation.name for operation in GRAPH.consumers("same")] == ["bn", "add"]
    assert GRAPH.consumers("add") == ()
    found = GRAPH.producer("bn")
    assert found is not None
    assert found.name == "conv"
    assert GRAPH.producer("x") is None
    assert GRAPH.is_output("add")
    assert not GRAPH.is_output("bn")
    assert "bn" in GRAPH
    assert "other" not in GRAPH


def test_names_are_there_once_and_in_order() -> None:
    with pytest.raises(SpecError, match="takes 'b'"):
        Graph((Operation("a", "add", ("b",)), Operation("b", "input")))
    with pytest.raises(SpecError, match="there twice"):
        Graph((Operation("a", "input"), Operation("a", "input")))
