"""What `convert` moved where, as a table and in words."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.table import Table
from rich.text import Text

from homeostat.convert import Conversion
from homeostat.report.page import show_hidden


def render_table(done: Conversion) -> Table:
    """Return a table with a line for each norm that was moved."""
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("from", "to"):
        table.add_column(heading, overflow="fold")
    table.add_column("channels", justify="right")
    table.add_column("matched by")
    table.add_column("largest error", justify="right")
    for norm in done.moved:
        table.add_row(
            Text(show_hidden(norm.source)),
            Text(show_hidden(norm.target)),
            str(norm.channels),
            norm.matched,
            f"{norm.error:.1e}",
        )
    return table


def describe(done: Conversion) -> Iterator[str]:
    """Yield a sentence for each thing that could not be taken as it was."""
    source, target = show_hidden(done.source), show_hidden(done.target)
    yield f"{len(done.moved)} batch norms went from {source} to {target}."
    notes: dict[str, list[str]] = {}
    for norm in done.moved:
        for note in norm.notes:
            notes.setdefault(note, []).append(norm.target)
    for note, names in notes.items():
        where = "all" if len(names) == len(done.moved) else ", ".join(map(show_hidden, names))
        yield f"{where}: {note}."
