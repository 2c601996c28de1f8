"""Every rule on real Keras models and their files, on the backend that Keras was imported with."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from homeostat.audit import audit, judge
from homeostat.models import adapt, open_model
from homeostat.rules import Settings
from tests.rules.real.checks import check
from tests.rules.real.table import Example, occurs

keras: Any = pytest.importorskip("keras")

from tests.rules.real.keras_models import CASES, MORE, network, train  # noqa: E402
from tests.rules.real.pytorch import one_thread  # noqa: E402

PARTS = ("speaks", "is silent")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


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


@pytest.mark.parametrize("kind", ["scaled", "accumulated"])
def test_steps_that_an_optimizer_counts_elsewhere(kind: str, tmp_path: Path) -> None:
    optimizers = keras.optimizers
    optimizer = {
        "scaled": lambda: optimizers.LossScaleOptimizer(optimizers.SGD(0.01)),
        "accumulated": lambda: optimizers.SGD(0.01, gradient_accumulation_steps=3),
    }[kind]()
    model = train(network(), 6, optimizer)
    assert adapt(model).record().steps == 6
    model.save(tmp_path / "model.keras")
    assert open_model(tmp_path / "model.keras").steps == 6
    assert adapt(network()).record().steps is None
