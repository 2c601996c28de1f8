from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from homeostat.audit import judge
from homeostat.errors import SpecError
from homeostat.rules import RULES, Finding, RuleInfo
from homeostat.rules.registry import SECTIONS, read_page, rule
from homeostat.rules.thresholds import Thresholds
from tests.rules.cases import CASES, Case, model, norm, observed


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.rule}-{case.about}")
def test_a_rule_speaks_when_it_should(case: Case) -> None:
    found = RULES[case.rule].look(case.model, case.observation, case.settings)
    findings = [one for one in found if isinstance(one, Finding)]
    assert [one.severity for one in findings] == ([case.severity] if case.severity else [])
    for finding in findings:
        assert case.channels is None or finding.channels == case.channels
        for name, value in case.figures.items():
            assert finding.figures[name] == pytest.approx(value), name


@pytest.mark.parametrize("identifier", RULES)
def test_every_rule_has_cases_both_ways(identifier: str) -> None:
    severities = [case.severity for case in CASES if case.rule == identifier]
    assert None in severities
    assert any(severities)


@pytest.mark.parametrize("identifier", RULES)
def test_every_docstring_is_a_page(identifier: str) -> None:
    info = RULES[identifier].info
    assert identifier == info.identifier
    for text in (info.summary, info.what, info.why, info.instead):
        assert text.strip()
        assert text.rstrip().endswith((".", "`."))
    assert len(info.summary) <= 88
    named = {word.strip("`") for word in info.what.split() if word.startswith("`")}
    known = {name.replace("_", "-") for name in Thresholds.__dataclass_fields__}
    # A threshold that a page names is one, and each is named on some page.
    assert not {name for name in named if "-" in name and name not in known}


def test_every_threshold_is_explained() -> None:
    pages = " ".join(rule.info.what for rule in RULES.values())
    missing = [
        name
        for name in Thresholds.__dataclass_fields__
        if f"`{name.replace('_', '-')}`" not in pages
    ]
    assert not missing


def test_names_are_unique() -> None:
    assert max(Counter(rule.info.name for rule in RULES.values()).values()) == 1


def page(*sections: str, summary: str = "S.") -> str:
    return "\n\n".join((summary, *sections))


WHAT, WHY = "What it does:\n    a", "Why is this bad:\n    b"
INSTEAD = "What to do instead:\n    c"
BROKEN_PAGES = {
    "no sections": page(),
    "no summary": page(WHAT, WHY, INSTEAD, summary=""),
    "two lines": page(WHAT, WHY, INSTEAD, summary="S\nT."),
    "empty section": page("What it does:\n", WHY, INSTEAD),
    "out of order": page(WHY, WHAT, INSTEAD),
    "unknown": page(WHAT, "Why:\n    b", INSTEAD),
}


@pytest.mark.parametrize("text", BROKEN_PAGES.values(), ids=BROKEN_PAGES)
def test_a_broken_page_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="docstring has the sections"):
        read_page(text)


def test_a_page_is_read() -> None:
    body = "".join(f"\n{title}:\n    Text of\n    two lines.\n" for title in SECTIONS)
    assert read_page(f"Summary.\n{body}") == ("Summary.", *["Text of two lines."] * 4)


def test_an_identifier_is_taken_once() -> None:
    with pytest.raises(SpecError, match="BN001 is taken"):
        rule("BN001", "info")(lambda subject: iter(()))


def test_what_is_missing_is_said() -> None:
    audit = judge(model(norm(epsilon=None, unknown=frozenset({"epsilon"}))))
    reasons = {skipped.rule: skipped for skipped in audit.skipped}
    assert "--data" in reasons["BN040"].reason
    assert reasons["BN040"].norm is None
    assert "does not tell its epsilon" in reasons["BN014"].reason
    assert reasons["BN014"].norm == "bn"
    assert "operations are not known" in reasons["BN030"].reason
    # A norm that has no beta lacks nothing.
    assert not [one for one in judge(model(norm(beta=None))).skipped if one.norm]


def test_data_of_other_channels_is_said() -> None:
    seen = observed()
    few = judge(model(norm(
        gamma=None, beta=None, moving_mean=np.zeros(3), moving_variance=np.ones(3) * 2
    )), seen)  # fmt: skip
    assert "another number of channels" in {s.rule: s.reason for s in few.skipped}["BN040"]
    other = judge(model(norm("elsewhere")), seen)
    assert "no batch of the data came to it" in {s.rule: s.reason for s in other.skipped}["BN040"]


def test_few_batches_raise_no_alarm() -> None:
    """Two batches of two examples stray by more than half a standard deviation."""
    from dataclasses import replace

    from homeostat.moments import Moments
    from tests.rules.cases import MEAN, VARIANCE

    shifted = Moments(4.0, MEAN + 1.2 * np.sqrt(VARIANCE), VARIANCE.astype(np.float64) * 3)
    few = replace(
        observed(), inputs={"bn": shifted}, batches=2, examples=4, batch_moments={}, elements={}
    )
    assert not [one for one in judge(model(), few).findings if one.rule in ("BN040", "BN041")]
    many = replace(few, examples=40000, batches=400)
    assert {"BN040", "BN041"} <= {one.rule for one in judge(model(), many).findings}


def test_the_worst_comes_first_then_the_order_of_the_network() -> None:
    bad = np.full(16, np.nan, np.float32)
    audit = judge(
        model(norm("z", moving_mean=bad), norm("b", gamma=np.zeros(16)), norm("a", gamma=bad))
    )
    assert [(one.severity, one.norm) for one in audit.findings] == [
        ("error", "z"),
        ("error", "a"),
        ("warning", "b"),
    ]
    assert audit.worst() == "error"


def test_rules_are_records() -> None:
    assert all(isinstance(rule.info, RuleInfo) for rule in RULES.values())
