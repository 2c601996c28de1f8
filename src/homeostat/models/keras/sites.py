"""What calls what in a Keras model and in the models in it, as folding needs it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from homeostat.keras import BatchNormalization
from homeostat.models.foldable import LinearOp, NormOp, Sites
from homeostat.models.graph import Graph, Operation
from homeostat.models.keras.layers import layers_of
from homeostat.models.keras.linear import LINEAR_LAYERS, axis_of, kind_of, linear_of
from homeostat.models.keras.rebuild import is_graph
from homeostat.models.records import BatchNormRecord

NORMS = (keras.layers.BatchNormalization, BatchNormalization)


class Reading:
    """The graphs of a model and of the models in it.

    Args:
        model: one for which `is_graph`.

    Attributes:
        layers: the layer or other operation that each operation calls, by its name.
    """

    def __init__(self, model: Any) -> None:
        self.operations: list[Operation] = []
        self.outputs: list[str] = []
        self.layers: dict[str, Any] = {}
        self.nodes: dict[str, Any] = {}
        self.training: set[int] = set()
        self.hidden: dict[int, NormOp] = {}
        self.inside: dict[int, str] = {}
        self._seen: set[tuple[int, bool]] = set()
        self._find_training(model, training=False)
        self._prefixes: dict[int, str] = {}
        self.paths = {id(layer): path for path, layer in layers_of(model).items()}
        self._read(model, "")
        self.calls = Counter(map(id, self.layers.values()))

    def sites(self) -> Sites:
        """Return what was read."""
        norms: dict[str, NormOp] = {}
        linears: dict[str, LinearOp] = {}
        axes: dict[str, int] = {}
        known: set[int] = set()
        for operation in self.operations:
            layer = self.layers[operation.name]
            if isinstance(layer, NORMS) and id(layer) not in known:
                norms[operation.name] = self._norm(operation, layer)
                known.add(id(layer))
            elif type(layer) in LINEAR_LAYERS:
                linears[operation.name] = self._linear(operation, layer)
            elif (axis := axis_of(layer, len(operation.shape or ()))) is not None:
                axes[operation.name] = axis
        hidden = tuple(norm for key, norm in self.hidden.items() if key not in known)
        graph = Graph(tuple(self.operations), tuple(self.outputs))
        return Sites(graph, norms, linears, axes, hidden)

    def _find_training(self, model: Any, *, training: bool) -> None:
        """Note which models are called with training=True somewhere."""
        if (id(model), training) in self._seen:
            return
        self._seen.add((id(model), training))
        if training:
            self.training.add(id(model))
        for node in _nodes(model):
            if is_graph(node.operation):
                given = _argument(node, "training", 1)
                self._find_training(
                    node.operation, training=training if given is None else given is not False
                )

    def _read(self, model: Any, prefix: str) -> None:
        if id(model) in self._prefixes:
            return
        self._prefixes[id(model)] = prefix
        names: dict[int, str] = {}
        for node in _nodes(model):
            name = self._name(prefix + node.operation.name)
            # A norm's own input comes first, whatever else it is called with.
            tensors = list(node.input_tensors)
            first = _argument(node, "inputs", 0)
            if isinstance(node.operation, NORMS) and tensors and tensors[0] is not first:
                tensors.sort(key=lambda tensor: tensor is not first)
            self.operations.append(self._operation(node, name, prefix, model, tensors, names))
            self.layers[name], self.nodes[name] = node.operation, (node, id(model))
            names.update((id(tensor), name) for tensor in node.outputs)
            if is_graph(node.operation):
                self._read(node.operation, f"{name}/")
            elif isinstance(node.operation, keras.Layer):
                self._hide(node.operation)
        graph = _graph_of(model)
        self.outputs += [names[id(tensor)] for tensor in graph.outputs]

    def _name(self, name: str) -> str:
        taken, number = name, 1
        while taken in self.layers:
            number += 1
            taken = f"{name}:{number}"
        return taken

    def _operation(
        self,
        node: Any,
        name: str,
        prefix: str,
        model: Any,
        tensors: list[Any],
        names: dict[int, str],
    ) -> Operation:
        kind = kind_of(node.operation)
        if kind == "dropout" and self._in_training(node, id(model)):
            kind = "other"
        if isinstance(node.operation, NORMS):
            kind = "batch_norm"
        if node.is_input:
            kind = "input"
        return Operation(
            name,
            kind,
            tuple(names[id(tensor)] for tensor in tensors),
            prefix + node.operation.name,
            type(node.operation).__name__,
            tuple(node.outputs[0].shape) if len(node.outputs) == 1 else None,
        )

    def _in_training(self, node: Any, model: int) -> bool:
        given = _argument(node, "training", 1)
        return model in self.training if given is None else given is not False

    def _hide(self, layer: Any) -> None:
        for part in layer._flatten_layers(include_self=False):
            told = f"{type(layer).__name__} {layer.name!r}"
            self.inside.setdefault(id(part), told)
            if isinstance(part, NORMS):
                record = BatchNormRecord(self.paths[id(part)], type(part).__name__)
                reason = f"it is inside {told}, whose calls are not known"
                self.hidden.setdefault(id(part), NormOp(record, why_not=reason))

    def _shared(self, layer: Any) -> str:
        if self.calls[id(layer)] > 1:
            return f"is called {self.calls[id(layer)]} times"
        if id(layer) in self.inside:
            return f"is called by {self.inside[id(layer)]} too"
        return ""

    def _linear(self, operation: Operation, layer: Any) -> LinearOp:
        shared = self._shared(layer)
        axis = axis_of(layer, len(operation.shape or ()))
        if shared:
            return LinearOp(operation.layer, axis=axis, why_not=shared)
        return linear_of(layer, operation.layer, operation.shape or ())

    def _norm(self, operation: Operation, layer: Any) -> NormOp:
        node, model = self.nodes[operation.name]
        axes = layer.axis if isinstance(layer.axis, list) else [layer.axis]
        shape = operation.shape or ()
        why_not = ""
        if type(layer) not in NORMS:
            why_not = f"what its class {type(layer).__name__} does is not known"
        elif self._shared(layer):
            why_not = f"it {self._shared(layer)}"
        elif len(axes) > 1:
            why_not = f"it has statistics along the axes {axes}"
        elif (
            self._in_training(node, model)
            and layer.trainable
            and not getattr(layer, "inference_mode", False)
        ):
            why_not = "it is called with training=True, so that it takes the batch's statistics"
        activation = getattr(getattr(layer, "spec", None), "fused_activation", None)
        residual = _argument(node, "residual", 3) is not None
        parts = ["add"] if residual else []
        return NormOp(
            _record(operation.layer, layer, with_arrays=len(axes) == 1),
            axes[0] % len(shape),
            None if None in shape[1:] else math.prod(size or 0 for size in shape[1:]),
            " + ".join(parts if activation is None else [*parts, activation.name]),
            why_not,
        )


def _record(name: str, layer: Any, *, with_arrays: bool) -> BatchNormRecord:
    variables = {
        "gamma": layer.gamma,
        "beta": layer.beta,
        "moving_mean": layer.moving_mean,
        "moving_variance": layer.moving_variance,
    }
    arrays = {key: numpy_of(value) for key, value in variables.items() if value is not None}
    return BatchNormRecord(
        name,
        type(layer).__name__,
        **(arrays if with_arrays else {}),
        epsilon=layer.epsilon,
        dtype=layer.compute_dtype,
    )


def _graph_of(model: Any) -> Any:
    return model._functional if isinstance(model, keras.Sequential) else model


def _nodes(model: Any) -> Iterator[Any]:
    """Yield the calls of a model's graph, each after those that it takes."""
    by_depth = _graph_of(model)._nodes_by_depth
    for depth in sorted(by_depth, reverse=True):
        yield from by_depth[depth]


def _argument(node: Any, name: str, position: int) -> Any:
    given = node.arguments.args
    return node.arguments.kwargs.get(name, given[position] if len(given) > position else None)


def numpy_of(array: Any) -> np.ndarray[Any, Any]:
    """Return the values of a variable, a tensor of the backend, or an array."""
    return np.asarray(keras.ops.convert_to_numpy(getattr(array, "value", array)))
