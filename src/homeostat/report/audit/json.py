"""An audit as JSON, in the form of `schema.json`, for other programs."""

from __future__ import annotations

import json
import math
from collections import Counter
from importlib import resources
from typing import Any

from homeostat.models import BatchNormRecord, Observation
from homeostat.rules.findings import SEVERITIES, Audit, RuleInfo

VERSION = 1
"""Of the form. A reader of one version reads all its documents; new keys may be added."""


def read_schema() -> dict[str, Any]:
    """Return the JSON Schema that every document fits."""
    packaged = resources.files("homeostat.report.audit").joinpath("schema.json")
    return json.loads(packaged.read_text(encoding="utf-8"))


def write_json(audit: Audit) -> str:
    """Return an audit as a JSON document.

    Numbers that JSON does not have are the strings "NaN", "Infinity" and "-Infinity".
    """
    model = audit.model
    numbers = Counter(finding.severity for finding in audit.findings)
    document = {
        "format": "homeostat-audit",
        "version": VERSION,
        "model": {
            "name": model.name,
            "framework": model.framework,
            "source": model.source,
            "parameters": _count(model.parameters),
            "distributed": model.distributed,
            "graph": model.graph is not None,
            "notes": list(model.notes),
        },
        "norms": [_norm(norm) for norm in model.norms],
        "data": _data(audit.observation),
        "worst": audit.worst(),
        "counts": {severity: numbers[severity] for severity in SEVERITIES},
        "findings": [
            {
                "rule": finding.rule,
                "severity": finding.severity,
                "norm": finding.norm,
                "message": finding.message,
                "channels": list(finding.channels),
                "figures": {name: _number(value) for name, value in finding.figures.items()},
            }
            for finding in audit.findings
        ],
        "skipped": [
            {"rule": skipped.rule, "norm": skipped.norm, "reason": skipped.reason}
            for skipped in audit.skipped
        ],
        "rules": [describe_rule(rule) for rule in audit.rules],
    }
    return _dump(document)


def write_rules(rules: list[RuleInfo]) -> str:
    """Return rules as a JSON list, each as in an audit's document."""
    return _dump([describe_rule(rule) for rule in rules])


def describe_rule(rule: RuleInfo) -> dict[str, Any]:
    """Return a rule's page as plain values."""
    return {
        "rule": rule.identifier,
        "name": rule.name,
        "severity": rule.severity,
        "summary": rule.summary,
        "what": rule.what,
        "why": rule.why,
        "instead": rule.instead,
        "repair": rule.repair,
        "needs": list(rule.needs),
    }


def _norm(norm: BatchNormRecord) -> dict[str, Any]:
    return {
        "name": norm.name,
        "kind": norm.kind,
        "channels": _count(norm.channels),
        "epsilon": _number(norm.epsilon),
        "momentum": _number(norm.momentum),
        "stored_variance": norm.stored_variance,
        "updates": _count(norm.updates),
        "unknown": sorted(norm.unknown),
    }


def _data(seen: Observation | None) -> dict[str, Any] | None:
    if seen is None:
        return None
    behaviour = seen.behaviour
    return {
        "batches": seen.batches,
        "examples": seen.examples,
        "difference": _number(behaviour.difference) if behaviour else None,
        "agreement": _number(behaviour.agreement) if behaviour else None,
        "inference_accuracy": _number(behaviour.inference_accuracy) if behaviour else None,
        "batch_accuracy": _number(behaviour.batch_accuracy) if behaviour else None,
    }


def _count(value: int | None) -> int | None:
    # NumPy's numbers, which adapters may take from arrays, are not JSON's.
    return None if value is None else int(value)


def _number(value: float | None) -> float | str | None:
    if value is None or math.isfinite(value):
        return None if value is None else float(value)
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _dump(document: Any) -> str:
    # Names may hold what has no UTF-8; as escapes everything has.
    return json.dumps(document, indent=2, ensure_ascii=True, allow_nan=False) + "\n"
