"""What an audit says: findings, rules that could not look, and the audit as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from homeostat.models.records import ModelRecord, Observation

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "error")
"""From the least to the worst."""


@dataclass(frozen=True)
class RuleInfo:
    """A rule, as its docstring tells it.

    Args:
        identifier: "BN001".
        name: "never-updated".
        severity: of its findings, unless a finding says otherwise.
        summary: one line.
        what: what it does.
        why: why that is bad.
        instead: what to do.
        repair: how safe the automatic repair is; "" where there is none.
        needs: what it needs besides the arrays: of ``"graph"``, ``"data"``, ``"labels"``,
            ``"batch size"``.
    """

    identifier: str
    name: str
    severity: Severity
    summary: str
    what: str
    why: str
    instead: str
    repair: str = ""
    needs: tuple[str, ...] = ()

    @property
    def sections(self) -> tuple[tuple[str, str], ...]:
        """The parts of the rule's page, each a heading and a text, without those that are empty."""
        parts = (
            ("What it does", self.what),
            ("Why is this bad", self.why),
            ("What to do instead", self.instead),
            ("Fix safety", self.repair),
        )
        return tuple((heading, text) for heading, text in parts if text)


@dataclass(frozen=True)
class Finding:
    """Something wrong, or worth knowing.

    Args:
        rule: its identifier.
        severity: how bad.
        norm: the batch norm's name; None for the whole model.
        message: what is wrong with this norm, with its figures.
        channels: which channels, from 0; () for all of them or none in particular.
        figures: numbers behind the message, by name.
    """

    rule: str
    severity: Severity
    norm: str | None
    message: str
    channels: tuple[int, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class Skipped:
    """A rule that could not look, at a norm or at all.

    Args:
        rule: its identifier.
        norm: the batch norm's name; None for the whole model.
        reason: what was missing, and how to give it.
    """

    rule: str
    norm: str | None
    reason: str


@dataclass(frozen=True, eq=False)
class Audit:
    """What was found in a model.

    Args:
        model: its batch norms.
        findings: the worst first, then in the order of the network.
        skipped: the rules that could not look.
        rules: those that were asked.
        observation: what data showed; None without data.
    """

    model: ModelRecord
    findings: tuple[Finding, ...]
    skipped: tuple[Skipped, ...]
    rules: tuple[RuleInfo, ...]
    observation: Observation | None = None

    def worst(self) -> Severity | None:
        """Return the worst severity among the findings; None for a clean model."""
        return max(
            (finding.severity for finding in self.findings), key=SEVERITIES.index, default=None
        )
