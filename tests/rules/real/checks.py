"""What a rule has to say of an example."""

from __future__ import annotations

from homeostat.rules import Audit
from tests.rules.real.table import ARRAYS, Example, Source


def check(rule: str, example: Example, found: Audit, source: Source) -> None:
    """Assert that a rule speaks of the norms of an example, and that it looked at all others."""
    spoken = [(one.norm, one.severity) for one in found.findings if one.rule == rule]
    assert spoken == [(norm, example.severity) for norm in example.norms]
    # Of the positions of a norm's input arrays tell nothing: there the batch size alone counts.
    if not (rule == "BN026" and source in ARRAYS and not example.norms):
        assert [one.reason for one in found.skipped if one.rule == rule] == []
