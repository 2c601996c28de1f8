"""Every rule on real PyTorch modules, files of their weights, and what they export to ONNX."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import onnx.shape_inference
import pytest
import torch
from safetensors.torch import save_file

from homeostat.audit import audit, judge
from homeostat.models import adapt, open_model
from homeostat.rules import Audit, Settings
from tests.rules.real.checks import check
from tests.rules.real.pytorch import CASES, MORE, one_process, one_thread
from tests.rules.real.table import Example, Source, occurs

FILES = (".pt", ".safetensors", "onnx")
PARTS = ("speaks", "is silent")


@pytest.fixture(scope="module", autouse=True)
def _alone() -> Iterator[None]:
    with one_thread(), one_process():
        yield


@cache
def made(rule: str, part: str) -> Example:
    return CASES[rule][PARTS.index(part)]()


def settings(rule: str, example: Example) -> Settings:
    return Settings(select=(rule,), batch_size=example.batch_size)


def exported(example: Example, path: Path) -> Path:
    with warnings.catch_warnings():
        # The exporter's own, of several kinds.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            example.model,
            (torch.zeros(2, *first(example).shape[1:]),),
            path,
            dynamo=False,
            do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE,
        )
    # Which says the shapes of all that is between.
    onnx.shape_inference.infer_shapes_path(str(path), str(path))
    return path


def first(example: Example) -> torch.Tensor:
    """Return a batch that a network takes, by its first layer."""
    layer: Any = next(iter(example.model.children()))
    if isinstance(layer, torch.nn.BatchNorm2d):
        return torch.zeros(2, layer.num_features, 8, 8)
    return torch.zeros(2, 3, 8, 8)


def saved(rule: str, example: Example, source: Source, folder: Path) -> Audit:
    path = folder / f"model{source if source[0] == '.' else '.onnx'}"
    if source == ".pt":
        torch.save(example.model.state_dict(), path)
    elif source == ".safetensors":
        save_file(example.model.state_dict(), path)
    else:
        exported(example, path)
    return judge(open_model(path), None, settings(rule, example))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("rule", CASES)
def test_modules(rule: str, part: str) -> None:
    example = made(rule, part)
    check(
        rule, example, audit(example.model, example.data, settings=settings(rule, example)), "torch"
    )


@pytest.mark.parametrize("rule", MORE)
def test_more_modules(rule: str) -> None:
    example = MORE[rule]()
    check(
        rule, example, audit(example.model, example.data, settings=settings(rule, example)), "torch"
    )


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(("rule", "source"), [(r, s) for r in CASES for s in FILES if occurs(r, s)])
def test_files(rule: str, source: Source, part: str, tmp_path: Path) -> None:
    example = made(rule, part)
    check(rule, example, saved(rule, example, source, tmp_path), source)


def test_weights_of_replicas_do_not_tell_how_they_were_trained(tmp_path: Path) -> None:
    example = made("BN027", "speaks")
    found = saved("BN027", example, ".pt", tmp_path)
    assert not found.findings
    assert "whether statistics are synchronized" in found.skipped[0].reason


def test_a_file_counts_as_the_module_does(tmp_path: Path) -> None:
    example = made("BN023", "speaks")
    live = adapt(example.model).record().norms
    stored = saved("BN023", example, ".pt", tmp_path).model.norms
    assert [(norm.updates, norm.skipped) for norm in stored] == [(80, 3), (80, 3)]
    assert [(norm.updates, norm.skipped) for norm in live] == [(80, 3), (80, 3)]
