"""The layers of a live Keras model by name, and the batch norms among them as records."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from homeostat.errors import HomeostatError, UnsupportedError
from homeostat.keras import BatchNormalization
from homeostat.models.files.keras_config import Network, read_network
from homeostat.models.files.keras_layers import Layer, parse, parse_layer
from homeostat.models.files.keras_norms import OURS, record_of
from homeostat.models.files.keras_order import unused
from homeostat.models.records import ARRAYS, Array, BatchNormRecord

NORMS = (keras.layers.BatchNormalization, BatchNormalization)
_COUNTERS = ("updates", "skipped_updates")
_OPTIONS = ("axis", "momentum", "epsilon", "center", "scale", "trainable", "synchronized", "renorm")


def layers_of(model: Any) -> dict[str, Any]:
    """Return every layer inside a model by its path: the names that lead to it, joined by ``/``.

    Example:
        >>> relu = keras.layers.ReLU(name="relu")
        >>> inner = keras.Sequential([keras.Input((2,)), relu], name="inner")
        >>> list(layers_of(keras.Sequential([inner])))
        ['inner', 'inner/relu']
    """
    taken: dict[str, int] = {}
    return {unused(path, taken): layer for path, layer in _walk(model, "", set())}


def _walk(layer: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    inside = layer.layers if isinstance(layer, keras.Model) else ()
    for each in (*inside, *layer._layers):
        if id(each) in seen or isinstance(each, keras.layers.InputLayer):
            continue
        seen.add(id(each))
        if isinstance(layer, keras.Sequential) and each is layer._functional:
            continue
        inner = f"{path}/{each.name}".lstrip("/")
        yield inner, each
        yield from _walk(each, inner, seen)


def norms_of(model: Any) -> dict[str, Any]:
    """Return the batch norms of a model by their paths.

    Raises:
        UnsupportedError: one has not seen an input yet, and has no variables.
    """
    found = {path: each for path, each in layers_of(model).items() if isinstance(each, NORMS)}
    unbuilt = [path for path, norm in found.items() if norm.moving_mean is None]
    if unbuilt or not model.built:
        raise UnsupportedError(
            f"the model {model.name!r} is not built"
            + (f", nor are its batch norms {', '.join(unbuilt)}" if unbuilt else "")
            + ": expected a model with variables. Call it on a batch first, or add a keras.Input."
        )
    return found


def network_of(model: Any) -> Network:
    """Return the graph of a functional or Sequential model, or why there is none."""
    kind = type(model).__name__
    if not isinstance(model, keras.Sequential | keras.src.models.Functional):
        return Network(
            None, f"a subclassed model ({kind}) does not tell what its layers take without running"
        )
    parameters = {
        path: each.count_params() for path, each in layers_of(model).items() if each.built
    }
    try:
        # Through text, as in a file: tuples become lists.
        config = json.loads(json.dumps(model.get_config(), default=str))
        return read_network(parse({"class_name": kind, "config": config}), parameters)
    except (HomeostatError, NotImplementedError, TypeError, ValueError) as error:
        return Network(None, f"its configuration cannot be had: {str(error)[:300]}")


def record(path: str, norm: Any, network: Network) -> BatchNormRecord:
    """Return the record of a live batch norm.

    Args:
        path: its path in the model.
        norm: the layer.
        network: what is known of the model.
    """
    arrays = {
        name: array_of(getattr(norm, name))
        for name in (*ARRAYS, *_COUNTERS)
        if getattr(norm, name, None) is not None
    }
    return record_of(_config(path, norm), arrays, keras=3, network=network)


def _config(path: str, norm: Any) -> Layer:
    try:
        options = json.loads(json.dumps(norm.get_config(), default=str))
    except Exception:
        # A user's class without a configuration has the attributes of the one it derives from.
        options = {name: getattr(norm, name) for name in _OPTIONS if hasattr(norm, name)}
        options["dtype"] = norm.compute_dtype
    package = OURS if type(norm) is BatchNormalization else ""
    config: Mapping[str, Any] = {
        "class_name": f"{package}>{type(norm).__name__}",
        "config": options,
        "name": norm.name,
    }
    return parse_layer(config, path)


def array_of(variable: Any) -> Array:
    """Return a copy of a variable's value; of bfloat16, which NumPy lacks, in float32."""
    value = np.array(keras.ops.convert_to_numpy(variable))
    return (
        value.astype(np.float32)
        if value.dtype.kind == "V" or value.dtype.name == "bfloat16"
        else value
    )
