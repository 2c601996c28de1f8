"""An audit's findings by rule, and the words that every format says of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from homeostat.report.audit.words import several
from homeostat.rules.findings import SEVERITIES, Audit, Finding, RuleInfo, Severity


@dataclass(frozen=True)
class Group:
    """The findings of one rule and one severity, in the order of the network."""

    rule: RuleInfo
    severity: Severity
    findings: tuple[Finding, ...]


def group_findings(audit: Audit) -> list[Group]:
    """Return an audit's findings by severity and rule, the worst first."""
    pages = {rule.identifier: rule for rule in audit.rules}
    found: dict[tuple[Severity, str], list[Finding]] = {}
    for finding in audit.findings:
        found.setdefault((finding.severity, finding.rule), []).append(finding)
    order = sorted(found, key=lambda key: (-SEVERITIES.index(key[0]), key[1]))
    return [
        Group(pages[identifier], severity, tuple(found[severity, identifier]))
        for severity, identifier in order
    ]


def group_skipped(audit: Audit) -> list[tuple[str, list[str], int]]:
    """Return why rules could not look: the reason, which rules, and at how many norms.

    The number is 0 where they could not look at all.
    """
    rules: dict[str, list[str]] = {}
    norms: dict[str, set[str]] = {}
    for skipped in audit.skipped:
        known = rules.setdefault(skipped.reason, [])
        if skipped.rule not in known:
            known.append(skipped.rule)
        if skipped.norm is not None:
            norms.setdefault(skipped.reason, set()).add(skipped.norm)
    return [(reason, names, len(norms.get(reason, ()))) for reason, names in rules.items()]


def describe_model(audit: Audit) -> str:
    """Return in words what was looked at, without its name."""
    model, seen = audit.model, audit.observation
    words = f"{model.source}, {several(len(model.norms), 'batch norm')}"
    if model.parameters is not None:
        words += f", {model.parameters:,} parameters"
    if seen is not None:
        words += f"; {several(seen.examples, 'example')} in {several(seen.batches, 'batch', 'es')}"
    return words


def describe_counts(audit: Audit) -> str:
    """Return in words how many findings there are of each severity."""
    if not audit.model.norms:
        return "There are no batch norms in it."
    numbers = Counter(finding.severity for finding in audit.findings)
    words = (
        several(numbers["error"], "error"),
        several(numbers["warning"], "warning"),
        several(numbers["info"], "note"),
        f"in {several(len(audit.model.norms), 'batch norm')}",
    )
    return f"{', '.join(words[:3])} {words[3]}."


def first_paragraph(text: str) -> str:
    """Return a text up to its first empty line."""
    return text.partition("\n\n")[0]
