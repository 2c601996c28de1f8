"""Does a training op update the moving statistics of the batch norms that it trains?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import tensorflow.compat.v1 as tf

from homeostat.errors import SpecError
from homeostat.tf1.records import BatchNormCall, calls_in
from homeostat.tf1.walk import assigned, operation_of, reached_by

REMEDY = """\
    update_ops = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
    with tf.control_dependencies(update_ops): train_op = ..."""
"""The two lines that make a training op run the updates."""


@dataclass(frozen=True)
class UpdateReport:
    """What a training op does to the statistics of the batch norms that it trains.

    Args:
        missing: calls of which at least one update is not run.
        repeated: calls of layers that are updated more than once in a step.
        updated: calls whose updates all run, once a step.
    """

    missing: tuple[BatchNormCall, ...] = ()
    repeated: tuple[BatchNormCall, ...] = ()
    updated: tuple[BatchNormCall, ...] = ()

    def __str__(self) -> str:
        parts = []
        if self.missing:
            parts += [
                f"{_batch_norms(self.missing)} not updated by the training op:",
                *_lines(self.missing),
                "Moving means and variances stay as they are, so what the network gives with",
                "training=False is wrong. Make the training op wait for the updates:",
                REMEDY,
            ]
        if self.repeated:
            parts += [
                f"{_batch_norms(self.repeated)} updated more than once in a step, since one layer",
                "is called several times; its moving statistics move once for each call:",
                *_lines(self.repeated),
            ]
        if self.updated:
            parts.append(f"{_batch_norms(self.updated)} updated once in a step.")
        return "\n".join(parts) or "The training op trains no batch norm that has updates."


def _batch_norms(calls: tuple[BatchNormCall, ...]) -> str:
    return "1 batch norm is" if len(calls) == 1 else f"{len(calls)} batch norms are"


def _lines(calls: tuple[BatchNormCall, ...]) -> list[str]:
    return [
        f"    {call.name}{f', made at {call.made_at}' if call.made_at else ''}" for call in calls
    ]


def check_updates(train_op: Any) -> UpdateReport:
    """Say which batch norms a training op updates, and which it forgets.

    Looks at the batch norms that the op uses with their batch statistics. Where the op assigns
    variables, those are left out whose gamma and beta it could train but does not: the
    discriminator's step of a GAN need not update the generator.

    Args:
        train_op: an operation or tensor, or a list or tuple of them, as given to `Session.run`.

    Returns:
        The report; `str` of it names each forgotten layer, the line that made it, and the remedy.

    Raises:
        SpecError: ``train_op`` is something else, is empty, or its parts are of several graphs.
    """
    operations = _operations(train_op)
    return report_on(operations[0].graph, reached_by(operations))


def report_on(graph: Any, reached: set[Any], others: Iterable[BatchNormCall] = ()) -> UpdateReport:
    """Return the report on a step of a graph.

    Args:
        graph: the graph.
        reached: all operations that the step runs.
        others: calls to look at besides those that the graph's layers recorded.

    Returns:
        The report.
    """
    trained, trainable = trained_by(graph, reached), _trainable(graph)
    graphs = {id(graph): graph, **{id(each.graph): each.graph for each in reached}}
    missing, run = [], []
    recorded = (call for each in graphs.values() for call in calls_in(each))
    for call in dict.fromkeys((*recorded, *others)):
        updates = {operation_of(update) for update in call.updates}
        if updates <= reached:
            run.append(call)
        elif _concerns(call, updates, reached, trained, trainable):
            missing.append(call)
    times = Counter(call.name for call in run)
    return UpdateReport(
        tuple(missing),
        tuple(call for call in run if times[call.name] > 1),
        tuple(call for call in run if times[call.name] == 1),
    )


def trained_by(graph: Any, reached: set[Any]) -> set[Any]:
    """Return the trainable variables, as their operations, that a step of a graph assigns."""
    return assigned(reached) & _trainable(graph)


def _trainable(graph: Any) -> set[Any]:
    return {variable.op for variable in graph.get_collection(tf.GraphKeys.TRAINABLE_VARIABLES)}


def _concerns(
    call: BatchNormCall,
    updates: set[Any],
    reached: set[Any],
    trained: set[Any],
    trainable: set[Any],
) -> bool:
    """Return whether a step normalizes with a call's batch statistics and trains its layer."""
    if not updates & reached and not _shares_statistics(updates, reached):
        return False
    own = {operation for operation in trainable if operation.name.startswith(f"{call.name}/")}
    return not trained or not own or bool(own & trained)


def _shares_statistics(updates: set[Any], reached: set[Any]) -> bool:
    """Return whether the updates are made of something that the step computes as well.

    Variables, constants and placeholders are shared by calls that have nothing to do with each
    other, so they do not count, nor does reading them.
    """
    seen, waiting = set(updates), list(updates)
    while waiting:
        operation = waiting.pop()
        for tensor in operation.inputs:
            source = tensor.op
            if source in seen:
                continue
            seen.add(source)
            if source not in reached:
                waiting.append(source)
            elif source.inputs and not _only_reads(source):
                return True
    return False


def _only_reads(operation: Any) -> bool:
    reads = ("Identity", "ReadVariableOp", "Cast", "Switch", "RefSwitch", "Enter", "RefEnter")
    return operation.type in reads and all(not tensor.op.inputs for tensor in operation.inputs)


def _operations(train_op: Any) -> list[Any]:
    given = train_op if isinstance(train_op, list | tuple) else [train_op]
    operations = [operation_of(one) for one in given]
    if not operations or not all(isinstance(one, tf.Operation) for one in operations):
        raise SpecError(
            f"train_op={train_op!r} cannot be checked: expected an operation or tensor of a graph, "
            "or a list of them. Give what you give to Session.run, such as "
            "optimizer.minimize(loss)."
        )
    if any(one.graph is not operations[0].graph for one in operations):
        raise SpecError(
            "train_op holds operations of several graphs: expected one graph. Check each graph's "
            "training op with a call of its own."
        )
    return operations
