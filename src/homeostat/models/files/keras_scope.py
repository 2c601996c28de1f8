"""Who takes whose results in one functional model of a Keras configuration."""

from __future__ import annotations

import heapq
from collections.abc import Mapping

from homeostat.models.files.keras_layers import Call, Layer, Reference, Shape, broken, references

Key = tuple[str, int]
"""A layer's name and which of its calls, from 0."""


class Scope:
    """The layers and calls of one functional model.

    Args:
        model: the model.
        shapes: of its outputs, as far as they are known.

    Raises:
        ModelFileError: the configuration is broken.
    """

    def __init__(self, model: Layer, shapes: list[Shape | None]) -> None:
        self.model = model
        self.layers = {layer.name: layer for layer in model.layers or ()}
        if len(self.layers) != len(model.layers or ()):
            raise broken(f"two layers of the model {model.name!r} have the same name")
        self.legacy = any(call.legacy for layer in self.layers.values() for call in layer.calls)
        self._shapes: dict[Key, dict[int, Shape]] = {}
        for layer in self.layers.values():
            for index, call in enumerate(layer.calls):
                self._learn_from(layer, index, call)
        for reference, shape in zip(self._outputs(), shapes, strict=False):
            self._learn(self._resolve(reference, counted=True), shape)

    def _learn_from(self, layer: Layer, index: int, call: Call) -> None:
        single = len(call.arguments) == 1 and index == 0
        for reference in call.arguments:
            shape = reference.shape or (layer.input_shape if single else None)
            self._learn(self._resolve(reference), shape)

    def _learn(self, result: tuple[Key, int], shape: Shape | None) -> None:
        key, tensor = result
        if shape is not None:
            self._shapes.setdefault(key, {}).setdefault(tensor, shape)

    def _outputs(self) -> list[Reference]:
        return list(references(self.model.config.get("output_layers")))

    def layer(self, reference: Reference) -> Layer:
        """Return the layer that is meant."""
        found = self.layers.get(reference.layer)
        if found is None:
            raise broken(f"the layer {reference.layer!r} is not there")
        return found

    def _resolve(self, reference: Reference, *, counted: bool = False) -> tuple[Key, int]:
        """Return the call, from 0, and the result that are meant.

        A model counts its own definition as its first call: with Keras 2 always, with Keras 3 a
        functional one where it is an output.
        """
        layer = self.layer(reference)
        index = reference.index
        if layer.layers is not None and (self.legacy or (counted and layer.functional)):
            index = max(0, index - 1)
        return (layer.name, index), reference.tensor

    def shapes_of(self, layer: Layer, index: int) -> list[Shape | None]:
        """Return the shapes of a call's results, as far as they are known."""
        found = self._shapes.get((layer.name, index), {})
        # A result that nothing takes is not among the shapes; no layer has a thousand results.
        return [found.get(at) for at in range(min(max(found, default=-1) + 1, 1000))]

    def arguments(self, call: Call) -> list[tuple[Key, int]]:
        """Return the calls and results that a call takes."""
        return [self._resolve(each) for each in call.arguments]

    def outputs(self, results: Mapping[Key, list[str]]) -> list[tuple[Key, int]]:
        """Return the calls and results that are the model's outputs."""
        found = [self._resolve(each, counted=True) for each in self._outputs()]
        missing = [key for key, _ in found if key not in results]
        if missing or not found:
            raise broken(f"the outputs of the model {self.model.name!r} are not there")
        return found

    def in_order(self, given: Mapping[Key, list[str]]) -> list[tuple[Layer, int, Call]]:
        """Return all calls, each behind what it takes, else in the order of the configuration."""
        calls = [
            (layer, index, call)
            for layer in self.layers.values()
            for index, call in enumerate(layer.calls)
            if (layer.name, index) not in given
        ]
        # Layers without inputs, such as variables as tensors.
        calls += [
            (layer, 0, Call(()))
            for layer in self.layers.values()
            if not layer.calls and (layer.name, 0) not in given and layer.type != "InputLayer"
        ]
        waiting: dict[Key, list[int]] = {}
        missing = [0] * len(calls)
        for at, (_, _, call) in enumerate(calls):
            for key in {key for key, _ in self.arguments(call)} - set(given):
                waiting.setdefault(key, []).append(at)
                missing[at] += 1
        ready = [at for at, count in enumerate(missing) if count == 0]
        order: list[tuple[Layer, int, Call]] = []
        while ready:
            layer, index, call = calls[heapq.heappop(ready)]
            order.append((layer, index, call))
            for at in waiting.get((layer.name, index), ()):
                missing[at] -= 1
                if missing[at] == 0:
                    heapq.heappush(ready, at)
        if len(order) < len(calls):
            raise broken(f"the calls of the model {self.model.name!r} wait for each other")
        return order
