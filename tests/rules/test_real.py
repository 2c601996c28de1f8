"""Every rule on real models of every source: the table of them, and what takes a process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from homeostat.audit import judge
from homeostat.models import open_model
from homeostat.rules import RULES, Settings
from tests.command import run_python
from tests.rules.real import pytorch
from tests.rules.real.checks import check
from tests.rules.real.table import ABSENT, SOURCES, Example, Severity, occurs

TF1: dict[str, Severity] = {
    "BN001": "error", "BN002": "error", "BN003": "error", "BN004": "warning", "BN005": "warning",
    "BN010": "error", "BN011": "warning", "BN012": "warning",
}  # fmt: skip
"""The checkpoints that `tf1_checkpoints` writes, and how bad they are."""


def test_every_rule_says_where_it_occurs() -> None:
    assert set(ABSENT) == set(RULES)
    for rule, absent in ABSENT.items():
        assert set(absent) < set(SOURCES), rule
        assert all(absent.values()), rule


def test_every_rule_has_models_wherever_it_occurs() -> None:
    keras_models = pytest.importorskip("tests.rules.real.keras_models")

    def of(*sources: str) -> set[str]:
        return {rule for rule in RULES if any(occurs(rule, source) for source in sources)}

    assert set(pytorch.CASES) == of("torch", ".pt", ".safetensors", "onnx")
    # BN027 is in a process of its own, below.
    assert {*keras_models.CASES, "BN027"} == of("keras", ".keras")
    # The size of the batch alone, below.
    assert {*TF1, "BN026"} == of("tf1")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("tf_keras")
    folder = tmp_path_factory.mktemp("tf1")
    done = run_python(
        "-m", "tests.rules.real.tf1_checkpoints", str(folder), TF_CPP_MIN_LOG_LEVEL="3"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("rule", TF1)
def test_checkpoints(rule: str, checkpoints: Path) -> None:
    settings = Settings(select=(rule,))
    speaks, silent = Example(None, ("norm",), TF1[rule]), Example(None)
    check(rule, speaks, judge(open_model(checkpoints / rule), None, settings), "tf1")
    check(rule, silent, judge(open_model(checkpoints / "healthy"), None, settings), "tf1")


def test_a_checkpoint_of_a_norm_that_leaves_broken_batches_out(checkpoints: Path) -> None:
    assert (
        judge(open_model(checkpoints / "spared"), None, Settings(select=("BN00",))).worst() is None
    )


@pytest.mark.parametrize("size", [2, 8])
def test_small_batches_of_a_checkpoint(size: int, checkpoints: Path) -> None:
    example = Example(None, ("norm",) if size == 2 else ())
    settings = Settings(select=("BN026",), batch_size=size)
    check("BN026", example, judge(open_model(checkpoints / "healthy"), None, settings), "tf1")


def test_replicas_of_keras() -> None:
    done = run_python("-m", "tests.rules.real.keras_replicas", KERAS_BACKEND="tensorflow")
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout)
    assert said["speaks"] == {"findings": [["norm", "warning"]], "skipped": []}
    assert said["is silent"] == {"findings": [], "skipped": []}
