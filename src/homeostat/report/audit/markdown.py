"""An audit as Markdown, for the comment of a pull request; and the rules' pages."""

from __future__ import annotations

import re
from collections.abc import Iterator

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
from homeostat.rules.findings import Audit, RuleInfo

SHOWN = 20
"""Norms that are listed for each rule: comments have a largest length."""
LONGEST = 200
"""Characters of a name that are shown."""


def write_markdown(audit: Audit) -> str:
    """Return an audit as Markdown.

    What comes from the model is code, in which nothing is a link, a mention, HTML or a table.
    """
    return "\n".join(_lines(audit)) + "\n"


def _lines(audit: Audit) -> Iterator[str]:
    yield f"### Batch norms of {code(audit.model.name)}"
    yield ""
    yield f"{escape(describe_model(audit))}. **{describe_counts(audit)}**"
    groups = group_findings(audit)
    if groups:
        yield from ("", "| severity | rule | finds | at |", "|---|---|---|---|")
    for group in groups:
        where = (
            "the model" if group.findings[0].norm is None else several(len(group.findings), "norm")
        )
        title = f"{group.rule.identifier} {group.rule.name}"
        yield f"| {group.severity} | {title} | {group.rule.summary} | {where} |"
    for group in groups:
        yield from _section(group)
    skipped = group_skipped(audit)
    if skipped:
        yield from ("", "#### Rules that could not look", "")
    for reason, rules, norms in skipped:
        where = f" at {several(norms, 'norm')}" if norms else ""
        yield f"- {', '.join(rules)}{where}: {escape(reason)}"
    if audit.model.notes:
        yield from ("", "#### Notes", "")
    yield from (f"- {code(note, 1000)}" for note in audit.model.notes)


def _section(group: Group) -> Iterator[str]:
    yield from ("", f"#### {group.severity}: {group.rule.identifier} {group.rule.name}", "")
    for finding in group.findings[:SHOWN]:
        name = "" if finding.norm is None else f"{code(finding.norm)}: "
        yield f"- {name}{escape(finding.message)}"
    left = len(group.findings) - SHOWN
    if left > 0:
        yield f"- and {several(left, 'norm')} more"
    yield from ("", first_paragraph(group.rule.why), "", first_paragraph(group.rule.instead))


def code(text: str, longest: int = LONGEST) -> str:
    """Return a text from a file as a span of code, on one line.

    Example:
        >>> code("bn|1"), code("a`b")
        ('`bn|1`', '``a`b``')
    """
    shown = show_hidden(text)
    if len(shown) > longest:
        shown = f"{shown[: longest - 1]}…"
    if not shown.strip():
        return "`(no name)`" if not shown else "`(blank)`"
    # A fence is longer than any run of backticks inside; a space keeps one at the edge apart.
    fence = "`" * (max(map(len, re.findall("`+", shown)), default=0) + 1)
    pad = " " if shown[0] in "` " or shown[-1] in "` " else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def escape(text: str) -> str:
    r"""Return a text of ours, or one that holds a file's words, with no meaning as Markdown.

    Example:
        >>> print(escape("a_b <i>"))
        a\_b \<i\>
    """
    marked = re.sub(r"([\\`*_\[\]<>|#~&!])", r"\\\1", show_hidden(text))
    # Mentions and addresses are found after Markdown; a space of no width parts them.
    marked = marked.replace("@", "@\u200b").replace("://", ":\u200b//")
    return re.sub(r"(?i)\bwww\.", "www\u200b.", marked)


def write_pages(rules: list[RuleInfo]) -> str:
    """Return the pages of rules as one Markdown document."""
    lines = [
        "# The rules of `homeostat audit`",
        "",
        "Made from the rules themselves by `homeostat rules --format markdown`. How to choose",
        "rules and thresholds is told in [audit.md](audit.md).",
        "",
        "| rule | name | severity | needs | finds |",
        "|---|---|---|---|---|",
    ]
    for rule in rules:
        anchor = f"{rule.identifier}-{rule.name}".lower()
        lines.append(
            f"| [{rule.identifier}](#{anchor}) | {rule.name} | {rule.severity} "
            f"| {', '.join(rule.needs)} | {rule.summary} |"
        )
    for rule in rules:
        lines += ["", *write_page(rule).splitlines()]
    return "\n".join(lines) + "\n"


def write_page(rule: RuleInfo) -> str:
    """Return a rule's page as Markdown."""
    needs = f" Needs: {', '.join(rule.needs)}." if rule.needs else ""
    parts = [
        f"## {rule.identifier} {rule.name}",
        f"{rule.summary} Severity: {rule.severity}.{needs}",
    ]
    for title, text in rule.sections:
        parts += [f"### {title}", escape_bars(text)]
    return "\n\n".join(parts) + "\n"


def escape_bars(text: str) -> str:
    """Return a page's text, in which asterisks and bars of formulas are no markup."""
    return text.replace("*", "\\*").replace("|", "\\|")
