"""A PyTorch model's graph in the words of `homeostat.models.graph`."""

from __future__ import annotations

import inspect
import operator
from collections import Counter
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from homeostat.models.graph import Graph, Operation
from homeostat.models.torch.norms import is_uninitialized
from homeostat.models.torch.trace import is_leaf, trace_inference
from homeostat.models.torch.vocabulary import (
    is_padded,
    kind_of_function,
    kind_of_module,
    word_of,
)

# What is asked of a tensor that is no tensor.
_ATTRIBUTES = {"shape", "ndim", "dtype", "device", "is_cuda", "requires_grad", "layout"}
_METHODS = {"size", "dim", "ndimension", "numel", "stride", "get_device", "is_contiguous"}
_BIASED = {"linear": 2, "conv1d": 2, "conv2d": 2, "conv3d": 2}


def read_graph(model: nn.Module) -> Graph:
    """Return what a model calls in inference, and what feeds what.

    Args:
        model: any module; it is left as it was.

    Raises:
        Refused: its code cannot be followed.

    Example:
        >>> graph = read_graph(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
        >>> [(operation.name, operation.kind) for operation in graph.operations]
        [('input', 'input'), ('0', 'conv'), ('1', 'batch_norm'), ('2', 'activation')]
    """
    if is_leaf(model):
        name = type(model).__name__
        # The model's own name in itself is "".
        alone = _of_module(name, "", model, ("input",))
        return Graph((Operation("input", "input", layer="input"), alone), (name,))
    return _Reading(model, trace_inference(model)).graph()


class _Reading:
    def __init__(self, model: nn.Module, traced: fx.Graph) -> None:
        self.model = model
        self.operations: list[Operation] = []
        self.outputs: tuple[str, ...] = ()
        self.names: Counter[str] = Counter()
        # The operation whose result a node is; None where it is no tensor that flows.
        self.results: dict[fx.Node, str | None] = {}
        # What one module is called with again has its name, and a number.
        self.taken = {name for name, _ in model.named_modules() if name}
        for node in traced.nodes:
            self.results[node] = self._read(node)

    def graph(self) -> Graph:
        return Graph(tuple(self.operations), self.outputs)

    def _read(self, node: fx.Node) -> str | None:
        if node.op == "output":
            self.outputs = tuple(dict.fromkeys(self._inputs(node)))
            return None
        if node.op == "get_attr":
            return None
        if node.op == "placeholder":
            name = self._named(str(node.target))
            return self._add(Operation(name, "input", layer=name))
        inputs = self._inputs(node)
        if node.op == "call_module":
            module, layer = self.model.get_submodule(str(node.target)), str(node.target)
            self.names[layer] += 1
            again = self.names[layer]
            name = layer if again == 1 else self._named(f"{layer}#{again}")
            return self._add(_of_module(name, layer, module, inputs))
        if not inputs or _asks(node):
            return None
        return self._add(self._of_function(node, inputs))

    def _add(self, operation: Operation) -> str:
        self.operations.append(operation)
        return operation.name

    def _inputs(self, node: fx.Node) -> tuple[str, ...]:
        found: list[str] = []

        def note(each: fx.Node) -> None:
            result = self.results[each]
            if result is not None:
                found.append(result)

        fx.map_arg((node.args, node.kwargs), note)
        return tuple(found)

    def _named(self, wanted: str) -> str:
        name, count = wanted, 1
        while name in self.taken:
            count += 1
            name = f"{wanted}#{count}"
        self.taken.add(name)
        return name

    def _of_function(self, node: fx.Node, inputs: tuple[str, ...]) -> Operation:
        word = word_of(node.target)
        kind = kind_of_function(word, len(inputs))
        around = list((node.meta.get("nn_module_stack") or {}).values())
        home = f"{around[-1][0]}." if around and around[-1][0] else ""
        name = self._named(f"{home}{word}")
        bias = padded = None
        if word in _BIASED:
            bias = _argument(node, _BIASED[word], "bias") is not None
        if kind == "conv":
            padding = _argument(node, 4, "padding")
            padded = padding not in (None, 0, "valid") and (
                not isinstance(padding, tuple | list) or any(padding)
            )
        rate = _rate(node) if kind == "dropout" else None
        return Operation(
            name, kind, inputs, layer=name, type=word, bias=bias, padded=padded, rate=rate
        )


def _of_module(name: str, layer: str, module: nn.Module, inputs: tuple[str, ...]) -> Operation:
    kind = kind_of_module(module)
    linear = isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
    size = 0 if is_uninitialized(module) else sum(p.numel() for p in module.parameters())
    return Operation(
        name,
        kind,
        inputs,
        layer=layer,
        type=type(module).__name__,
        bias=module.bias is not None if linear else None,
        padded=is_padded(module),
        parameters=size,
        rate=getattr(module, "p", None) if kind == "dropout" else None,
    )


def _asks(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _METHODS
    if node.target is getattr:
        return node.args[1] in _ATTRIBUTES
    return node.target in (torch.numel, torch.is_tensor, operator.eq) or node.target is len


def _argument(node: fx.Node, position: int, name: str) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name)


def _rate(node: fx.Node) -> float | None:
    signature = inspect.signature(functional.dropout)
    found = _argument(node, 1, "p")
    rate = signature.parameters["p"].default if found is None else found
    return float(rate) if isinstance(rate, int | float) else None
