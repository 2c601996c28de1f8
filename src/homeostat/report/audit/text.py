"""An audit on the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from homeostat.report.audit.grouped import (
    Group,
    describe_counts,
    describe_model,
    first_paragraph,
    group_findings,
    group_skipped,
)
from homeostat.report.audit.words import several
from homeostat.report.page import show_hidden
from homeostat.rules.findings import Audit, RuleInfo, Severity

COLORS: dict[Severity, str] = {"error": "bold red", "warning": "yellow", "info": "cyan"}
SHOWN = 8
"""Norms that are listed for each rule, unless all are wanted."""


def render_audit(audit: Audit, *, all_norms: bool = False) -> RenderableType:
    """Return what rich prints of an audit: a table of the rules that spoke, then each of them.

    Nothing that comes from the model is read as markup, and its control characters are shown.

    Args:
        audit: what was found.
        all_norms: whether to list every norm, not the first few of each rule.
    """
    return Stack(*_parts(audit, all_norms))


def _parts(audit: Audit, all_norms: bool) -> Iterator[RenderableType]:
    groups = group_findings(audit)
    title = Text(show_hidden(audit.model.name), style="bold")
    yield title.append(f": {describe_model(audit)}", style="not bold")
    if groups:
        yield ""
        yield _overview(groups)
    for group in groups:
        yield ""
        yield from _section(group, all_norms)
    skipped = group_skipped(audit)
    if skipped:
        yield ""
        yield Text("Rules that could not look", style="bold")
    for reason, rules, norms in skipped:
        where = f" at {several(norms, 'norm')}" if norms else ""
        yield Padding(
            Text(f"{', '.join(rules)}{where}: {show_hidden(reason)}", style="dim"), (0, 0, 0, 2)
        )
    if audit.model.notes:
        yield ""
    for note in audit.model.notes:
        yield Text(f"Note: {show_hidden(note)}")
    yield ""
    yield Text(describe_counts(audit), style="bold")


def _overview(groups: list[Group]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("", "rule", "", "at"):
        table.add_column(heading, overflow="fold")
    for group in groups:
        table.add_row(
            Text(group.severity, style=COLORS[group.severity]),
            Text(group.rule.identifier),
            Text(group.rule.summary),
            Text(_where(group)),
        )
    return table


def _where(group: Group) -> str:
    if group.findings[0].norm is None:
        return "the model"
    return several(len(group.findings), "norm")


def _section(group: Group, all_norms: bool) -> Iterator[RenderableType]:
    heading = Text(f"{group.severity} ", style=COLORS[group.severity])
    yield heading.append(f"{group.rule.identifier} {group.rule.name}", style="bold")
    listed = group.findings if all_norms else group.findings[:SHOWN]
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    table.add_column(overflow="fold", max_width=32)
    table.add_column(overflow="fold")
    for finding in listed:
        name = "the model" if finding.norm is None else show_hidden(finding.norm)
        table.add_row(Text(name), Text(show_hidden(finding.message)))
    yield Padding(table, (0, 0, 0, 2), expand=False)
    left = len(group.findings) - len(listed)
    if left:
        yield Padding(
            Text(f"and {several(left, 'norm')} more; --all lists them"), (0, 0, 0, 2), expand=False
        )
    for text in (group.rule.why, group.rule.instead):
        yield Padding(Text(first_paragraph(text), style="dim"), (0, 0, 0, 2), expand=False)


def render_rules(rules: list[RuleInfo]) -> Table:
    """Return the rules as a rich table."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("rule", "name", "severity", "needs", "finds"):
        table.add_column(heading, overflow="fold")
    for rule in rules:
        table.add_row(
            rule.identifier,
            rule.name,
            Text(rule.severity, style=COLORS[rule.severity]),
            ", ".join(rule.needs) or "",
            Text(rule.summary),
        )
    return table


def render_page(rule: RuleInfo) -> RenderableType:
    """Return a rule's page for the terminal."""
    heading = Text(f"{rule.identifier} {rule.name}", style="bold")
    parts: list[RenderableType] = [
        heading.append(f" ({rule.severity})", style=COLORS[rule.severity]),
        Text(rule.summary),
    ]
    for title, text in rule.sections:
        parts += [
            "",
            Text(title, style="bold"),
            Padding(Text(text), (0, 0, 0, 2), expand=False),
        ]
    if rule.needs:
        parts += ["", Text(f"Needs: {', '.join(rule.needs)}.")]
    return Stack(*parts)
