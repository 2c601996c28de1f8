"""Rows as Plotly figures: plain data and layout, colours apart.

A trace names its colour by role, ``"without"`` or ``"with"`` or a layer's number; the page maps
roles to colours, in light and in dark.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from homeostat.report.rows import LessonRow
from homeostat.report.summary import Group, Pair

Figure = dict[str, Any]


def accuracy_grid(group: Group) -> Figure:
    """Return final test accuracies: a line per configuration, from without to with batch norm."""
    names = [_label(pair) for pair in group.pairs]
    traces: list[dict[str, Any]] = []
    for name, pair in zip(names, group.pairs, strict=True):
        ends = [pair.without.mean, pair.with_.mean]
        traces.append(
            {"x": ends, "y": [name, name], "mode": "lines", "hoverinfo": "skip", "role": "link"}
        )
    for role in ("without", "with"):
        scores = [p.without if role == "without" else p.with_ for p in group.pairs]
        seeds = [(v, n) for s, n in zip(scores, names, strict=True) for v in s.values]
        traces.append(_dots([v for v, _ in seeds], [n for _, n in seeds], role, "seed", 5, 0.45))
        means = [(s.mean, n) for s, n in zip(scores, names, strict=True) if s.mean is not None]
        traces.append(_dots([m for m, _ in means], [n for _, n in means], role, "mean", 12, 1.0))
        published = [
            (p.published.without if role == "without" else p.published.with_, n)
            for p, n in zip(group.pairs, names, strict=True)
            if p.published
        ]
        if published:
            values, at = [v for v, _ in published], [n for _, n in published]
            dots = _dots(values, at, role, "published", 13, 1.0)
            dots["marker"]["symbol"] = "diamond-open"
            traces.append(dots)
    return {
        "data": traces,
        "layout": {
            "height": 110 + 44 * len(names),
            "margin": {"l": 134, "r": 14, "t": 10, "b": 44},
            "xaxis": {"title": {"text": "test accuracy"}, "range": [-0.02, 1.02]},
            "yaxis": {"autorange": "reversed", "type": "category"},
        },
    }


def _dots(
    x: Sequence[float], y: Sequence[str], role: str, what: str, size: int, opacity: float
) -> dict[str, Any]:
    words = f"{role} batch norm, {what}"
    return {
        "x": list(x),
        "y": list(y),
        "mode": "markers",
        "role": role,
        "name": words,
        "marker": {"size": size, "opacity": opacity},
        "hovertemplate": "%{y}<br>" + words + ": %{x:.4f}<extra></extra>",
    }


def _label(pair: Pair) -> str:
    # Plotly reads a few HTML tags in labels, so what comes from a file is escaped for it.
    return html.escape(f"{pair.activation} {pair.learning_rate:g}, {pair.start}")


def accuracy_curves(pair: Pair) -> Figure:
    """Return validation accuracy over training: thin lines for the seeds, a thick mean."""
    traces: list[dict[str, Any]] = []
    for role, rows in (("without", pair.without_rows), ("with", pair.with_rows)):
        if len(rows) > 1:
            traces.extend(_curve(row, role) for row in rows)
        if rows:
            traces.append(_mean_curve(rows, role))
    return {
        "data": traces,
        "layout": {
            "height": 230,
            "margin": {"l": 44, "r": 10, "t": 8, "b": 40},
            "xaxis": {"title": {"text": "steps"}, "nticks": 5, "rangemode": "tozero"},
            "yaxis": {"range": [0, 1.02], "nticks": 6},
        },
    }


def _curve(row: LessonRow, role: str) -> dict[str, Any]:
    return {
        "x": [probe.step for probe in row.probes],
        "y": [probe.validation_accuracy for probe in row.probes],
        "mode": "lines",
        "role": role,
        "opacity": 0.35,
        "line": {"width": 1},
        "hoverinfo": "skip",
    }


def _mean_curve(rows: Sequence[LessonRow], role: str) -> dict[str, Any]:
    probes = list(zip(*(row.probes for row in rows), strict=False))
    return {
        "x": [together[0].step for together in probes],
        "y": [fmean(probe.validation_accuracy for probe in together) for together in probes],
        "mode": "lines",
        "role": role,
        "line": {"width": 2.5},
        "hovertemplate": f"{role} batch norm<br>step %{{x}}: %{{y:.4f}}<extra></extra>",
    }


def gradient_norms(row: LessonRow) -> Figure:
    """Return the gradient norm of each layer's weights over training, on a logarithmic axis."""
    steps = [probe.step for probe in row.probes]
    layers = range(max((len(probe.gradient_norms) for probe in row.probes), default=0))
    traces = [
        {
            "x": steps,
            # A logarithmic axis has no place for zero.
            "y": [_at(probe.gradient_norms, layer) or None for probe in row.probes],
            "mode": "lines",
            "role": f"layer{layer}",
            "name": f"layer {layer + 1}",
            "hovertemplate": f"layer {layer + 1}<br>step %{{x}}: %{{y:.3g}}<extra></extra>",
        }
        for layer in layers
    ]
    layout = _inside("gradient norm")
    layout["showlegend"] = True
    layout["legend"] = {"orientation": "h", "y": 1.22, "x": 0}
    layout["yaxis"] |= {"type": "log", "exponentformat": "power", "nticks": 5}
    return {"data": traces, "layout": layout}


def activation_inputs(row: LessonRow) -> Figure:
    """Return quantiles of the last hidden layer's activation inputs over training, as bands."""
    steps = [probe.step for probe in row.probes]
    role = "with" if row.batch_norm else "without"
    lines = [[_at(probe.quantiles, i) for probe in row.probes] for i in range(5)]
    traces: list[dict[str, Any]] = []
    for low, high, words in ((0, 4, "5 to 95 %"), (1, 3, "15 to 85 %")):
        edge = {"x": steps, "mode": "lines", "line": {"width": 0}, "role": role}
        traces.append(edge | {"y": lines[low], "hoverinfo": "skip"})
        traces.append(edge | {"y": lines[high], "fill": "tonexty", "name": words} | _hover(words))
    middle = {"x": steps, "y": lines[2], "mode": "lines", "role": role, "line": {"width": 2.5}}
    traces.append(middle | _hover("median"))
    return {"data": traces, "layout": _inside("activation input")}


def _hover(words: str) -> dict[str, Any]:
    return {"hovertemplate": words + "<br>step %{x}: %{y:.3g}<extra></extra>"}


def _inside(title: str) -> dict[str, Any]:
    return {
        "height": 260,
        "margin": {"l": 58, "r": 10, "t": 30, "b": 40},
        "xaxis": {"title": {"text": "steps"}, "nticks": 5, "rangemode": "tozero"},
        "yaxis": {"title": {"text": title}},
    }


def _at(values: Sequence[float | None], index: int) -> float | None:
    return values[index] if index < len(values) else None


def wrong_mode_bars(group: Group) -> Figure | None:
    """Return single-image accuracy by batch and by moving statistics, if measured."""
    pairs = [pair for pair in group.pairs if None not in pair.single]
    if not pairs:
        return None
    names = [_label(pair) for pair in pairs]
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "y": names,
            "role": role,
            "x": [pair.single[index] for pair in pairs],
            "hovertemplate": f"%{{y}}<br>{words}: %{{x:.4f}}<extra></extra>",
        }
        for index, role, words in (
            (0, "without", "batch statistics"),
            (1, "with", "moving statistics"),
        )
    ]
    layout = {
        "height": 110 + 44 * len(names),
        "margin": {"l": 134, "r": 14, "t": 10, "b": 44},
        "barmode": "group",
        "xaxis": {"title": {"text": "accuracy, one image at a time"}, "range": [0, 1.02]},
        "yaxis": {"autorange": "reversed", "type": "category"},
    }
    return {"data": traces, "layout": layout}
