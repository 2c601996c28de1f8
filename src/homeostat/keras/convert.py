"""Replace a Keras model's batch norms by Homeostat's, weights and statistics kept, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from homeostat.errors import UnsupportedError
from homeostat.keras.layer import BatchNormalization

KerasBatchNormalization = keras.layers.BatchNormalization

# What Keras's own layer has no word for, and the value at which it does not matter.
_OURS_ALONE = {
    "virtual_batch_size": None,
    "adjustment": None,
    "activation": None,
    "stored_variance": "population",
    "zero_debias": False,
    "frozen_affine": False,
    "frozen_statistics": False,
    "inference_mode": False,
}


def from_keras(layer: keras.layers.BatchNormalization) -> BatchNormalization:
    """Return a Homeostat layer with the options, weights and statistics of Keras's own.

    Args:
        layer: a `keras.layers.BatchNormalization`, built or not.

    Raises:
        UnsupportedError: the layer is of another class.

    Example:
        >>> import keras
        >>> layer = keras.layers.BatchNormalization(momentum=0.9)
        >>> from_keras(layer).momentum
        0.9
    """
    if type(layer) is not KerasBatchNormalization:
        raise UnsupportedError(
            f"cannot convert a layer of class {type(layer).__name__}: expected "
            "keras.layers.BatchNormalization itself. Convert subclasses by hand, since their "
            "behaviour is not known."
        )
    return _with_weights_of(layer, BatchNormalization.from_config(layer.get_config()))


def to_keras(layer: BatchNormalization) -> keras.layers.BatchNormalization:
    """Return Keras's own layer with the options, weights and statistics of a Homeostat layer.

    The counters stay behind.

    Args:
        layer: a Homeostat layer, built or not.

    Raises:
        UnsupportedError: the layer uses an option that Keras's own does not have.
    """
    config = layer.get_config()
    config.pop("nonfinite")
    used = [name for name, off in _OURS_ALONE.items() if config.pop(name) != off]
    if config["momentum"] is None:
        used.append("momentum=None")
    if isinstance(config["axis"], list):
        used.append("axis")
    if used:
        raise UnsupportedError(
            f"layer {layer.name!r} uses {', '.join(used)}: expected only options that "
            "keras.layers.BatchNormalization has. Train or fold the rest away first, or keep the "
            "layer."
        )
    return _with_weights_of(layer, KerasBatchNormalization.from_config(config))


def _with_weights_of(source: Any, target: Any) -> Any:
    """Build the target as the source is built, and copy the weights that both have."""
    if not source.built:
        return target
    target.build(source.get_build_config()["input_shape"])
    theirs = {variable.name: variable for variable in source.variables}
    for variable in target.variables:
        if variable.name in theirs:
            variable.assign(theirs[variable.name])
    return target


def convert(model: keras.Model) -> keras.Model:
    """Return a copy of a model in which every Keras batch norm is Homeostat's.

    The layers are new and their weights and statistics are those of the model, which itself stays
    as it is. A compiled model comes back compiled the same way, its optimizer at the start.

    Args:
        model: a functional or Sequential model, also with such models nested in it.

    Raises:
        UnsupportedError: the model is subclassed, or a batch norm sits where it cannot be
            replaced; the message names it.

    Example:
        >>> import keras
        >>> layers = [keras.Input((4,)), keras.layers.BatchNormalization()]
        >>> [type(layer).__module__ for layer in convert(keras.Sequential(layers)).layers]
        ['homeostat.keras.layer']
    """
    return _rewritten(model, KerasBatchNormalization, from_keras)


def revert(model: keras.Model) -> keras.Model:
    """Return a copy of a model in which every Homeostat batch norm is Keras's own again.

    Args:
        model: a functional or Sequential model, also with such models nested in it.

    Raises:
        UnsupportedError: a layer uses an option that Keras's own does not have, or the model is
            subclassed, or a batch norm sits where it cannot be replaced.
    """
    return _rewritten(model, BatchNormalization, to_keras)


def _rewritten(model: keras.Model, old: type, replace: Callable[[Any], Any]) -> keras.Model:
    if not isinstance(model, keras.Sequential | keras.src.models.Functional):
        raise UnsupportedError(
            f"cannot rewrite a {type(model).__name__}: expected a functional or Sequential model, "
            "whose layers are known. In a subclassed model replace the layers in its code."
        )
    if not model.built:
        raise UnsupportedError(
            "cannot rewrite a model that is not built: expected known input shapes. Call the model "
            "on a batch first, or add a keras.Input."
        )

    def cloned(layer: keras.Layer) -> keras.Layer:
        if type(layer) is old:
            return replace(layer)
        copy = layer.__class__.from_config(layer.get_config())
        copies.append((layer, copy))
        return copy

    copies: list[tuple[keras.Layer, keras.Layer]] = []
    result = keras.models.clone_model(model, clone_function=cloned, recursive=True)
    for layer, copy in copies:
        copy.set_weights(layer.get_weights())
    _refuse_hidden(result, old)
    if model.compiled:
        result.compile_from_config(model.get_compile_config())
    return result


def _refuse_hidden(model: keras.Model, old: type) -> None:
    hidden = [layer.name for layer in model._flatten_layers() if type(layer) is old]
    if hidden:
        raise UnsupportedError(
            f"cannot replace {', '.join(map(repr, hidden))}: expected every batch norm to be a "
            "layer of the model or of a functional or Sequential model in it. Take it out of its "
            "wrapper, or replace it in the wrapper's code."
        )
