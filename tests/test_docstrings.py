"""Every example of the documentation runs, and every public name has a docstring."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.test_imports import FILES

MODULES = [f"homeostat.{name}".strip(".") for name in FILES]


@pytest.fixture(scope="module")
def examined() -> dict[str, Any]:
    # One process for all: importing frameworks takes longer than the examples.
    done = subprocess.run(
        [sys.executable, "-m", "tests.run_doctests", *MODULES],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(examined: dict[str, Any], module: str) -> None:
    outcome = examined[module]
    if "skipped" in outcome:
        pytest.skip(outcome["skipped"])
    assert outcome["failed"] == 0, outcome["output"]


@pytest.mark.parametrize("library", ["numpy", "tensorflow", "torch", "jax"])
def test_operations_have_examples(examined: dict[str, Any], library: str) -> None:
    outcome = examined[f"homeostat.ops.{library}"]
    if "skipped" in outcome:
        pytest.skip(outcome["skipped"])
    assert outcome["attempted"] >= 3


def public(body: list[ast.stmt], prefix: str = "") -> Any:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body, f"{prefix}{node.name}.")


@pytest.mark.parametrize("module", FILES, ids=lambda name: name or "homeostat")
def test_public_names_have_docstrings(module: str) -> None:
    tree = ast.parse(FILES[module].read_text())
    undocumented = [name for name, node in public(tree.body) if not ast.get_docstring(node)]
    assert not undocumented
    assert ast.get_docstring(tree) or not tree.body


@pytest.mark.parametrize("module", [name for name in FILES if name.startswith("ops.")])
def test_operations_tell_all(module: str) -> None:
    """The three functions that all libraries share say what goes in, comes out and goes wrong."""
    for name, node in public(ast.parse(FILES[module].read_text()).body):
        if name in ("moments", "normalize", "normalize_batch"):
            text = ast.get_docstring(node) or ""
            for part in ("Args:", "Returns:", "Raises:", "Example:"):
                assert part in text, f"{name} lacks {part}"
            for argument in (*node.args.args, *node.args.kwonlyargs):
                assert f"{argument.arg}: " in text, f"{name} does not tell {argument.arg}"
