"""The layers of a graph as a table on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from homeostat.tf1.graph.records import GraphReport, LayerRow

MISSING = "–"
_COLORS = {"run": "green", "run apart": "green", "not run": "red", "repeated": "yellow"}


def render_graph(report: GraphReport) -> Table:
    """Return the layers of a graph as a rich table."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("layer", overflow="fold", min_width=12)
    table.add_column("kind")
    table.add_column("output", overflow="fold")
    table.add_column("params", justify="right")
    table.add_column("updates")
    files = {_file(layer) for layer in report.layers if layer.made_at}
    if files:
        table.add_column("line" if len(files) == 1 else "made at", overflow="fold")
    for layer in report.layers:
        cells = [escape(layer.name), layer.kind or MISSING, _shape(layer)]
        cells += [MISSING if layer.parameters is None else f"{layer.parameters:,}", _updates(layer)]
        if files:
            place = Path(layer.made_at).name
            cells.append(escape(place if len(files) > 1 else place.rpartition(":")[2]))
        table.add_row(*cells)
    return table


def describe_in_words(report: GraphReport) -> list[str]:
    """Return what is said below the table: sums, training ops, what they forget, what to know."""
    words = [_sums(report)] if report.layers else []
    if report.steps:
        words.append(f"Training ops: {', '.join(report.steps)}")
    norms = [layer for layer in report.layers if layer.verdict == "run"]
    if norms and not report.findings:
        verb = "is" if len(norms) == 1 else "are"
        words.append(f"{_count(len(norms), 'batch norm')} {verb} updated once in a step.")
    return [*words, *report.findings, *report.notes]


def _sums(report: GraphReport) -> str:
    known = sum(layer.parameters or 0 for layer in report.layers)
    least = "at least " if any(layer.parameters is None for layer in report.layers) else ""
    norms = sum(layer.is_batch_norm for layer in report.layers)
    return (
        f"{_count(len(report.layers), 'layer')}, {_count(norms, 'batch norm')}, "
        f"{least}{known:,} parameters, moving statistics with them."
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _file(layer: LayerRow) -> str:
    return layer.made_at.rpartition(":")[0]


def _shape(layer: LayerRow) -> str:
    if layer.output is None:
        return MISSING
    return " × ".join("?" if size is None else str(size) for size in layer.output)


def _updates(layer: LayerRow) -> str:
    if not layer.is_batch_norm:
        return ""
    if not layer.updates:
        return layer.verdict or "none"
    color = _COLORS.get(layer.verdict, "default")
    return f"{len(layer.updates)}, [{color}]{layer.verdict}[/]"
