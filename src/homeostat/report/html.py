"""Rows as one HTML file that needs nothing else, no network and no server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from homeostat.errors import DataError
from homeostat.report import charts, text
from homeostat.report.page import render_page, write_page
from homeostat.report.published import SOURCE
from homeostat.report.rows import Row
from homeostat.report.summary import Group, Pair, summarize

REPORT_FILE = "report.html"
"""Name of the report in a study's folder."""


def write_report(rows: Sequence[Row], path: Path) -> Path:
    """Write the report of these rows.

    Args:
        rows: a study's rows; at least one trained network among them.
        path: where the HTML goes; an older report there is replaced.

    Returns:
        ``path``.

    Raises:
        DataError: there is nothing to report, or the file cannot be written.
        MissingExtraError: jinja2 or plotly is not installed.
    """
    return write_page(render_report(rows), path)


def render_report(rows: Sequence[Row]) -> str:
    """Return the report's HTML.

    Raises:
        DataError: there is no trained network among the rows.
        MissingExtraError: jinja2 or plotly is not installed.
    """
    groups = summarize(rows)
    if not groups:
        raise DataError(
            "there are no rows to report: expected at least one trained network. Run "
            "`homeostat study` first, with this folder as --out."
        )
    sections = [_section(number, group) for number, group in enumerate(groups)]
    figures = {key: figure for section in sections for key, figure in section["figures"].items()}
    return render_page(
        "report.html.j2",
        extra="study",
        again="homeostat report",
        sections=sections,
        figures=figures,
        source=SOURCE,
    )


def _section(number: int, group: Group) -> dict[str, Any]:
    prefix = f"g{number}"
    figures: dict[str, charts.Figure] = {f"{prefix}-grid": charts.accuracy_grid(group)}
    curves: list[dict[str, str]] = []
    choices: list[dict[str, Any]] = []
    for index, pair in enumerate(group.pairs):
        key = f"{prefix}-curve{index}"
        figures[key] = charts.accuracy_curves(pair)
        curves.append({"name": pair.name, "figure": key})
        inside = _look_inside(f"{prefix}-inside{index}", pair)
        figures |= inside
        choices.append({"name": pair.name, "figures": list(inside)})
    bars = charts.wrong_mode_bars(group)
    if bars:
        figures[f"{prefix}-single"] = bars
    return {
        "key": prefix,
        "group": group,
        "figures": figures,
        "curves": curves,
        "choices": choices,
        "single": bars is not None,
        "headings": _headings(group),
        "rows": [_table_row(pair, group.published) for pair in group.pairs],
        "claim": text.claim(group),
        "wrong_mode": text.wrong_mode(group),
        "speed": text.speed(group),
        "environment": _environment(group),
    }


def _look_inside(prefix: str, pair: Pair) -> dict[str, charts.Figure]:
    """Return the figures of the first seed's networks, without batch norm and with."""
    figures: dict[str, charts.Figure] = {}
    for role, rows in (("without", pair.without_rows), ("with", pair.with_rows)):
        if rows:
            figures[f"{prefix}-gradients-{role}"] = charts.gradient_norms(rows[0])
            figures[f"{prefix}-inputs-{role}"] = charts.activation_inputs(rows[0])
    return figures


def _headings(group: Group) -> list[str]:
    published = ["Published without", "Published with"] if group.published else []
    single = ["Single, batch statistics", "Single, moving statistics"]
    return [
        "Start",
        "Activation",
        "Rate",
        "Without",
        "With batch norm",
        "Gain",
        *published,
        *single,
    ]


def _table_row(pair: Pair, with_published: bool) -> list[dict[str, Any]]:
    """Return the cells of a configuration: what is shown, and the number to sort by."""
    published = pair.published
    wrong, right = pair.single
    figures = [published.without, published.with_] if published else [None, None]
    shown = [
        (text.score(pair.without), pair.without.mean),
        (text.score(pair.with_), pair.with_.mean),
        (text.MISSING if pair.gain is None else f"{pair.gain:+.4f}", pair.gain),
        *([_figure(value) for value in figures] if with_published else []),
        _figure(wrong),
        _figure(right),
    ]
    return [
        {"shown": pair.start, "sort": pair.start, "number": False},
        {"shown": pair.activation, "sort": pair.activation, "number": False},
        {"shown": f"{pair.learning_rate:g}", "sort": pair.learning_rate, "number": True},
        *({"shown": s, "sort": "" if v is None else v, "number": True} for s, v in shown),
    ]


def _figure(value: float | None) -> tuple[str, float | None]:
    return (text.MISSING if value is None else f"{value:.4f}"), value


def _environment(group: Group) -> list[tuple[str, str]]:
    rows = group.rows
    versions = {f"{name} {version}" for row in rows for name, version in row.versions.items()}
    dates = sorted(row.finished for row in rows)
    rates = sorted(row.steps_per_second for row in rows)
    return [
        ("data", group.data),
        ("backend", group.backend),
        ("device", ", ".join(sorted({row.device for row in rows}))),
        ("versions", ", ".join(sorted(versions))),
        ("seeds", ", ".join(str(seed) for seed in sorted({row.seed for row in rows}))),
        ("networks", f"{len(rows)}, {group.steps:,} steps of {group.batch_size} images each"),
        ("finished", dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"),
        ("time", f"{sum(row.wall_s for row in rows):,.0f} s of training and looking, all networks"),
        ("steps per second", f"{rates[0]:,.0f} to {rates[-1]:,.0f} for each network"),
    ]
