"""A copy of a Keras model: with other layers, or in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras.src.models import Functional

from homeostat.errors import UnsupportedError
from homeostat.models.foldable import LinearOp

_FLOATS = ("float16", "bfloat16", "float32", "mixed_float16", "mixed_bfloat16")


class Gone:
    """Stands for a norm that is folded: does what remains of it, and takes the same arguments.

    Args:
        norm: the layer.
    """

    def __init__(self, norm: Any) -> None:
        self.name = norm.name
        self.dtype = norm.dtype_policy
        activation = getattr(getattr(norm, "spec", None), "fused_activation", None)
        self.activation = None
        if activation is not None:
            named = {"name": norm.name, "dtype": self.dtype}
            self.activation = (
                keras.layers.ReLU(**named)
                if activation.name == "relu"
                else keras.layers.LeakyReLU(negative_slope=activation.negative_slope, **named)
            )

    def __call__(
        self, inputs: Any, training: Any = None, mask: Any = None, residual: Any = None
    ) -> Any:
        """Apply what remains to symbolic tensors."""
        if residual is not None:
            inputs = keras.layers.Add(name=f"{self.name}_add", dtype=self.dtype)([inputs, residual])
        return inputs if self.activation is None else self.activation(inputs)


class Rebuilding:
    """One copy of a model, whose layers are copied once each.

    Args:
        linears: layers that get other kernels and biases, by the id of the layer.
        gone: ids of the norms that are left out.
        float64: whether the copy computes in float64.
    """

    def __init__(
        self,
        linears: Mapping[int, LinearOp] | None = None,
        gone: frozenset[int] = frozenset(),
        *,
        float64: bool = False,
    ) -> None:
        self.linears = linears or {}
        self.gone = gone
        self.float64 = float64
        self._copies: dict[int, tuple[Any, Any]] = {}

    def run(self, model: Any) -> Any:
        """Return the copy of a functional or Sequential model, with its weights."""
        result = self._model(model)
        for original, copy in self._copies.values():
            if id(original) in self.linears:
                linear = self.linears[id(original)]
                bias = [] if linear.bias is None else [linear.bias]
                copy.set_weights([*(kernel.values for kernel in linear.kernels), *bias])
            elif isinstance(copy, keras.Layer) and not is_graph(copy):
                _copy_weights(original, copy)
        return result

    def _model(self, model: Any) -> Any:
        if isinstance(model, keras.Sequential):
            return self._sequential(model)
        inputs = keras.tree.map_structure(self._input, model.input)
        return keras.models.clone_model(
            model, input_tensors=inputs, clone_function=self._copy, call_function=_call
        )

    def _sequential(self, model: Any) -> Any:
        layers = [self._input(model.inputs[0])]
        for layer in model.layers:
            copy = self._copy(layer)
            copy = copy.activation if isinstance(copy, Gone) else copy
            layers += [] if copy is None else [copy]
        result = keras.Sequential(layers, name=model.name, trainable=model.trainable)
        if model.compiled:
            result.compile_from_config(model.get_compile_config())
        return result

    def _input(self, tensor: Any) -> Any:
        layer = tensor._keras_history.operation
        floating = keras.backend.is_float_dtype(tensor.dtype)
        return keras.Input(
            batch_shape=tensor.shape,
            dtype="float64" if self.float64 and floating else tensor.dtype,
            sparse=tensor.sparse,
            name=tensor.name,
            optional=getattr(layer, "optional", False),
        )

    def _copy(self, layer: Any) -> Any:
        if id(layer) not in self._copies:
            self._copies[id(layer)] = layer, self._new(layer)
        return self._copies[id(layer)][1]

    def _new(self, layer: Any) -> Any:
        if id(layer) in self.gone:
            return Gone(layer)
        if is_graph(layer):
            return self._model(layer)
        try:
            config = dict(layer.get_config())
            if self.float64:
                config = _in_float64(config)
            if id(layer) in self.linears:
                config["use_bias"] = self.linears[id(layer)].bias is not None
            if type(layer) is keras.layers.Lambda:
                # Its function is at hand, and need not come out of a configuration.
                return keras.layers.Lambda(
                    layer.function,
                    layer._output_shape,
                    layer.mask,
                    layer.arguments,
                    name=layer.name,
                    dtype=config["dtype"],
                )
            # The classes inside a wrapper are at hand too, registered or not.
            parts = layer._flatten_layers() if isinstance(layer, keras.Layer) else ()
            with keras.saving.CustomObjectScope({type(p).__name__: type(p) for p in parts}):
                return type(layer).from_config(config)
        except Exception as error:
            # Whatever a layer's own code raises.
            raise UnsupportedError(
                f"layer {layer.name!r} of class {type(layer).__name__} cannot be copied: {error}. "
                "Expected get_config() and from_config() to make the layer again. Write them."
            ) from error


def is_graph(model: Any) -> bool:
    """Return whether a layer is a model that does what its graph says."""
    if isinstance(model, keras.Sequential):
        known = type(model).call is keras.Sequential.call
        return known and getattr(model, "_functional", None) is not None
    return isinstance(model, Functional) and type(model).call is Functional.call


def _call(operation: Any, *arguments: Any, **named: Any) -> Any:
    return operation(*arguments, **named)


def _copy_weights(original: Any, copy: Any) -> None:
    copy.set_weights(original.get_weights())
    for part in copy._flatten_layers():
        if isinstance(part, keras.layers.Normalization):
            part.finalize_state()


def _in_float64(config: Any) -> Any:
    """Return a configuration with every floating dtype and policy in it float64."""
    if isinstance(config, dict):
        return {
            key: _widened(value) if key == "dtype" else _in_float64(value)
            for key, value in config.items()
        }
    if isinstance(config, list | tuple):
        return type(config)(map(_in_float64, config))
    return config


def _widened(dtype: Any) -> Any:
    name = dtype
    if isinstance(dtype, dict):
        if dtype.get("class_name") == "DTypePolicyMap":
            return "float64"
        name = dtype.get("config", {}).get("name")
    return "float64" if getattr(name, "name", name) in _FLOATS else dtype
