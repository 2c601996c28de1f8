"""A graph from a file, with as much of the face of `tf.Graph` as it takes to walk it.

`tf.import_graph_def` would refuse a graph with an operation that this TensorFlow does not know, as
old programs have; nothing here looks at what operations do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow.compat.v1 as tf
from google.protobuf.message import DecodeError
from tensorflow.core.framework.op_def_pb2 import OpDef
from tensorflow.core.framework.variable_pb2 import VariableDef

from homeostat.errors import DataError
from homeostat.tf1.walk import applied

_NO_FUNCTIONS = OpDef()


class StoredTensor:
    """An output of a stored operation.

    Args:
        op: the operation.
        shape: its shape, unknown if the file does not tell.
    """

    def __init__(self, op: StoredOperation, shape: Any) -> None:
        self.op, self.shape = op, shape


class StoredOperation:
    """A node of a graph that was stored.

    Args:
        node: its NodeDef.
        graph: the graph that it is in.
    """

    # Functions are not followed into.
    op_def = _NO_FUNCTIONS
    traceback = ()

    def __init__(self, node: Any, graph: StoredGraph) -> None:
        self.name, self.type, self.graph, self._node = node.name, node.op, graph, node
        self.inputs: list[StoredTensor] = []
        self.control_inputs: list[StoredOperation] = []
        shapes = node.attr["_output_shapes"].list.shape if "_output_shapes" in node.attr else ()
        self.outputs = [StoredTensor(self, _shape(shape)) for shape in shapes]

    def get_attr(self, name: str) -> Any:
        """Return a shape that is an attribute.

        Raises:
            ValueError: there is none of that name.
        """
        if name not in self._node.attr:
            raise ValueError(f"{self.name} has no attribute {name!r}.")
        return self._node.attr[name].shape

    def output(self, index: int) -> StoredTensor:
        """Return an output, made if the file does not tell of it."""
        if index < len(self.outputs):
            return self.outputs[index]
        return StoredTensor(self, tf.TensorShape(None))


class StoredGraph:
    """A graph that was stored.

    Args:
        graph_def: its GraphDef.
        collections: the MetaGraphDef's collections, if there are any.

    Raises:
        DataError: it has no operations, or they do not fit together.
    """

    def __init__(self, graph_def: Any, collections: Mapping[str, Any] | None = None) -> None:
        self.graph_def = graph_def
        self._operations: dict[str, StoredOperation] = {}
        for node in graph_def.node:
            if node.name in self._operations:
                raise _broken(f"two operations are called {node.name!r}")
            self._operations[node.name] = StoredOperation(node, self)
        if not self._operations:
            raise _broken("it holds no operation")
        for node in graph_def.node:
            self._connect(self._operations[node.name], node)
        self._collections = collections or {}

    def _connect(self, operation: StoredOperation, node: Any) -> None:
        for text in node.input:
            name, _, index = text.partition(":")
            source = self._operations.get(name.removeprefix("^"))
            if source is None or (index and not index.isdecimal()):
                raise _broken(f"{node.name!r} has the input {text!r}, which is not there")
            if name.startswith("^"):
                operation.control_inputs.append(source)
            else:
                operation.inputs.append(source.output(int(index or 0)))

    def get_operations(self) -> list[StoredOperation]:
        """Return all operations in the order in which they were made."""
        return list(self._operations.values())

    def get_collection(self, name: str) -> list[StoredTensor]:
        """Return a collection of operations, tensors or variables, as tensors.

        Without collections, what an optimizer's operation changes is trainable.

        Raises:
            DataError: the collection is broken.
        """
        if name == tf.GraphKeys.TRAINABLE_VARIABLES and name not in self._collections:
            return [each.output(0) for each in applied(self._operations.values())]
        if name not in self._collections:
            return []
        stored = self._collections[name]
        names = list(stored.node_list.value)
        for value in stored.bytes_list.value:
            try:
                names.append(VariableDef.FromString(value).variable_name)
            except DecodeError as error:
                raise _broken(f"its collection {name!r} cannot be read") from error
        # A tensor's name has its index, a variable's too, an operation's not.
        found = (self._operations.get(each.partition(":")[0]) for each in names)
        return [each.output(0) for each in found if each is not None]


def _shape(proto: Any) -> Any:
    try:
        return tf.TensorShape(proto)
    except (TypeError, ValueError) as error:
        raise _broken("it has a shape that is none") from error


def _broken(what: str) -> DataError:
    return DataError(
        f"the stored graph is broken, {what}: expected a graph as TensorFlow writes it. Store it "
        "again, with tf.train.Saver or tf.summary.FileWriter."
    )
