"""A model's operations and what feeds what, in one vocabulary for every framework."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from homeostat.errors import SpecError

Kind = Literal[
    "input",
    "dense",
    "conv",
    "depthwise_conv",
    "separable_conv",
    "conv_transpose",
    "batch_norm",
    "other_norm",
    "activation",
    "dropout",
    "add",
    "multiply",
    "concatenate",
    "pool",
    "pad",
    "reshape",
    "identity",
    "recurrent",
    "other",
]
KINDS: tuple[str, ...] = get_args(Kind)
LINEAR = ("dense", "conv", "depthwise_conv", "separable_conv", "conv_transpose")
"""Kinds with a kernel, into which a batch norm behind them can be folded."""


@dataclass(frozen=True)
class Operation:
    """One call in a model: of a layer or module, of a function, or an ONNX node.

    Args:
        name: unique in the graph.
        kind: what it does; ``"other"`` for what has no word here.
        inputs: names of the operations whose results it takes, in order.
        layer: the layer or module whose parameters it uses, by its name in the model; the same for
            every call of a shared one. The operation's own name where it has none.
        type: the framework's word: ``"Conv2D"``, ``"relu"``, ``"BatchNormalization"``.
        shape: of its output with the batch first, None for sizes that vary; or None if not known.
        bias: whether it adds a bias of each channel; None where it is not linear or not known.
        padded: whether zeros surround its input; None where that is not known or has no sense.
        parameters: how many parameters its layer has.
        rate: of a dropout.
    """

    name: str
    kind: Kind
    inputs: tuple[str, ...] = ()
    layer: str = ""
    type: str = ""
    shape: tuple[int | None, ...] | None = None
    bias: bool | None = None
    padded: bool | None = None
    parameters: int = 0
    rate: float | None = None


@dataclass(frozen=True)
class Graph:
    """A model's operations, each after those that it takes, and which give the model's outputs.

    Raises:
        SpecError: a name is there twice, or an input is not there or comes later.

    Example:
        >>> graph = Graph((Operation("a", "conv"), Operation("b", "batch_norm", ("a",))), ("b",))
        >>> [operation.name for operation in graph.consumers("a")]
        ['b']
        >>> graph["b"].kind
        'batch_norm'
    """

    operations: tuple[Operation, ...]
    outputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for operation in self.operations:
            missing = [name for name in operation.inputs if name not in seen]
            if missing or operation.name in seen:
                problem = f"takes {missing[0]!r}" if missing else "is there twice"
                raise SpecError(
                    f"operation {operation.name!r} {problem}: expected every name once, after what "
                    "it takes. Sort the operations by what feeds what."
                )
            seen.add(operation.name)

    @cached_property
    def _by_name(self) -> dict[str, Operation]:
        return {operation.name: operation for operation in self.operations}

    @cached_property
    def _consumers(self) -> dict[str, list[Operation]]:
        found: dict[str, list[Operation]] = {name: [] for name in self._by_name}
        for operation in self.operations:
            for name in dict.fromkeys(operation.inputs):
                found[name].append(operation)
        return found

    def __getitem__(self, name: str) -> Operation:
        return self._by_name[name]

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    @cached_property
    def _by_layer(self) -> dict[str, list[Operation]]:
        found: dict[str, list[Operation]] = {}
        for operation in self.operations:
            found.setdefault(operation.layer or operation.name, []).append(operation)
        return found

    def calls(self, layer: str) -> tuple[Operation, ...]:
        """Return the operations that use a layer's parameters, two or more for a shared one."""
        return tuple(self._by_layer.get(layer, ()))

    def consumers(self, name: str) -> tuple[Operation, ...]:
        """Return the operations that take an operation's result."""
        return tuple(self._consumers[name])

    def producer(self, name: str, *, through: Iterable[str] = ("identity",)) -> Operation | None:
        """Return what an operation takes first, past those of some kinds; None for nothing."""
        found = self._by_name[name]
        while found.inputs:
            found = self._by_name[found.inputs[0]]
            if found.kind not in through:
                return found
        return None

    def is_output(self, name: str) -> bool:
        """Return whether an operation's result is one of the model's outputs."""
        return name in self.outputs
