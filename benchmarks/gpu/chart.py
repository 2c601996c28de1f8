"""The rows as one HTML file that needs nothing else: drawn here, since a GPU's machine may be bare.

A bar is the share of the copy's bandwidth at which a call moved the floor's bytes: twice as long a
bar is twice as fast, and the line is at what is asked for.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from benchmarks.gpu.columns import COMPILED, EAGER, NATIVE, OURS
from benchmarks.gpu.rows import MEASURED
from benchmarks.gpu.verdict import Group, Outcome, Row, group_rows, judge

_ASKED = 0.8
_LABELS, _PLOT, _BAR, _GAP = 190, 560, 9, 8
_SERIES: Mapping[str, tuple[str, ...]] = {
    "eager": (EAGER, NATIVE),
    "compiled": (COMPILED,),
    "ours": (OURS,),
}
_NAMES = {"eager": "PyTorch eager", "compiled": "torch.compile", "ours": "Homeostat"}
_STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem;
  color: #1d2630; background: #fff; }
table { border-collapse: collapse; } td, th { padding: .2rem .7rem .2rem 0; text-align: left; }
svg { width: 100%; height: auto; } text { font-size: 11px; fill: currentColor; }
.eager { fill: #9aa5b1; background: #9aa5b1; } .compiled { fill: #d98e32; background: #d98e32; }
.ours { fill: #2563a8; background: #2563a8; }
.axis { stroke: #8a94a0; stroke-width: .5; } .asked { stroke: #b3261e; stroke-dasharray: 4 3; }
.key { display: inline-block; width: .8em; height: .8em; margin: 0 .4em 0 1em; }
@media (prefers-color-scheme: dark) { body { color: #e4e9ee; background: #14181d; }
  .ours { fill: #6fa8e6; background: #6fa8e6; } .asked { stroke: #ff8a80; } }
"""


def render(rows: Sequence[Row], title: str) -> str:
    """Return the page.

    Args:
        rows: of the times.
        title: of the page: the device.
    """
    charts: dict[tuple[str, ...], dict[str, Group]] = {}
    for (dtype, layout, work, form, shape), group in group_rows(rows).items():
        charts.setdefault((work, form, dtype, layout), {})[shape] = group
    keys = "".join(
        f'<span class="key {role}"></span>{html.escape(name)}' for role, name in _NAMES.items()
    )
    parts = [
        "<!doctype html>", '<html lang="en">', '<meta charset="utf-8">',
        f"<title>{html.escape(title)}</title>", f"<style>{_STYLE}</style>",
        f"<h1>{html.escape(title)}</h1>", _bars(judge(rows)),
        "<p>Share of the bandwidth of copying the same tensor, counting the bytes of the streaming "
        f"floor; longer is faster, the line is at {_ASKED:.0%}.{keys}</p>",
    ]  # fmt: skip
    for name, groups in charts.items():
        if any(_share(group, role) is not None for group in groups.values() for role in _SERIES):
            parts.append(f"<h2>{html.escape(', '.join(name))}</h2>{_draw(groups)}")
    return "\n".join(parts) + "\n</html>\n"


def _bars(outcomes: Sequence[Outcome]) -> str:
    lines = ["<table><tr><th>asked</th><th>found</th><th></th></tr>"]
    for outcome in outcomes:
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in outcome)
        lines.append(f"<tr>{cells}</tr>")
    return "".join(lines) + "</table>"


def _draw(groups: Mapping[str, Group]) -> str:
    """Return a chart: for each shape a bar of every series."""
    height = len(groups) * (len(_SERIES) * _BAR + _GAP) + 30
    most = max([1.0, *(s for g in groups.values() for r in _SERIES if (s := _share(g, r)))])
    width = _LABELS + _PLOT + 60
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img">']
    for tick in (0.0, 0.2, 0.4, 0.6, _ASKED, 1.0):
        x = _LABELS + _PLOT * tick / most
        role = "asked" if tick == _ASKED else "axis"
        parts.append(f'<line class="{role}" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height - 20}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 6}" text-anchor="middle">{tick:.0%}</text>')
    y = 4
    for shape, group in groups.items():
        middle = y + len(_SERIES) * _BAR / 2 + 4
        at = f'x="{_LABELS - 8}" y="{middle:.1f}" text-anchor="end"'
        parts.append(f"<text {at}>{html.escape(shape)}</text>")
        for role in _SERIES:
            parts.append(_bar(group, role, y, most))
            y += _BAR
        y += _GAP
    return "".join(parts) + "</svg>"


def _bar(group: Group, role: str, y: int, most: float) -> str:
    share = _share(group, role)
    if share is None:
        return f'<text x="{_LABELS + 4}" y="{y + _BAR - 1}">{_NAMES[role]}: not measured</text>'
    length = _PLOT * share / most
    return (
        f'<rect class="{role}" x="{_LABELS}" y="{y}" width="{length:.1f}" height="{_BAR - 1}">'
        f"<title>{_NAMES[role]}: {share:.1%}</title></rect>"
        f'<text x="{_LABELS + length + 4:.1f}" y="{y + _BAR - 1}">{share:.0%}</text>'
    )


def _share(group: Group, role: str) -> float | None:
    found = [
        float(group[name]["of_copy"])
        for name in _SERIES[role]
        if name in group and group[name]["state"] == MEASURED and group[name]["of_copy"]
    ]
    return max(found, default=None)
