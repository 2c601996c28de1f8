"""What `recalibrate` did, as a table and in words."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich import box
from rich.table import Table
from rich.text import Text

from homeostat.recalibrate import Recalibration
from homeostat.report.page import show_hidden


def render_table(done: Recalibration) -> Table:
    """Return a table with a line for each norm that was written."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("batch norm", overflow="fold")
    for heading in ("channels", "mean moved, std", "variance ratio", "standard error"):
        table.add_column(heading, justify="right")
    for norm in done.norms:
        table.add_row(
            Text(show_hidden(norm.name)),
            str(len(norm.statistics.mean)),
            *map(_number, (norm.mean_shift, norm.variance_ratio, norm.error)),
        )
    return table


def describe(done: Recalibration) -> Iterator[str]:
    """Yield sentences about what the table does not show."""
    ended = "stopped early, for the figures are certain enough" if done.converged else "all of it"
    yield (
        f"{done.examples:,} examples in {done.batches:,} batches ({ended}), {done.seconds:.1f} s. "
        "Columns show the worst channel."
    )
    skipped = [norm for norm in done.norms if norm.skipped]
    if skipped:
        names = ", ".join(show_hidden(norm.name) for norm in skipped)
        yield f"Left out, for values that were not finite: channels of some batches in {names}."
    if done.left:
        names = ", ".join(map(show_hidden, done.left))
        yield f"As they were, since no finite batch came to them: {names}."


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"
