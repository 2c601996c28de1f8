"""Rows as tables on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from homeostat.report.bench.rows import Row
from homeostat.report.bench.tables import BenchTable, Cell, make_tables


def render_tables(rows: Sequence[Row]) -> list[Table]:
    """Return rich tables; the fastest of a line is bold, what is wrong is red."""
    return [_render(table) for table in make_tables(rows)]


def _render(table: BenchTable) -> Table:
    found = Table(
        title=escape(table.title), title_justify="left", box=None, padding=(0, 2, 0, 0),
        pad_edge=False,
    )  # fmt: skip
    for number, heading in enumerate(table.headings):
        described = number < table.words
        found.add_column(escape(heading), justify="left" if described else "right")
    for line in table.lines:
        found.add_row(*map(_styled, line))
    return found


def _styled(cell: Cell) -> str:
    style = "bold green" if cell.best else "red" if cell.shown in ("wrong", "NaN") else ""
    return f"[{style}]{escape(cell.shown)}[/]" if style else escape(cell.shown)
