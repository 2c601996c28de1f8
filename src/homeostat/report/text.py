"""Rows as a table on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from homeostat.report.published import SINGLE_BATCH_STATISTICS, SINGLE_MOVING_STATISTICS
from homeostat.report.rows import Row
from homeostat.report.summary import Group, Pair, Scores, summarize

MISSING = "–"


def render_tables(rows: Sequence[Row]) -> list[Table]:
    """Return a rich table of test accuracies for each group of rows."""
    return [_table(group) for group in summarize(rows)]


def render_notes(rows: Sequence[Row]) -> list[str]:
    """Return what is said below the tables: the claim, the wrong mode and the speed."""
    notes: list[str] = []
    for group in summarize(rows):
        notes.extend(note for note in (claim(group), wrong_mode(group), speed(group)) if note)
    return notes


def _table(group: Group) -> Table:
    # Narrow enough, published figures and all, for a terminal of 80 columns.
    table = Table(
        title=f"Test accuracy without and with batch norm: {escape(group.name)}",
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
        pad_edge=False,
    )
    for heading in ("start", "activation"):
        table.add_column(heading)
    for heading in ("rate", "without", "with", "gain"):
        table.add_column(heading, justify="right")
    if group.published:
        table.add_column("published", justify="right")
    for pair in group.pairs:
        cells = [escape(pair.start), escape(pair.activation), f"{pair.learning_rate:g}"]
        cells += [score(pair.without), score(pair.with_), _gain(pair)]
        table.add_row(*cells, *([published(pair)] if group.published else []))
    return table


def score(scores: Scores) -> str:
    """Return the mean over the seeds, with half the spread where there are several."""
    if scores.mean is None:
        return MISSING
    spread = f" ±{scores.spread / 2:.3f}" if len(scores.values) > 1 else ""
    return f"{scores.mean:.4f}{spread}"


def published(pair: Pair) -> str:
    """Return the published accuracies without and with batch norm."""
    if pair.published is None:
        return MISSING
    return f"{pair.published.without:.4f} / {pair.published.with_:.4f}"


def _gain(pair: Pair) -> str:
    if pair.gain is None:
        return MISSING
    color = "green" if pair.gain > 0.005 else "red" if pair.gain < -0.005 else "default"
    return f"[{color}]{pair.gain:+.4f}[/]"


def claim(group: Group) -> str | None:
    """Return in a sentence how often batch norm helped, and where it helped most."""
    pairs = [pair for pair in group.pairs if pair.gain is not None]
    if not pairs:
        return None
    better = sum(pair.gain > 0 for pair in pairs if pair.gain is not None)
    best = max(pairs, key=lambda pair: pair.gain or 0.0)
    return (
        f"With batch norm the network did better in {better} of {len(pairs)} configurations; most "
        f"of all with {best.name}: {best.without.mean:.4f} without, {best.with_.mean:.4f} with."
    )


def wrong_mode(group: Group) -> str | None:
    """Return what the wrong mode costs, on the best network of the group."""
    pairs = [pair for pair in group.pairs if None not in pair.single]
    if not pairs:
        return None
    best = max(pairs, key=lambda pair: pair.single[1] or 0.0)
    wrong, right = best.single
    beside = ""
    if group.published:
        beside = f" (published: {SINGLE_BATCH_STATISTICS:.2f} and {SINGLE_MOVING_STATISTICS:.2f})"
    return (
        f"The wrong mode, one image at a time with {best.name}: {wrong:.4f} by batch statistics, "
        f"{right:.4f} by moving statistics{beside}."
    )


def speed(group: Group) -> str | None:
    """Return the study's steps per second beside those of model.fit."""
    row = group.speed
    if row is None:
        return None
    alone = f" ({row.alone:,.0f} for one by itself)" if row.networks > 1 else ""
    number = f"{row.networks} networks" if row.networks > 1 else "one network"
    return (
        f"Speed: {row.together:,.0f} steps/s with {number} at a time{alone}; model.fit at its "
        f"defaults: {row.fit:,.0f} steps/s; {row.ratio:.1f} times as fast."
    )
