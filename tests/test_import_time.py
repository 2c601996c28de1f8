"""What `import homeostat` costs, and what it says where a framework is missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import homeostat

SOURCE = Path(homeostat.__file__).parent
FRAMEWORKS = ("tensorflow", "torch", "jax", "keras", "flax", "numba")
# Seconds beyond NumPy.
BUDGET = 0.15

PROBE = f"""
import json, sys, time
import numpy
start = time.perf_counter()
import homeostat
seconds = time.perf_counter() - start
loaded = [name for name in {FRAMEWORKS} if name in sys.modules]
print(json.dumps({{"seconds": seconds, "loaded": loaded, "file": homeostat.__file__}}))
"""


def run(code: str, first: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(first), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def cost(first: Path, runs: int = 5) -> dict[str, Any]:
    """Return the least time of several imports, each in a process of its own."""
    found = [json.loads(run(PROBE, first)) for _ in range(runs)]
    assert Path(found[0]["file"]).is_relative_to(first)
    return min(found, key=lambda one: one["seconds"])


def check(found: dict[str, Any]) -> None:
    assert found["loaded"] == []
    assert found["seconds"] < BUDGET


def test_import_is_light() -> None:
    check(cost(SOURCE.parent))


@pytest.mark.parametrize("weight", ["import torch", "import time; time.sleep(0.2)"])
def test_a_heavy_import_is_seen(tmp_path: Path, weight: str) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(SOURCE, tmp_path / "homeostat", ignore=ignored)
    (tmp_path / "torch.py").write_text("")
    init = tmp_path / "homeostat" / "__init__.py"
    init.write_text(init.read_text() + f"\n{weight}\n")
    found = cost(tmp_path, runs=2)
    with pytest.raises(AssertionError):
        check(found)


WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
import homeostat
try:
    {statement}
except ImportError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("statement", ["homeostat.keras", "from homeostat import keras"])
@pytest.mark.parametrize("absent", [["keras"], ["tensorflow"]])
def test_a_missing_framework_names_the_extra(statement: str, absent: list[str]) -> None:
    code = WITHOUT.format(absent=absent, statement=statement)
    said = run(code, SOURCE.parent, KERAS_BACKEND="tensorflow")
    assert said.startswith("MissingExtraError homeostat.keras needs the package")
    assert absent[0] in said
    assert "pip install 'homeostat[tensorflow]'" in said


def test_missing_pytorch_names_the_extra() -> None:
    code = WITHOUT.format(absent=["torch"], statement="homeostat.torch")
    said = run(code, SOURCE.parent)
    assert said.startswith("MissingExtraError homeostat.torch needs the package 'torch'")
    assert "pip install 'homeostat[torch]'" in said


def test_a_fault_of_our_own_is_not_called_a_missing_extra() -> None:
    code = WITHOUT.format(absent=["keras"], statement="import homeostat.keras.nonsense")
    assert run(code, SOURCE.parent).startswith("ModuleNotFoundError")


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'; it has"):
        homeostat.nonsense  # noqa: B018
    assert set(homeostat.__all__) == set(dir(homeostat))
    # TF1 switches TensorFlow 2's behaviour off.
    for name in set(homeostat.__all__) - {"keras", "tf1"}:
        assert getattr(homeostat, name) is not None
