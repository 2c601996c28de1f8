"""Graphs in events files, which TensorBoard shows: read the newest, write one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow.compat.v1 as tf
from google.protobuf.message import DecodeError

from homeostat.errors import DataError
from homeostat.tf1.graph.records import NOT_RUN, GraphReport
from homeostat.tf1.graph.stored import StoredGraph

EVENTS_FILE = "events.out.tfevents.homeostat"
"""What we write; a file of this name is ours to replace."""


def events_files(path: Path) -> list[Path]:
    """Return the events files that a path is of: itself, or those in a folder and its folders."""
    if path.is_dir():
        return sorted(each for each in path.rglob("*tfevents*") if each.is_file())
    return [path] if path.is_file() and "tfevents" in path.name else []


def newest_graph(files: list[Path]) -> tuple[StoredGraph, str] | None:
    """Return the graph that was written last, and a note if there are several; None for none.

    Raises:
        DataError: a file is broken before its first graph, or the graph is.
    """
    found = [(*each, path) for path in files for each in _graphs(path)]
    if not found:
        return None
    when, event, path = max(found, key=lambda each: each[0])
    # A graph may be written again as a MetaGraphDef.
    number = max(
        sum(bool(each.graph_def) for _, each, _ in found),
        sum(bool(each.meta_graph_def) for _, each, _ in found),
    )
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))
    note = f"{number} graphs were written; this is the newest, of {at}, in {path}."
    try:
        if event.meta_graph_def:
            meta = tf.MetaGraphDef.FromString(event.meta_graph_def)
            graph = StoredGraph(meta.graph_def, meta.collection_def)
        else:
            graph = StoredGraph(tf.GraphDef.FromString(event.graph_def))
    except DecodeError as error:
        raise DataError(
            f"the graph in {path} cannot be read: expected a GraphDef, as tf.summary.FileWriter "
            "writes it. Write it again."
        ) from error
    return graph, note if number > 1 else ""


def _graphs(path: Path) -> Iterator[tuple[float, Any]]:
    """Yield when a graph was written, and its event."""
    found = False
    try:
        for event in tf.train.summary_iterator(str(path)):
            if event.graph_def or event.meta_graph_def:
                found = True
                yield event.wall_time, event
    except (tf.errors.OpError, DecodeError) as error:
        # A program that is still running, or was stopped, leaves a last record that is not whole.
        if not found:
            raise DataError(
                f"{path} cannot be read: expected an events file, as tf.summary.FileWriter writes "
                "it. Remove it if it was cut short."
            ) from error


def write_graphs(folder: Path, graphs: list[tuple[Any, GraphReport]]) -> None:
    """Write graphs where TensorBoard finds them, several in folders of their own.

    Only files that an earlier call wrote are replaced.

    Args:
        folder: where to write.
        graphs: each a `tf.Graph` or a `StoredGraph`, with its report.

    Raises:
        DataError: the folder cannot be written to, or a graph is too large to be written.
    """
    try:
        for old in (folder / EVENTS_FILE, *folder.glob(f"graph-*/{EVENTS_FILE}")):
            old.unlink(missing_ok=True)
        for number, (graph, report) in enumerate(graphs, start=1):
            _write(folder / f"graph-{number}" if len(graphs) > 1 else folder, graph, report)
    except (OSError, tf.errors.OpError, ValueError) as error:
        raise DataError(
            f"the graph cannot be written to {folder}, {error}: expected a folder to write to, and "
            "a graph of less than 2 GB. Choose another folder with --out."
        ) from error


def _write(folder: Path, graph: Any, report: GraphReport) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stored = isinstance(graph, StoredGraph)
    graph_def = graph.graph_def if stored else graph.as_graph_def(add_shapes=True)
    value = tf.Summary.Value(
        tag="homeostat",
        metadata=tf.SummaryMetadata(
            plugin_data=tf.SummaryMetadata.PluginData(plugin_name="text"),
        ),
        tensor=tf.make_tensor_proto(_text(report), dtype=tf.string),
    )
    now = time.time()
    events = (
        tf.Event(wall_time=now, file_version="brain.Event:2"),
        tf.Event(wall_time=now, graph_def=graph_def.SerializeToString()),
        tf.Event(wall_time=now, summary=tf.Summary(value=[value])),
    )
    beside = folder / f".{EVENTS_FILE}"
    with tf.io.TFRecordWriter(str(beside)) as writer:
        for event in events:
            writer.write(event.SerializeToString())
    beside.replace(folder / EVENTS_FILE)


def _text(report: GraphReport) -> str:
    """Return a report for TensorBoard's page of texts, with the operations to search for."""
    forgotten = [each for each in report.layers if each.verdict == NOT_RUN]
    lines = [f"# {report.title}", *(f"```\n{each}\n```" for each in report.findings)]
    if forgotten:
        lines.append("Updates that no training op runs, by their names in the graph:")
        lines += [f"- `{name}`" for layer in forgotten for name in layer.updates]
    return "\n\n".join((*lines, *report.notes))
