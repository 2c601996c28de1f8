"""An audit as one HTML file that needs nothing else, no network and no server."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from homeostat.models.records import ModelRecord, Observation
from homeostat.report.audit.embedded import embed
from homeostat.report.audit.overview import Line, Spread, look_over, worst_of
from homeostat.report.audit.words import describe_norm, number, several, shorten
from homeostat.report.page import render_page, show_hidden, write_page
from homeostat.rules.findings import SEVERITIES, Audit, Finding

AUDIT_FILE = "audit.html"
"""What the page is called unless one says otherwise."""

_WORST_FIRST = SEVERITIES[::-1]
_NAMED = 24


def write_audit_page(audit: Audit, path: Path) -> Path:
    """Write the page of an audit; an older file there is replaced.

    Args:
        audit: what was found.
        path: where the HTML goes.

    Returns:
        ``path``.

    Raises:
        DataError: the file cannot be written.
        MissingExtraError: jinja2 is not installed.
    """
    return write_page(render_audit(audit), path)


def render_audit(audit: Audit) -> str:
    """Return the page's HTML.

    The page's own script draws the charts: ResNet50's page is less than a quarter of Plotly.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    lines = look_over(audit)
    places = {norm.name: index for index, norm in enumerate(audit.model.norms)}
    observation = audit.observation
    return render_page(
        "audit/audit.html.j2",
        extra="report",
        again="homeostat audit MODEL --html PAGE",
        style=("report.css", "audit/audit.css"),
        script=("sort.js", "audit/scales.js", "audit/channels.js", "audit/audit.js"),
        plotly=False,
        name=shorten(audit.model.name),
        model=audit.model,
        source=_describe(audit.model),
        counts=_count(audit, lines),
        worst=audit.worst(),
        lines=[_row(line, observation) for line in lines],
        observation=observation,
        data=_data_words(observation),
        sections=_sections(audit, places),
        skipped=_skipped(audit),
        skipped_rules=several(len({each.rule for each in audit.skipped}), "rule"),
        norms=[_embed(line, audit) for line in lines],
    )


def _describe(model: ModelRecord) -> str:
    words = [model.source, f"{model.framework} conventions"]
    if model.parameters is not None:
        words.append(f"{model.parameters:,} parameters")
    if model.distributed:
        words.append("trains on several replicas")
    return " · ".join(words)


def _count(audit: Audit, lines: list[Line]) -> dict[str, int]:
    found = Counter(finding.severity for finding in audit.findings)
    return {
        **{severity: found[severity] for severity in _WORST_FIRST},
        "norms": len(lines),
        "clean": sum(line.worst is None for line in lines),
        "channels": sum(line.record.channels or 0 for line in lines),
        "rules": len(audit.rules),
    }


def _data_words(observation: Observation | None) -> str:
    if observation is None:
        return ""
    words = f"{observation.examples:,} examples in {several(observation.batches, 'batch', 'es')}"
    behaviour = observation.behaviour
    if behaviour is None:
        return words
    words += f"; outputs with moving statistics differ by {behaviour.difference:.3g}"
    if behaviour.inference_accuracy is not None and behaviour.batch_accuracy is not None:
        words += (
            f"; accuracy {behaviour.inference_accuracy:.2%} with moving statistics, "
            f"{behaviour.batch_accuracy:.2%} with the batch's"
        )
    elif behaviour.agreement is not None:
        words += f"; both ways agree on {behaviour.agreement:.2%} of the examples"
    return words


def _row(line: Line, observation: Observation | None) -> dict[str, Any]:
    record = line.record
    counts = [line.unmoved, line.dead] + ([line.drifted] if observation else [])
    return {
        "name": shorten(record.name),
        "kind": record.kind,
        "worst": line.worst,
        # For sorting: the worst severity first, then how many findings.
        "health": (SEVERITIES.index(line.worst) + 1 if line.worst else 0) * 10_000
        + len(line.findings),
        "findings": several(len(line.findings), "finding"),
        "found": [
            (severity, count)
            for severity in _WORST_FIRST
            if (count := sum(finding.severity == severity for finding in line.findings))
        ],
        "height": line.height,
        "channels": record.channels,
        "counts": counts,
        "spreads": [_bar(line.spreads.get(name)) for name in ("ratio", "variance", "gamma")],
    }


def _bar(spread: Spread | None) -> dict[str, Any]:
    """Return the cell of a range: its bar, the median to sort by, and what it says in words."""
    if spread is None:
        return {"sort": "", "shown": "", "words": "none", "places": (), "odd": 0}
    if not spread.points:
        return {"sort": "", "shown": "", "words": "", "places": (), "odd": spread.odd}
    low, _, median, _, high = (f"{point:.3g}".replace("-", "−") for point in spread.points)
    return {
        "sort": spread.points[2],
        "shown": median,
        "words": f"from {low} to {high}, median {median}",
        "places": spread.places,
        "odd": spread.odd,
    }


def _sections(audit: Audit, places: dict[str, int]) -> list[dict[str, Any]]:
    """Return the rules that found something with what they found, the worst first."""
    rules = {rule.identifier: rule for rule in audit.rules}
    found: dict[str, list[tuple[int, Finding]]] = {}
    for place, finding in enumerate(audit.findings):
        found.setdefault(finding.rule, []).append((place, finding))
    sections = [
        {
            "identifier": identifier,
            "rule": rules.get(identifier),
            "worst": worst_of(finding for _, finding in numbered),
            "findings": [_finding(place, each, places) for place, each in numbered],
        }
        for identifier, numbered in found.items()
    ]
    return sorted(sections, key=lambda section: _WORST_FIRST.index(section["worst"]))


def _finding(place: int, finding: Finding, places: dict[str, int]) -> dict[str, Any]:
    named = ", ".join(map(str, finding.channels[:_NAMED]))
    if len(finding.channels) > _NAMED:
        named += f" and {len(finding.channels) - _NAMED:,} more"
    return {
        "number": place,
        "severity": finding.severity,
        "norm": None if finding.norm is None else shorten(finding.norm),
        "place": places.get(finding.norm or ""),
        "message": finding.message,
        "channels": named,
        "many": len(finding.channels) > 1,
        "figures": [
            (name.replace("_", " "), number(value)) for name, value in finding.figures.items()
        ],
    }


def _skipped(audit: Audit) -> list[dict[str, Any]]:
    """Return for each reason the rules that could not look, and at how many norms."""
    names = {rule.identifier: rule.name for rule in audit.rules}
    reasons: dict[str, dict[str, list[str | None]]] = {}
    for each in audit.skipped:
        reasons.setdefault(each.reason, {}).setdefault(each.rule, []).append(each.norm)
    return [
        {
            "reason": reason,
            "rules": [
                {"identifier": rule, "name": names.get(rule, ""), "where": _where(norms)}
                for rule, norms in rules.items()
            ],
        }
        for reason, rules in reasons.items()
    ]


def _where(norms: list[str | None]) -> str:
    named = [norm for norm in norms if norm is not None]
    if len(named) < len(norms):
        return ""
    return f"at {shorten(named[0])}" if len(named) == 1 else f"at {len(named)} norms"


def _embed(line: Line, audit: Audit) -> dict[str, Any]:
    """Return what the script needs of a norm, as JSON can hold it."""
    record, observation = line.record, audit.observation
    arrays: dict[str, Any] = dict(record.arrays)
    if observation and record.name in observation.inputs:
        _, mean, variance = observation.inputs[record.name]
        arrays |= {"observed_mean": mean, "observed_variance": variance}
    return {
        "name": show_hidden(record.name),
        "facts": [(name, show_hidden(value)) for name, value in describe_norm(record, observation)],
        # JSON has no NaN.
        "epsilon": record.epsilon if np.isfinite(record.epsilon or np.nan) else 0.0,
        "arrays": {name: embed(array) for name, array in arrays.items()},
        "marks": [
            {"rule": finding.rule, "channels": list(finding.channels)}
            for finding in line.findings
            if finding.channels
        ],
    }
