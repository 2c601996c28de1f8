"""Find the training ops of a graph: those that a session ran, and those that only stand in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow.compat.v1 as tf

from homeostat.tf1.walk import assigns, assigns_gradients, reached_by, variable_of

_MOVES = re.compile(r"Assign(?:Add|Sub)|(?:Resource)?Scatter(?:Nd)?(?:Add|Sub)")
_GRADIENTS = re.compile(r"(?:^|/)gradients(?:_\d+)?/")


@dataclass(frozen=True)
class Step:
    """A training op, or several operations that were run together.

    Args:
        name: its name.
        reached: all operations that it runs.
        taken_at: the user's line that ran it; "" if none did.
    """

    name: str
    reached: frozenset[Any]
    taken_at: str = ""


def is_gradient(operation: Any) -> bool:
    """Return whether an operation is part of the gradients."""
    return _GRADIENTS.search(operation.name) is not None


def step_of(graph: Any, operations: Iterable[Any], taken_at: str) -> Step | None:
    """Return what a session was asked to run, as a training step; None if it trains nothing."""
    operations = sorted(operations, key=lambda operation: operation.name)
    reached, applications = reached_by(operations), _applications(graph)
    if not reached & applications:
        return None
    training = [each for each in operations if reached_by([each]) & applications]
    return Step(" + ".join(each.name for each in training), frozenset(reached), taken_at)


def find_steps(graph: Any, taken: Sequence[Step] = ()) -> list[Step]:
    """Return the training steps of a graph.

    Args:
        graph: a `tf.Graph` or a `StoredGraph`.
        taken: the steps that sessions took or were about to take.

    Returns:
        Those, and for every other operation that applies gradients what comes last of all that
        depends on it, as `Optimizer.minimize` and `tf.group` return it.
    """
    ran = set().union(*(step.reached for step in taken))
    waiting = _applications(graph) - ran
    steps = list(taken)
    if not waiting:
        return steps
    found: dict[frozenset[Any], Step] = {}
    for operation in _last(graph, waiting):
        reached = frozenset(reached_by([operation]))
        step, applies = Step(operation.name, reached), reached & waiting
        # Of several that train the same, the one that does most.
        if applies not in found or len(found[applies].reached) < len(reached):
            found[applies] = step
    return [*steps, *found.values()]


def _applications(graph: Any) -> set[Any]:
    """Return the operations that change trainable variables step by step.

    Not those that initialize, restore or copy them.
    """
    trainable = {each.op for each in graph.get_collection(tf.GraphKeys.TRAINABLE_VARIABLES)}
    return {
        operation
        for operation in graph.get_operations()
        if assigns(operation)
        and variable_of(operation) in trainable
        and (
            assigns_gradients(operation)
            or _MOVES.match(operation.type)
            or _comes_of_gradients(operation)
        )
    }


def _comes_of_gradients(operation: Any) -> bool:
    waiting = [tensor.op for tensor in operation.inputs[1:]]
    seen = set(waiting)
    while waiting:
        source = waiting.pop()
        if is_gradient(source):
            return True
        new = {tensor.op for tensor in source.inputs} - seen
        seen |= new
        waiting += new
    return False


def _last(graph: Any, operations: set[Any]) -> list[Any]:
    """Return what depends on some operations and has nothing that depends on it."""
    # TRAIN_OP does not tell: it holds what minimize returned, not what was made of that.
    followers: dict[Any, list[Any]] = {}
    for operation in graph.get_operations():
        for source in (*(tensor.op for tensor in operation.inputs), *operation.control_inputs):
            followers.setdefault(source, []).append(operation)
    waiting, seen = list(operations), set(operations)
    while waiting:
        new = set(followers.get(waiting.pop(), ())) - seen
        seen |= new
        waiting += new
    last = [each for each in graph.get_operations() if each in seen and each not in followers]
    # In a loop, everything has a follower.
    return last or sorted(operations, key=lambda operation: operation.name)
