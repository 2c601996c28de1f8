"""The graph of an ONNX model in the words of `homeostat.models.graph`."""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from homeostat.models.graph import LINEAR, Kind, Operation

_KINDS: Mapping[str, Kind] = {
    "Conv": "conv",
    "ConvTranspose": "conv_transpose",
    "Gemm": "dense",
    "BatchNormalization": "batch_norm",
    **dict.fromkeys(
        (
            *("InstanceNormalization", "LayerNormalization", "GroupNormalization"),
            *("LpNormalization", "MeanVarianceNormalization", "RMSNormalization", "LRN"),
        ),
        "other_norm",
    ),
    **dict.fromkeys(
        (
            *("Relu", "LeakyRelu", "PRelu", "ThresholdedRelu", "Elu", "Celu", "Selu", "Gelu"),
            *("Sigmoid", "HardSigmoid", "HardSwish", "Swish", "Mish", "Tanh", "Clip"),
            *("Softmax", "LogSoftmax", "Softplus", "Softsign"),
        ),
        "activation",
    ),
    **dict.fromkeys(("Add", "Sum"), "add"),
    "Mul": "multiply",
    "Concat": "concatenate",
    "Dropout": "dropout",
    "Pad": "pad",
    **dict.fromkeys(
        ("MaxPool", "AveragePool", "LpPool", "GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool"),
        "pool",
    ),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"), "reshape"),
    "Identity": "identity",
    **dict.fromkeys(("LSTM", "GRU", "RNN"), "recurrent"),
}
_STANDARD = ("", "ai.onnx")
# What AttributeProto.type says of each of its fields.
_ATTRIBUTES = {"f": 1, "i": 2, "s": 3, "t": 4, "ints": 7}
# float, float16, double and bfloat16.
_FLOATING = (1, 10, 11, 16)


class OnnxGraph:
    """An ONNX graph while it is read.

    Args:
        graph: a `GraphProto`.

    Raises:
        ValueError: a node takes what nothing gives, or what comes later.
    """

    def __init__(self, graph: Any) -> None:
        self.constants: dict[str, Any] = {tensor.name: tensor for tensor in graph.initializer}
        self.operations: dict[str, Operation] = {}
        self.norms: list[tuple[str, Any]] = []
        self.notes: dict[str, None] = {}
        self._shapes = dict(_shapes((*graph.input, *graph.value_info, *graph.output)))
        # Which operation gives a tensor.
        self._given: dict[str, str] = {}
        self._layers: dict[str, str] = {}
        self._uses = Counter(name for node in graph.node for name in node.input)
        for value in graph.input:
            if value.name not in self.constants:
                self._add(Operation(self._unique(value.name), "input"), (value.name,))
        for node in graph.node:
            self._take(node)
        self.outputs = tuple(
            dict.fromkeys(self._given[v.name] for v in graph.output if v.name in self._given)
        )

    def _unique(self, name: str) -> str:
        count, found = 1, name
        while found in self.operations:
            count += 1
            found = f"{name}#{count}"
        return found

    def _add(self, operation: Operation, tensors: Iterable[str]) -> None:
        names = [name for name in tensors if name]
        shape = self._shapes.get(names[0]) if names else None
        self.operations[operation.name] = replace(
            operation,
            layer=operation.layer or operation.name,
            shape=operation.shape or shape,
        )
        self._given.update(dict.fromkeys(names, operation.name))

    def _take(self, node: Any) -> None:
        inputs = [name for name in node.input if name]
        if node.op_type == "Constant":
            value = attribute(node, "value", "t")
            if value is not None and node.output:
                self.constants[node.output[0]] = value
                return
        if node.op_type == "Identity" and inputs and inputs[0] in self.constants and node.output:
            self.constants[node.output[0]] = self.constants[inputs[0]]
            return
        if any(each.HasField("g") or each.graphs for each in node.attribute):
            self.notes.setdefault(f"What is inside of {node.op_type} nodes was not looked at.")
        missing = [n for n in inputs if n not in self._given and n not in self.constants]
        if missing:
            raise ValueError(f"{node.op_type} takes {missing[0]!r:.100}, which comes from nowhere")
        if not self._is_bias(node, inputs):
            self._add_node(node, inputs)

    def _is_bias(self, node: Any, inputs: list[str]) -> bool:
        """Take an addition of constants to a product without bias for that bias."""
        given = [self._given[name] for name in inputs if name in self._given]
        if node.op_type != "Add" or len(inputs) != 2 or len(given) != 1 or not node.output:
            return False
        product = self.operations[given[0]]
        tensor = next(name for name in inputs if name in self._given)
        constant = next(name for name in inputs if name in self.constants)
        if product.type != "MatMul" or product.bias or self._uses[tensor] != 1:
            return False
        if product.kind != "dense" or not self.constants[constant].dims:
            return False
        size = parameters_of(self.constants[constant])
        self.operations[product.name] = replace(
            product, bias=True, parameters=product.parameters + size
        )
        self._given[node.output[0]] = product.name
        return True

    def _add_node(self, node: Any, inputs: list[str]) -> None:
        given = tuple(self._given[name] for name in inputs if name in self._given)
        weights = [name for name in inputs if name in self.constants]
        kind = self._kind(node, given)
        name = self._unique(node.name or (node.output[0] if node.output else "") or node.op_type)
        self._add(
            Operation(
                name,
                kind,
                given,
                layer=self._layer(node, kind, name),
                type=node.op_type,
                bias=self._bias(node, kind),
                padded=_padded(node, kind),
                parameters=sum(
                    parameters_of(self.constants[each]) for each in dict.fromkeys(weights)
                ),
                rate=self._rate(node) if kind == "dropout" else None,
            ),
            node.output,
        )
        if kind == "batch_norm":
            self.norms.append((name, node))

    def _kind(self, node: Any, given: tuple[str, ...]) -> Kind:
        kind = _KINDS.get(node.op_type, "other") if node.domain in _STANDARD else "other"
        weight = self.constants.get(node.input[1]) if len(node.input) > 1 else None
        if node.op_type == "MatMul" and node.domain in _STANDARD:
            return "other" if weight is None else "dense"
        if kind in LINEAR and weight is None:
            return "other"
        if kind == "conv" and len(weight.dims) > 1:
            group = attribute(node, "group", "i", 1)
            return "depthwise_conv" if group > 1 and weight.dims[1] == 1 else kind
        # With a constant it is no sum or product of two branches.
        return "other" if kind in ("add", "multiply") and len(given) < 2 else kind

    def _layer(self, node: Any, kind: Kind, name: str) -> str:
        """Return the name of a layer by that of its weight, the same for each call of it."""
        weight = node.input[1] if kind in (*LINEAR, "batch_norm") and len(node.input) > 1 else ""
        if weight not in self.constants:
            return name
        scope, dot, leaf = weight.rpartition(".")
        return self._layers.setdefault(weight, scope if dot and leaf == "weight" else name)

    def _bias(self, node: Any, kind: Kind) -> bool | None:
        return len(node.input) > 2 and bool(node.input[2]) if kind in LINEAR else None

    def _rate(self, node: Any) -> float | None:
        constant = self.constants.get(node.input[1]) if len(node.input) > 1 else None
        if constant is None:
            return shortest(attribute(node, "ratio", "f", 0.5))
        if constant.float_data:
            return shortest(constant.float_data[0])
        raw = constant.raw_data
        return shortest(struct.unpack("<f", raw)[0]) if len(raw) == 4 else None


def attribute(node: Any, name: str, kind: str, default: Any = None) -> Any:
    """Return an attribute of a node.

    Args:
        node: a `NodeProto`.
        name: the attribute's.
        kind: its field in `AttributeProto`: ``"f"`` for a number, ``"i"`` for an integer, ``"s"``
            for bytes, ``"t"`` for a tensor, ``"ints"``.
        default: what to return where the node has none of that name and kind.
    """
    for each in node.attribute:
        if each.name == name and each.type == _ATTRIBUTES[kind]:
            return getattr(each, kind)
    return default


def _padded(node: Any, kind: Kind) -> bool | None:
    # Padding of a transposed convolution takes from its output.
    if kind not in ("conv", "depthwise_conv"):
        return None
    automatic = attribute(node, "auto_pad", "s")
    return automatic in (b"SAME_UPPER", b"SAME_LOWER") or any(attribute(node, "pads", "ints", ()))


def shortest(number: float) -> float:
    """Return the float64 that is meant by a float32: 1e-5 and not 9.999999747e-06."""
    return float(str(np.float32(number)))


def parameters_of(tensor: Any) -> int:
    """Return how many floating-point numbers a `TensorProto` says that it holds."""
    # Integers are axes, shapes and counts.
    return math.prod(max(0, size) for size in tensor.dims) if tensor.data_type in _FLOATING else 0


def _shapes(values: Iterable[Any]) -> Iterable[tuple[str, tuple[int | None, ...]]]:
    for value in values:
        kind = value.type.tensor_type
        if value.type.HasField("tensor_type") and kind.HasField("shape"):
            sizes = (size.dim_value for size in kind.shape.dim)
            yield value.name, tuple(size if size > 0 else None for size in sizes)
