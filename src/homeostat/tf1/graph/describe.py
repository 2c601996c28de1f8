"""Describe a graph: its layers, its training ops, and what these forget."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import tensorflow.compat.v1 as tf

from homeostat.errors import SpecError
from homeostat.tf1.graph.batch_norms import find_calls
from homeostat.tf1.graph.layers import find_layers
from homeostat.tf1.graph.records import (
    APART,
    NO_STEP,
    NOT_RUN,
    REPEATED,
    RUN,
    UNUSED,
    GraphReport,
    LayerRow,
)
from homeostat.tf1.graph.steps import Step, find_steps
from homeostat.tf1.graph.stored import StoredGraph
from homeostat.tf1.graph.variables import variables_of
from homeostat.tf1.records import BatchNormCall
from homeostat.tf1.updates import UpdateReport, report_on
from homeostat.tf1.walk import operation_of


def describe_graph(
    graph: Any = None,
    *,
    title: str = "graph",
    steps: Sequence[Step] = (),
    apart: Collection[Any] = (),
) -> GraphReport:
    """Say what layers a graph has and whether its training ops update its batch norms.

    Args:
        graph: a `tf.Graph`, a GraphDef or a MetaGraphDef; the default graph if None.
        title: what to call it.
        steps: the training steps that were taken; others are found by what applies gradients.
        apart: operations that were run apart from training; updates among them are not forgotten.

    Returns:
        A `GraphReport`.

    Raises:
        SpecError: ``graph`` is something else.
        DataError: it is a broken GraphDef.
    """
    graph = _graph(graph)
    variables = variables_of(graph)
    calls, steps = find_calls(graph, variables), find_steps(graph, steps)
    reports = [(step, _report(graph, step, calls, apart)) for step in steps]
    layers = [
        _judged(layer, [call for call in calls if call.name == layer.name], reports, set(apart))
        for layer in find_layers(graph, variables)
    ]
    return GraphReport(
        title,
        tuple(layers),
        tuple(dict.fromkeys(step.name for step in steps)),
        tuple(_findings(reports)),
        tuple(_notes(layers, bool(steps))),
        any(report.missing for _, report in reports),
    )


def _graph(graph: Any) -> Any:
    if graph is None:
        return tf.get_default_graph()
    if isinstance(graph, tf.MetaGraphDef):
        return StoredGraph(graph.graph_def, graph.collection_def)
    if isinstance(graph, tf.GraphDef):
        return StoredGraph(graph)
    if isinstance(graph, tf.Graph | StoredGraph):
        return graph
    raise SpecError(
        f"graph={graph!r} cannot be described: expected a tf.Graph, a GraphDef or a MetaGraphDef. "
        "Give session.graph, or None for the default graph."
    )


def _report(
    graph: Any, step: Step, calls: list[BatchNormCall], apart: Collection[Any]
) -> UpdateReport:
    """Return the report on a step, without what is run apart from it."""
    report = report_on(graph, set(step.reached), calls)
    missing = (
        call for call in report.missing if not {operation_of(x) for x in call.updates} <= set(apart)
    )
    return dataclasses.replace(report, missing=tuple(missing))


def _judged(
    layer: LayerRow,
    calls: list[BatchNormCall],
    reports: list[tuple[Step, UpdateReport]],
    apart: set[Any],
) -> LayerRow:
    """Return a layer with its updates and what training ops do with them."""
    updates = tuple(operation_of(each).name for call in calls for each in call.updates)
    if not updates:
        return layer
    verdict = UNUSED if reports else NO_STEP
    if reports and all(operation_of(each) in apart for call in calls for each in call.updates):
        verdict = APART
    for found, of in ((RUN, "updated"), (REPEATED, "repeated"), (NOT_RUN, "missing")):
        if any(call in getattr(report, of) for _, report in reports for call in calls):
            verdict = found
    return dataclasses.replace(
        layer, made_at=calls[0].made_at or layer.made_at, updates=updates, verdict=verdict
    )


def _findings(reports: list[tuple[Step, UpdateReport]]) -> list[str]:
    """Return what is to be said of training ops, the same words once."""
    told: dict[str, str] = {}
    for step, report in reports:
        wrong = UpdateReport(report.missing, report.repeated)
        if report.missing or report.repeated:
            place = f", run at {step.taken_at}" if step.taken_at else ""
            told.setdefault(str(wrong), f"Training op {step.name}{place}:")
    return [f"{who}\n{words}" for words, who in told.items()]


def _notes(layers: list[LayerRow], trained: bool) -> list[str]:
    notes = []
    norms = [layer for layer in layers if layer.is_batch_norm]
    still = [layer.name for layer in norms if not layer.updates]
    if not layers:
        notes.append("No layers: no variable, pooling or dropout is in this graph.")
    elif not trained:
        notes.append("No training op: nothing in this graph applies gradients.")
    if still and trained:
        notes.append(
            f"Nothing updates the statistics of {', '.join(still)}: made with training=False, "
            "the usual choice for a network that is frozen, and a mistake in one that is trained."
        )
    unused = [layer.name for layer in norms if layer.verdict == UNUSED]
    if unused:
        notes.append(f"No training op trains {', '.join(unused)}, so nothing is asked of it.")
    return notes
