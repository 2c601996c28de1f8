"""Rules that look at batch norms: one function each, documented in its docstring.

`registry` says what a rule is. The rules are in `statistics` (BN00), `parameters` (BN01),
`updates` (BN02), `structure` (BN03) and `data` (BN04).
"""

from homeostat.rules import data as data
from homeostat.rules import parameters as parameters
from homeostat.rules import statistics as statistics
from homeostat.rules import structure as structure
from homeostat.rules import updates as updates
from homeostat.rules.findings import SEVERITIES, Audit, Finding, RuleInfo, Severity, Skipped
from homeostat.rules.registry import RULES as _REGISTERED
from homeostat.rules.registry import Rule
from homeostat.rules.settings import Settings, find_settings, parse_settings, read_settings
from homeostat.rules.thresholds import Thresholds

RULES: dict[str, Rule] = dict(sorted(_REGISTERED.items()))
"""Every rule by its identifier, in their order."""

__all__ = [
    "RULES",
    "SEVERITIES",
    "Audit",
    "Finding",
    "Rule",
    "RuleInfo",
    "Settings",
    "Severity",
    "Skipped",
    "Thresholds",
    "find_settings",
    "parse_settings",
    "read_settings",
]
