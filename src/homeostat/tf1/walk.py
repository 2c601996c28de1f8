"""Walk a graph backwards: what runs when an operation runs, and what that assigns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

_ASSIGNS = re.compile(r"^(Resource)?(Sparse)?(Assign|Apply|Scatter)")
_HANDS_ON = ("RefSwitch", "Switch", "RefEnter", "Enter", "RefIdentity", "Identity")
_APPLIES = re.compile(r"^(Resource)?(Sparse)?Apply")


def operation_of(element: Any) -> Any:
    """Return the operation of a tensor or variable; an operation is its own."""
    return getattr(element, "op", element)


def reached_by(operations: Iterable[Any]) -> set[Any]:
    """Return all operations that run when some are run, these included.

    Follows data and control edges, and the bodies of functions that are called on the way.
    """
    waiting = list(operations)
    reached = set(waiting)
    while waiting:
        for source in _sources(waiting.pop()):
            if source not in reached:
                reached.add(source)
                waiting.append(source)
    return reached


def assigned(operations: Iterable[Any]) -> set[Any]:
    """Return the variables, as their operations, that some operations assign."""
    return {variable_of(operation) for operation in operations if assigns(operation)}


def applied(operations: Iterable[Any]) -> set[Any]:
    """Return the variables, as their operations, that optimizers change with some operations."""
    return {variable_of(operation) for operation in operations if assigns_gradients(operation)}


def assigns(operation: Any) -> bool:
    """Return whether an operation assigns a variable."""
    return bool(_ASSIGNS.match(operation.type) and operation.inputs)


def assigns_gradients(operation: Any) -> bool:
    """Return whether an operation is an optimizer's, made to assign a variable by its gradient."""
    return bool(_APPLIES.match(operation.type) and operation.inputs)


def variable_of(operation: Any) -> Any:
    """Return the variable, as its operation, that an operation assigns."""
    return variable_behind(operation.inputs[0].op)


def variable_behind(operation: Any) -> Any:
    """Return the variable that control flow or a read hands on; an operation that does neither."""
    seen = set()
    while operation.type in _HANDS_ON and operation.inputs and operation not in seen:
        seen.add(operation)
        operation = operation.inputs[0].op
    return operation


def _sources(operation: Any) -> Iterator[Any]:
    for tensor in operation.inputs:
        yield tensor.op
    yield from operation.control_inputs
    for body in _bodies(operation):
        # A function runs its outputs and whatever in it has side effects.
        for output in (*body.outputs, *getattr(body, "control_outputs", ())):
            yield operation_of(output)


def _bodies(operation: Any) -> Iterator[Any]:
    for attribute in operation.op_def.attr:
        if attribute.type not in ("func", "list(func)"):
            continue
        value = operation.get_attr(attribute.name)
        for function in value if isinstance(value, list) else [value]:
            if function.name:
                definition = operation.graph._get_function(function.name)
                body = getattr(definition, "graph", None)
                if body is not None and hasattr(body, "outputs"):
                    yield body
