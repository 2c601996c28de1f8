"""Reader of `.onnx` files: their batch norms and what feeds what; nothing is computed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from homeostat.errors import MissingExtraError, ModelFileError, SpecError
from homeostat.models.files.arrays import (
    ITEM_SIZES,
    MAX_CHANNELS,
    MAX_STATISTICS,
    Array,
    Source,
    checked_count,
    checked_name,
    decode,
    refusal,
)
from homeostat.models.files.onnx_graph import OnnxGraph, attribute, parameters_of, shortest
from homeostat.models.graph import Graph
from homeostat.models.records import BatchNormRecord, ModelRecord

# A message of protocol buffers has less.
_MAX_FILE = (1 << 31) - 1
_EXTERNAL = 1
_DTYPES = {1: "float32", 10: "float16", 11: "float64", 16: "bfloat16"}
_FOUR = ("gamma", "beta", "moving_mean", "moving_variance")
_UNKNOWN = frozenset(
    (
        *("stored_variance", "updates", "skipped", "trainable", "tracking", "synchronized"),
        *("cumulative", "dtype"),
    )
)


def read_onnx(path: Path) -> ModelRecord:
    """Return the batch norms and the graph of an `.onnx` file.

    Arrays are read of batch norms alone, and from other files only beside this one.

    Args:
        path: the file.

    Raises:
        ModelFileError: it is damaged, or names a file elsewhere for a batch norm's arrays.
        MissingExtraError: onnx is not installed.
    """
    graph = _graph_proto(path)
    checked_count(path, len(graph.node) + len(graph.initializer))
    for tensor in graph.initializer:
        checked_name(path, tensor.name)
    try:
        read = OnnxGraph(graph)
        whole = Graph(tuple(read.operations.values()), read.outputs)
    except (ValueError, SpecError) as error:
        raise refusal(
            path,
            f"is damaged, {error!s:.300}",
            "a graph with its nodes sorted",
            "Export it again, and see what onnx.checker.check_model says.",
        ) from error
    return ModelRecord(
        name=path.name,
        framework="onnx",
        source="ONNX model",
        norms=tuple(_norms(path, read)),
        graph=whole,
        parameters=sum(map(parameters_of, graph.initializer)),
        notes=tuple(read.notes),
    )


def _graph_proto(path: Path) -> Any:
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise MissingExtraError(
            f"{path} is an ONNX file, and the package onnx is not installed: expected the extra "
            "'audit'. Install it with: pip install 'homeostat[audit]'"
        ) from error
    with Source(path) as source:
        if source.size > _MAX_FILE:
            raise refusal(
                path,
                f"has {source.size:,} bytes",
                f"at most {_MAX_FILE:,}, as protocol buffers have",
                "Export it with its weights in a file beside it.",
            )
        raw = source.read(0, source.size)
    try:
        model = onnx.load_model_from_string(raw)
    except DecodeError as error:
        raise _damaged(path, "it cannot be decoded") from error
    if not model.graph.node:
        raise _damaged(path, "it has no graph")
    return model.graph


def _norms(path: Path, graph: OnnxGraph) -> Iterable[BatchNormRecord]:
    # Nodes with the same four inputs are one norm that is used several times. After constants were
    # merged by their values, different norms may well have the same arrays.
    calls: dict[tuple[str, ...], list[tuple[str, Any]]] = {}
    for name, node in graph.norms:
        calls.setdefault(tuple(node.input[1:5]), []).append((name, node))
    total, names = 0, set()
    for inputs, nodes in calls.items():
        tensors = [graph.constants.get(name) for name in inputs]
        sizes = [tuple(tensor.dims) for tensor in tensors if tensor is not None]
        total += sum(8 * math.prod(size) for size in sizes)
        if any(len(size) != 1 or not 0 < size[0] <= MAX_CHANNELS for size in sizes) or (
            total > MAX_STATISTICS or len(set(sizes)) > 1 or len(inputs) != 4
        ):
            raise _damaged(path, f"a batch norm has arrays of the shapes {sizes!s:.200}")
        arrays = {
            field: None if tensor is None else _array(path, tensor)
            for field, tensor in zip(_FOUR, tensors, strict=True)
        }
        name = _name(inputs[2], nodes[0][0])
        name = nodes[0][0] if name in names else name
        names.add(name)
        yield _record(name, nodes, arrays)


def _name(mean: str, node: str) -> str:
    scope, _, leaf = mean.rpartition(".")
    return scope if scope and leaf == "running_mean" else node


def _record(
    name: str, nodes: list[tuple[str, Any]], arrays: Mapping[str, Array | None]
) -> BatchNormRecord:
    node = nodes[0][1]
    given = {field: array for field, array in arrays.items() if array is not None}
    return BatchNormRecord(
        name=name,
        kind="BatchNormalization",
        epsilon=shortest(attribute(node, "epsilon", "f", 1e-5)),
        momentum=shortest(attribute(node, "momentum", "f", 0.9)),
        training=bool(attribute(node, "training_mode", "i", 0)),
        operations=tuple(name for name, _ in nodes),
        unknown=_UNKNOWN | (arrays.keys() - given.keys()),
        **given,
    )


def _array(path: Path, tensor: Any) -> Array:
    dtype = _DTYPES.get(tensor.data_type)
    if dtype is None:
        raise _damaged(path, f"{tensor.name!r:.200} has the type {tensor.data_type}")
    if tensor.data_location == _EXTERNAL:
        return decode(_external(path, tensor, ITEM_SIZES[dtype]), dtype)
    (size,) = tensor.dims
    if tensor.raw_data:
        found = decode(tensor.raw_data, dtype) if _whole(tensor, dtype) else np.empty(0)
    elif dtype in ("float16", "bfloat16"):
        found = decode(np.array(tensor.int32_data, "<i8").astype("<u2").tobytes(), dtype)
    else:
        found = np.array(tensor.float_data if dtype == "float32" else tensor.double_data, dtype)
    if len(found) != size:
        raise _damaged(path, f"{tensor.name!r:.200} has not the {size:,} elements of its shape")
    return found


def _whole(tensor: Any, dtype: str) -> bool:
    return len(tensor.raw_data) == tensor.dims[0] * ITEM_SIZES[dtype]


def _external(path: Path, tensor: Any, item: int) -> bytes:
    """Return the bytes of an array that is in a file beside the model."""
    told = {entry.key: entry.value for entry in tensor.external_data}
    place = Path(told.get("location", "").replace("\\", "/"))
    beside = path.parent.resolve()
    inside = not place.is_absolute() and ".." not in place.parts and place.name
    if not inside or not (beside / place).resolve().is_relative_to(beside):
        raise refusal(
            path,
            f"has the array {tensor.name!r:.200} in {str(place)!r:.200}",
            "a file in the model's own folder",
            "Put it there, or export the model as one file.",
        )
    size = tensor.dims[0] * item
    offset, length = told.get("offset", "0"), told.get("length", str(size))
    if not (offset.isdecimal() and len(offset) < 19 and length == str(size)):
        raise _damaged(path, f"{tensor.name!r:.200} is at {offset:.40}, of {length:.40} bytes")
    with Source(beside / place) as source:
        return source.read(int(offset), size)


def _damaged(path: Path, what: str) -> ModelFileError:
    return refusal(
        path,
        f"is no ONNX model that can be read, {what}",
        "a file as onnx.save writes it",
        "Download or export it again.",
    )
