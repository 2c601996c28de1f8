"""Every rule on real Keras models and their files, on the backend that Keras was imported with."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from homeostat.audit import audit, judge
from homeostat.models import open_model
from homeostat.rules import Settings
from tests.rules.real.checks import check
from tests.rules.real.table import Example, occurs

keras: Any = pytest.importorskip("keras")

from tests.rules.real.keras_models import CASES, MORE  # noqa: E402

PARTS = ("speaks", "is silent")


@cache
def made(rule: str, part: str) -> Example:
    return CASES[rule][PARTS.index(part)]()


def settings(rule: str, example: Example) -> Settings:
    return Settings(select=(rule,), batch_size=example.batch_size)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("rule", CASES)
def test_models(rule: str, part: str) -> None:
    example = made(rule, part)
    found = audit(example.model, example.data, settings=settings(rule, example))
    check(rule, example, found, "keras")


@pytest.mark.parametrize("rule", MORE)
def test_more_models(rule: str, tmp_path: Path) -> None:
    example = MORE[rule]()
    check(rule, example, audit(example.model, settings=settings(rule, example)), "keras")
    example.model.save(tmp_path / "model.keras")
    record = open_model(tmp_path / "model.keras")
    check(rule, example, judge(record, None, settings(rule, example)), ".keras")


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("rule", [rule for rule in CASES if occurs(rule, ".keras")])
def test_files(rule: str, part: str, tmp_path: Path) -> None:
    example = made(rule, part)
    example.model.save(tmp_path / "model.keras")
    record = open_model(tmp_path / "model.keras")
    check(rule, example, judge(record, None, settings(rule, example)), ".keras")
