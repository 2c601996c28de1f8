"""The benchmark as one HTML file that needs nothing else, no network and no server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from homeostat.errors import DataError
from homeostat.report.bench import charts
from homeostat.report.bench.rows import Row, TimeRow
from homeostat.report.bench.tables import by_environment, make_notes, make_tables
from homeostat.report.page import render_page, write_page

BENCH_FILE = "bench.html"
"""Name of the page in a benchmark's folder."""


def write_bench(rows: Sequence[Row], path: Path) -> Path:
    """Write the page of these rows; an older one there is replaced.

    Raises:
        DataError: there are no rows, or the file cannot be written.
        MissingExtraError: jinja2 or plotly is not installed.
    """
    return write_page(render_bench(rows), path)


def render_bench(rows: Sequence[Row]) -> str:
    """Return the page's HTML.

    Raises:
        DataError: there are no rows.
        MissingExtraError: jinja2 or plotly is not installed.
    """
    if not rows:
        raise DataError(
            "there are no rows to show: expected at least one. Run `homeostat bench` first, with "
            "this folder as --out."
        )
    sections = _sections([row for row in rows if isinstance(row, TimeRow)])
    return render_page(
        "bench/bench.html.j2",
        extra="report",
        again="homeostat bench --report DIR",
        environments=[_describe(where) for where in by_environment(rows)],
        sections=sections,
        figures={tile["figure"]: tile["data"] for s in sections for tile in s["tiles"]},
        forms=charts.ROLES,
        tables=make_tables(rows),
        notes=make_notes(rows),
    )


def _describe(where: Any) -> list[tuple[str, str]]:
    kept = "keeps memory" if where.allocator == "keep" else "as the system has it"
    return [
        ("process", where.framework),
        ("versions", f"{where.versions}, homeostat {where.homeostat}, Python {where.python}"),
        ("machine", where.machine),
        ("threads", f"{where.threads} of {where.cores} cores"),
        ("allocator", kept),
    ]


def _sections(rows: Sequence[TimeRow]) -> list[dict[str, Any]]:
    """Return a section for each work and dtype, with a tile for each shape and layout."""
    groups: dict[tuple[str, str], dict[tuple[str, str], list[TimeRow]]] = {}
    for row in rows:
        section = groups.setdefault((row.work, row.dtype), {})
        section.setdefault((row.shape, row.layout), []).append(row)
    sections = []
    for number, ((work, dtype), calls) in enumerate(groups.items()):
        tiles = [
            {
                "name": f"{shape} {layout}",
                "figure": f"s{number}-{index}",
                "data": charts.time_bars(mine),
            }
            for index, ((shape, layout), mine) in enumerate(calls.items())
            if any(row.copies is not None for row in mine)
        ]
        sections.append({"name": f"{work}, {dtype}", "tiles": tiles})
    return sections
