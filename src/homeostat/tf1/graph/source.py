"""Open what is named on the command line: a script, a checkpoint or events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from homeostat.errors import DataError
from homeostat.tf1.graph.checkpoint import prefix_of, stored_graph, stored_layers
from homeostat.tf1.graph.describe import describe_graph
from homeostat.tf1.graph.events import events_files, newest_graph
from homeostat.tf1.graph.records import GraphReport
from homeostat.tf1.graph.script import Recorded, record_script

_SCRIPTS = (".py", ".ipynb")


@dataclass(frozen=True)
class Opened:
    """What was found.

    Args:
        graphs: each a `tf.Graph`, a `StoredGraph`, or None where only variables are known; with
            its report.
        notes: what there is to say of the source.
        code: the exit code of a script.
    """

    graphs: tuple[tuple[Any, GraphReport], ...]
    notes: tuple[str, ...] = ()
    code: int = 0


def open_source(source: Path, arguments: Sequence[str] = (), *, whole: bool = False) -> Opened:
    """Open a script, a checkpoint or events, and describe the graphs in it.

    Args:
        source: a Python file or notebook, which is run; a checkpoint's prefix, one of its files or
            its folder; an events file, or a folder with such.
        arguments: a script's own.
        whole: run a script to its end rather than up to its first training step.

    Raises:
        DataError: the source is none of these, or is broken.
        UnsupportedError: the script is Python 2.
    """
    if source.suffix in _SCRIPTS:
        return _of_script(source, record_script(source, arguments, whole=whole))
    if arguments:
        raise DataError(
            f"{' '.join(arguments)!r} follows {source}: expected arguments after a script only "
            "(.py, .ipynb). Put the options of `homeostat graph` before the source."
        )
    prefix = prefix_of(source)
    graph = stored_graph(prefix) if prefix is not None else None
    if graph is not None:
        return Opened(((graph, describe_graph(graph, title=str(prefix))),))
    files = events_files(source)
    newest = newest_graph(files) if files else None
    if newest is not None:
        graph, note = newest
        return Opened(((graph, describe_graph(graph, title=str(source))),), (note,) if note else ())
    if prefix is not None:
        return _of_variables(prefix)
    raise _nothing(source, files)


def _of_script(script: Path, recorded: Recorded) -> Opened:
    described: dict[GraphReport, Any] = {}
    for graph, steps, apart in recorded.graphs:
        report = describe_graph(graph, title=str(script), steps=steps, apart=apart)
        # Graphs that are made again and again are told once.
        if report.layers:
            described.setdefault(report, graph)
    graphs = [(graph, report) for report, graph in described.items()]
    notes = []
    if not graphs:
        notes.append("The script made no graph with a layer in it.")
    if recorded.stopped_at:
        notes.append(
            f"Stopped before the first training step, at {recorded.stopped_at}; nothing was "
            "trained. With --whole the script runs to its end, and graphs that it makes later are "
            "seen as well."
        )
    return Opened(tuple(_numbered(graphs)), tuple(notes), recorded.code)


def _numbered(graphs: list[tuple[Any, GraphReport]]) -> list[tuple[Any, GraphReport]]:
    if len(graphs) == 1:
        return graphs
    return [
        (graph, replace(report, title=f"{report.title}, graph {number} of {len(graphs)}"))
        for number, (graph, report) in enumerate(graphs, start=1)
    ]


def _of_variables(prefix: Path) -> Opened:
    note = (
        f"There is no {prefix.name}.meta, so these are the layers that the names of the variables "
        "tell of. Not known: their order and outputs, layers without variables, training ops, and "
        "whether these update the batch norms. Give the script or its events to see that."
    )
    return Opened(((None, GraphReport(str(prefix), stored_layers(prefix), notes=(note,))),))


def _nothing(source: Path, files: list[Path]) -> DataError:
    expected = (
        "expected a script (.py, .ipynb), a checkpoint (a prefix such as model.ckpt-1000, its "
        ".meta, or its folder) or events (events.out.tfevents.*, or their folder)"
    )
    if files:
        return DataError(
            f"{source} holds events without a graph: {expected}. Write the graph with "
            "tf.summary.FileWriter(folder, session.graph)."
        )
    if source.is_dir():
        return DataError(
            f"{source} holds neither a checkpoint nor events: {expected}. Check the path."
        )
    what = "is none that can be read" if source.exists() else "does not exist"
    return DataError(f"{source} {what}: {expected}. Check the path.")
