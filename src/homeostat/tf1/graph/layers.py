"""Find the layers of a graph: scopes that hold variables, poolings and dropouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from homeostat.tf1.graph.records import LayerRow
from homeostat.tf1.graph.steps import is_gradient
from homeostat.tf1.graph.variables import (
    VARIABLES,
    Variable,
    kind_by_names,
    layers_of,
    parameters_of,
)
from homeostat.tf1.origin import line_of
from homeostat.tf1.walk import assigns

# What operations with a variable of their own make of a layer.
_WEIGHTED = {
    **dict.fromkeys(("MatMul", "BatchMatMul", "BatchMatMulV2", "SparseMatMul"), "dense"),
    "Conv2D": "conv2d",
    "Conv3D": "conv3d",
    "DepthwiseConv2dNative": "depthwise conv2d",
    **dict.fromkeys(("Gather", "GatherV2", "ResourceGather"), "embedding"),
    **dict.fromkeys(("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"), "batch norm"),
    "Conv2DBackpropInput": "conv2d transpose",
    "Conv3DBackpropInputV2": "conv3d transpose",
}
_POOLING = {
    "MaxPool": "max pooling",
    "MaxPoolV2": "max pooling",
    "MaxPool3D": "max pooling",
    "AvgPool": "average pooling",
    "AvgPool3D": "average pooling",
}
_RANDOM = ("RandomUniform", "StatelessRandomUniform", "StatelessRandomUniformV2")
_BIAS = ("BiasAdd", "Add", "AddV2")
_PASSED_ON_BY = (
    *("Identity", "ReadVariableOp", "Cast", "Reshape", "ExpandDims", "Transpose"),
    *("Switch", "RefSwitch", "Enter", "RefEnter", "ConcatV2", "Concat"),
)


@dataclass
class _Layer:
    variables: list[Variable] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    main: Any = None
    output: Any = None
    first: int | None = None


def find_layers(graph: Any, variables: Sequence[Variable]) -> list[LayerRow]:
    """Return the layers of a graph in their order, without what there is to say of updates.

    Args:
        graph: a `tf.Graph` or a `StoredGraph`.
        variables: the variables of its layers.
    """
    forward = [each for each in graph.get_operations() if not is_gradient(each)]
    weights = {each: variable for each in forward if (variable := _weight(each)) is not None}
    grouped = _split(layers_of(variables), weights)
    layers = {name: _Layer(list(members)) for name, members in grouped.items()}
    owners = {variable.op: name for name, layer in layers.items() for variable in layer.variables}
    for operation in forward:
        if operation in weights:
            name, kind = owners.get(weights[operation]), _kind(operation)
        else:
            name, kind = _without_weights(operation)
        if name is not None and kind:
            layer = layers.setdefault(name, _Layer())
            layer.kinds.append(kind)
            layer.main = layer.main or (operation if kind != "bias" else None)
    _place(layers, forward, {variable.name for variable in variables})
    order = sorted(layers.items(), key=lambda item: item[1].first or 0)
    return [_row(name, layer) for name, layer in order]


def _row(name: str, layer: _Layer) -> LayerRow:
    by_names = kind_by_names(name, layer.variables)
    kinds = [kind for kind in layer.kinds if kind != "bias"]
    if by_names in ("lstm", "gru", "rnn"):
        kinds = [by_names]
    elif "batch norm" in by_names:
        kinds.append("batch norm")
    kinds = kinds or layer.kinds[:1]
    known = layer.output or layer.main or (layer.variables[0].op if layer.variables else None)
    shape = None
    if layer.output is not None or layer.main is not None:
        shape = next((each.shape for each in known.outputs), None)
    return LayerRow(
        name,
        " + ".join(dict.fromkeys(kinds)),
        None if shape is None or shape.rank is None else tuple(shape.as_list()),
        parameters_of(layer.variables),
        line_of(layer.main or known),
    )


def _kind(operation: Any) -> str:
    if operation.type in _BIAS:
        return "bias"
    kind = _WEIGHTED[operation.type]
    # A convolution along one axis is one along two, with a kernel that is expanded.
    expanded = any(tensor.op.type == "ExpandDims" for tensor in operation.inputs[1:])
    return "conv1d" if kind == "conv2d" and expanded else kind


def _weight(operation: Any) -> Any:
    """Return the variable, as its operation, that makes an operation a layer's; None if none."""
    if operation.type not in _WEIGHTED and operation.type not in _BIAS:
        return None
    for tensor in operation.inputs:
        source, seen = tensor.op, set()
        while source.type in _PASSED_ON_BY and source.inputs and source not in seen:
            seen.add(source)
            source = source.inputs[0].op
        if source.type in VARIABLES:
            return source
    return None


def _without_weights(operation: Any) -> tuple[str | None, str]:
    """Return the layer and its kind of an operation that has no variable."""
    if operation.type in _POOLING:
        scope = operation.name.rpartition("/")[0]
        named = "pool" in scope.rpartition("/")[2].lower()
        return (scope if named else operation.name), _POOLING[operation.type]
    parts = operation.name.split("/")
    if operation.type in _RANDOM:
        for number, part in enumerate(parts[:-1], start=1):
            if "dropout" in part.lower():
                return "/".join(parts[:number]), "dropout"
    return None, ""


def _split(layers: dict[str, list[Variable]], weights: dict[Any, Any]) -> dict[str, list[Variable]]:
    """Part what is in one scope and yet several layers, as in networks written by hand."""
    used = {weight for operation, weight in weights.items() if operation.type not in _BIAS}
    parted: dict[str, list[Variable]] = {}
    for name, members in layers.items():
        own = [each for each in members if each.op in used and not _belongs(name, each)]
        # The gamma of a fused batch norm is one as well.
        if len(own) > 1 and not any(each.statistic for each in members):
            parted |= {each.name: [each] for each in members}
        else:
            parted[name] = members
    return parted


def _belongs(name: str, variable: Variable) -> bool:
    """Return whether a weight is one of several that a layer has."""
    together = ("depthwise", "pointwise", "gates", "candidate")
    return variable.leaf.startswith(together) or "/part_" in variable.name or "rnn" in name


def _place(layers: dict[str, _Layer], forward: Sequence[Any], variables: set[str]) -> None:
    """Find for each layer where it begins, and its output: what is last of what is used outside."""
    homes: dict[str, str] = {}

    def home(operation: Any) -> str:
        scope = operation.name if operation.name in layers else operation.name.rpartition("/")[0]
        if scope not in homes:
            homes[scope] = _innermost(scope, layers, variables)
        return homes[scope]

    inside = set(forward)
    used_outside = {
        tensor.op
        for operation in forward
        if not assigns(operation)
        for tensor in operation.inputs
        if tensor.op in inside and home(tensor.op) != home(operation)
    }
    best: dict[str, tuple[bool, bool, int]] = {}
    for number, operation in enumerate(forward):
        name = home(operation)
        if not name or operation.type in VARIABLES or assigns(operation):
            continue
        layer, rank = layers[name], next((each.shape.rank for each in operation.outputs), 0)
        layer.first = number if layer.first is None else layer.first
        key = (operation in used_outside, rank is None or rank > 1, number)
        if (key[0] or key[1]) and key > best.get(name, (False, False, -1)):
            best[name], layer.output = key, operation
    numbers = {operation: number for number, operation in enumerate(forward)}
    for layer in layers.values():
        if layer.first is None:
            begin = layer.main or layer.variables[0].op
            layer.first = numbers.get(begin, 0)


def _innermost(scope: str, layers: dict[str, _Layer], variables: set[str]) -> str:
    """Return the innermost layer around a scope; "" for none, or what belongs to a variable."""
    found = ""
    while scope:
        if scope in variables:
            return ""
        if not found and scope in layers:
            found = scope
        scope = scope.rpartition("/")[0]
    return found
