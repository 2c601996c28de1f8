"""A Keras configuration as a graph of operations, read without Keras."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

from homeostat.errors import SpecError
from homeostat.models.files.keras_kinds import (
    activation_of,
    bias_of,
    function_of,
    kind_of,
    output_shape,
    padded,
    rate_of,
    type_of,
)
from homeostat.models.files.keras_layers import Call, Layer, Shape, broken, references
from homeostat.models.files.keras_scope import Scope
from homeostat.models.graph import LINEAR, Graph, Kind, Operation

# A model in a model in a model, each called twice, is more work than its configuration is long.
_OPERATIONS, _WORK = 100_000, 200_000


class Network(NamedTuple):
    """What a configuration tells of a model.

    Args:
        graph: its operations; None where the configuration does not tell.
        why_no_graph: why there is none.
        training: for layers that a Keras 2 model calls with ``training`` given, what was given.
        norms: the operations that apply each batch norm, by the layer's path.
    """

    graph: Graph | None
    why_no_graph: str = ""
    training: Mapping[str, bool] = MappingProxyType({})
    norms: Mapping[str, Sequence[Operation]] = MappingProxyType({})


def read_network(model: Layer, parameters: Mapping[str, int] | None = None) -> Network:
    """Return the graph of a functional or Sequential model, models inside it taken apart.

    An activation fused in a layer, and a residual added in a batch norm, are operations of their
    own. An operation has its layer's path as its name; the second call of a shared layer ends in
    ``:1``, a fused activation in ``:activation``.

    Args:
        model: its layers.
        parameters: how many parameters each layer has, by its path.

    Raises:
        ModelFileError: the configuration is broken.

    Example:
        >>> from homeostat.models.files.keras_layers import parse
        >>> layers = [{"class_name": "Dense", "config": {"name": "dense", "activation": "relu"}},
        ...           {"class_name": "BatchNormalization", "config": {"name": "norm"}}]
        >>> model = {"class_name": "Sequential", "config": {"name": "net", "layers": layers}}
        >>> graph = read_network(parse(model)).graph
        >>> [(operation.name, operation.kind) for operation in graph.operations[1:]]
        [('dense', 'dense'), ('dense:activation', 'activation'), ('norm', 'batch_norm')]
    """
    if model.layers is None:
        return Network(
            None,
            f"a model of class {model.type} does not tell what its layers take: expected a "
            "functional or Sequential one",
        )
    builder = _Builder(parameters or {})
    try:
        outputs = builder.run(model, None, "", [])
        graph = Graph(tuple(builder.operations), tuple(dict.fromkeys(outputs)))
    except SpecError as error:
        raise broken(str(error).partition(":")[0]) from error
    except RecursionError as error:
        raise broken("models are nested too deeply") from error
    except _TooLargeError:
        return Network(None, f"the model has more than {_OPERATIONS} operations")
    norms: dict[str, list[Operation]] = {}
    for operation in graph.operations:
        if operation.kind == "batch_norm":
            norms.setdefault(operation.layer, []).append(operation)
    return Network(graph, "", builder.training, norms)


class _TooLargeError(Exception):
    pass


class _Builder:
    """Turns the calls of layers into operations, in an order in which they can run."""

    def __init__(self, parameters: Mapping[str, int]) -> None:
        self.operations: list[Operation] = []
        self._given: dict[str, set[bool | None]] = {}
        self._parameters, self._work = parameters, 0
        self._told: bool | None = None
        self._shapes: dict[str, Shape | None] = {}

    @property
    def training(self) -> dict[str, bool]:
        """What layers are told in all their calls alike."""
        single = {path: next(iter(told)) for path, told in self._given.items() if len(told) == 1}
        return {path: told for path, told in single.items() if told is not None}

    def run(
        self, model: Layer, inputs: list[str] | None, prefix: str, shapes: list[Shape | None]
    ) -> list[str]:
        """Add a model's operations.

        Args:
            model: the model.
            inputs: the operations that it takes; None for the whole model.
            prefix: of the names of its operations.
            shapes: of its outputs, as far as they are known.

        Returns:
            The operations that are its outputs.
        """
        self._work += 1 + len(model.layers or ())
        if self._work > _WORK:
            raise _TooLargeError
        if model.functional:
            return self._run_functional(model, inputs, prefix, shapes)
        return self._run_sequential(model, inputs, prefix, shapes)

    def _run_sequential(
        self, model: Layer, inputs: list[str] | None, prefix: str, shapes: list[Shape | None]
    ) -> list[str]:
        layers = [layer for layer in model.layers or () if layer.type != "InputLayer"]
        if inputs is None:
            first = next(
                (layer for layer in model.layers or () if layer.type == "InputLayer"), None
            )
            shape = (first or model).input_shape or (layers[0].input_shape if layers else None)
            name = prefix + (first.name if first else f"{model.name}:input")
            inputs = [self._add(Operation(name, "input", type="InputLayer", shape=shape))]
        # A layer was built for what the one before it gives.
        told = [layer.input_shape for layer in layers[1:]] + [shapes[0] if shapes else None]
        for layer, shape in zip(layers, told, strict=True):
            inputs = self._call(layer, 0, Call(()), inputs, prefix, [shape])
        return inputs

    def _run_functional(
        self, model: Layer, inputs: list[str] | None, prefix: str, shapes: list[Shape | None]
    ) -> list[str]:
        scope = Scope(model, shapes)
        results: dict[tuple[str, int], list[str]] = {}
        given = list(references(model.config.get("input_layers")))
        if inputs is not None and len(given) != len(inputs):
            raise broken(f"the model {model.path!r} does not get the inputs that it takes")
        for position, reference in enumerate(given):
            layer = scope.layer(reference)
            if inputs is None:
                operation = Operation(
                    prefix + layer.name, "input", type=layer.type, shape=layer.input_shape
                )
                results[layer.name, 0] = [self._add(operation)]
            else:
                results[layer.name, 0] = [inputs[position]]
        for layer, index, call in scope.in_order(results):
            taken = [_result(results[key], tensor) for key, tensor in scope.arguments(call)]
            results[layer.name, index] = self._call(
                layer, index, call, taken, prefix, scope.shapes_of(layer, index)
            )
        return [_result(results[key], tensor) for key, tensor in scope.outputs(results)]

    def _call(
        self,
        layer: Layer,
        index: int,
        call: Call,
        inputs: list[str],
        prefix: str,
        shapes: list[Shape | None],
    ) -> list[str]:
        """Add what one call of a layer does; return its results."""
        name = f"{prefix}{layer.name}" + (f":{index}" if index else "")
        outer = self._told
        # With Keras 2 what a call is told holds for all inside it; Keras 3 asks the whole model.
        told = call.training if call.legacy and call.training is not None else outer
        if layer.layers is not None:
            self._told = told
            results = self.run(layer, inputs, f"{name}/", shapes)
            self._told = outer
            return results
        inner = layer.wrapped[0] if layer.type == "TimeDistributed" and layer.wrapped else layer
        self._given.setdefault(inner.path, set()).add(told)
        kind = kind_of(inner)
        known = [self._shapes[each] for each in inputs]
        shape = (shapes[0] if shapes else None) or output_shape(inner, kind, known)
        # A residual is a batch norm's second input.
        split = kind == "batch_norm" and len(inputs) > 1
        last = self._add(
            Operation(
                name,
                kind,
                tuple(inputs[:1] if split else inputs),
                name if function_of(layer) else inner.path,
                type_of(inner),
                shape,
                bias_of(inner, kind),
                padded(inner, kind),
                self._parameters.get(layer.path, 0),
                rate_of(inner, kind),
            )
        )
        if split:
            last = self._behind(last, "add", "residual", "Add", shape, inputs[1:])
        fused = activation_of(inner) if kind in LINEAR or kind == "batch_norm" else None
        if fused is not None:
            last = self._behind(last, "activation", "activation", fused, shape, [], name)
        return [last]

    def _behind(
        self,
        last: str,
        kind: Kind,
        suffix: str,
        word: str,
        shape: Shape | None,
        others: list[str],
        name: str | None = None,
    ) -> str:
        name = f"{name or last}:{suffix}"
        return self._add(Operation(name, kind, (last, *others), name, word, shape))

    def _add(self, operation: Operation) -> str:
        if len(self.operations) >= _OPERATIONS:
            raise _TooLargeError
        self._shapes[operation.name] = operation.shape
        self.operations.append(
            operation if operation.layer else replace(operation, layer=operation.name)
        )
        return operation.name


def _result(results: list[str], tensor: int) -> str:
    # What gives several results is one operation, unless it is a model.
    return results[tensor] if 0 <= tensor < len(results) else results[0]
