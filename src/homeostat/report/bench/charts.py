"""Rows as Plotly figures: one for each shape, a bar for every column of every framework."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from homeostat.report.bench.floor import floor_of
from homeostat.report.bench.rows import TimeRow

Figure = dict[str, Any]

ROLES = {"plain": "layer1", "relu": "layer3", "add+relu": "layer2"}
"""The colour of each form, by its name in the page's style."""


def time_bars(rows: Sequence[TimeRow]) -> Figure:
    """Return the times of one shape, layout, dtype and work, with the floor as a line.

    Args:
        rows: of that call, measured or not; the controls' too.
    """
    shown = [row for row in rows if row.copies is not None and row.column != "copy"]
    places = list(dict.fromkeys(_place(row) for row in sorted(shown, key=_order)))
    traces = [_trace([row for row in shown if row.form == form], form) for form in ROLES]
    floors = sorted({floor_of(row.work, row.form) for row in rows})
    lines = [
        {
            "type": "line", "x0": floor, "x1": floor, "yref": "paper", "y0": 0, "y1": 1,
            "line": {"color": "#808890", "width": 1.5, "dash": "dash"},
        }
        for floor in floors
    ]  # fmt: skip
    return {
        "data": [trace for trace in traces if trace["x"]],
        "layout": {
            "height": 90 + 20 * len(places) * max(1, len(traces) - 1),
            "barmode": "group",
            "bargap": 0.25,
            "margin": {"l": 150, "r": 20, "t": 10, "b": 45},
            "xaxis": {"title": {"text": "copies of the tensor"}, "rangemode": "tozero"},
            "yaxis": {"categoryorder": "array", "categoryarray": places[::-1]},
            "shapes": lines,
        },
    }


def _order(row: TimeRow) -> tuple[Any, ...]:
    return (row.column == "again", row.environment.framework, row.column.startswith("homeostat"))


def _place(row: TimeRow) -> str:
    # Plotly reads tags in labels.
    return html.escape(f"{row.column} ({row.environment.framework})")


def _trace(rows: Sequence[TimeRow], form: str) -> dict[str, Any]:
    above, below = [], []
    for row in rows:
        one_copy = (row.p50_ms or 0.0) / (row.copies or 1.0) or 1.0
        above.append(((row.p80_ms or 0.0) - (row.p50_ms or 0.0)) / one_copy)
        below.append(((row.p50_ms or 0.0) - (row.p20_ms or 0.0)) / one_copy)
    return {
        "type": "bar",
        "orientation": "h",
        "name": form,
        "role": ROLES[form],
        "x": [row.copies for row in rows],
        "y": [_place(row) for row in rows],
        "error_x": {
            "type": "data", "array": above, "arrayminus": below, "thickness": 1, "width": 2,
            "color": "#808890",
        },
        "hovertemplate": f"%{{y}}, {form}: %{{x:.1f}} copies<extra></extra>",
    }  # fmt: skip
