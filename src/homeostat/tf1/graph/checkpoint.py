"""Describe the graph that was saved with a checkpoint, or what its variables tell without one."""

from __future__ import annotations

from pathlib import Path

import tensorflow.compat.v1 as tf
from google.protobuf.message import DecodeError

from homeostat.errors import DataError
from homeostat.tf1.graph.records import UNKNOWN, LayerRow
from homeostat.tf1.graph.stored import StoredGraph
from homeostat.tf1.graph.variables import (
    Variable,
    kind_by_names,
    layers_of,
    parameters_of,
    without_slots,
)

_ATTRIBUTE = "/.ATTRIBUTES/VARIABLE_VALUE"


def prefix_of(path: Path) -> Path | None:
    """Return the prefix of the checkpoint that a path is of; None if it is of none.

    Args:
        path: a prefix, a file of a checkpoint, or a folder, whose newest checkpoint is taken.

    Raises:
        DataError: the folder's file ``checkpoint`` names none.
    """
    if (path / "checkpoint").is_file():
        state = tf.train.get_checkpoint_state(str(path))
        newest = state.model_checkpoint_path if state is not None else ""
        if not newest or not (tf.train.checkpoint_exists(newest) or _meta(Path(newest)).is_file()):
            raise DataError(
                f"{path / 'checkpoint'} names no checkpoint that is there: expected the files of "
                "the newest beside it. Give one by its prefix, such as model.ckpt-1000."
            )
        return Path(newest)
    if path.suffix in (".meta", ".index") and path.is_file():
        return path.with_suffix("")
    if path.is_dir():
        return None
    return path if tf.train.checkpoint_exists(str(path)) or _meta(path).is_file() else None


def stored_graph(prefix: Path) -> StoredGraph | None:
    """Return the graph that was saved with a checkpoint, or None if none was.

    Raises:
        DataError: its file is broken.
    """
    path = _meta(prefix)
    if not path.is_file():
        return None
    try:
        meta = tf.MetaGraphDef.FromString(path.read_bytes())
    except DecodeError as error:
        raise DataError(
            f"{path} cannot be read: expected a MetaGraphDef, as tf.train.Saver writes it. Move it "
            "away to see what the variables alone tell."
        ) from error
    return StoredGraph(meta.graph_def, meta.collection_def)


def stored_layers(prefix: Path) -> tuple[LayerRow, ...]:
    """Return the layers that the names and shapes of a checkpoint's variables tell of.

    Raises:
        DataError: the checkpoint cannot be read, or holds no variable.
    """
    try:
        shapes = tf.train.load_checkpoint(str(prefix)).get_variable_to_shape_map()
    except (tf.errors.OpError, RuntimeError, ValueError) as error:
        raise DataError(
            f"{prefix} cannot be read, {error}: expected a checkpoint as tf.train.Saver writes "
            "it. Check that all its files are there and whole."
        ) from error
    variables = without_slots(
        Variable(name.removesuffix(_ATTRIBUTE), tuple(shape))
        for name, shape in sorted(shapes.items())
        if "/.OPTIMIZER_SLOT/" not in name and not name.startswith("_CHECKPOINTABLE")
    )
    if not variables:
        raise DataError(
            f"{prefix} holds no variable of a layer: expected a trained network. Give another "
            "checkpoint."
        )
    return tuple(
        LayerRow(name, kind_by_names(name, members), None, parameters_of(members), verdict=UNKNOWN)
        for name, members in layers_of(variables).items()
    )


def _meta(prefix: Path) -> Path:
    return prefix.with_name(f"{prefix.name}.meta")
