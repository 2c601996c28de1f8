"""The examples of the TF1 front door reach their figures on the real MNIST."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples" / "tf1"


def figures(script: str) -> dict[str, float]:
    """Run an example and return the figures that it prints, by what stands before each."""
    if "HOMEOSTAT_MNIST" not in os.environ:
        pytest.skip("HOMEOSTAT_MNIST is not set")
    pytest.importorskip("tf_keras")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "homeostat.cli", "run", "--check", "error"),
            *(str(EXAMPLES / script), os.environ["HOMEOSTAT_MNIST"]),
        ],
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert "deprecated" not in done.stderr
    assert "homeostat:" not in done.stderr
    return {
        name: float(value) for name, value in (x.rsplit(" ", 1) for x in done.stdout.splitlines())
    }


def test_the_lesson() -> None:
    found = figures("lesson.py")
    assert found["accuracy"] >= 0.94
    assert found["one image at a time"] >= 0.93


def test_slim_in_an_estimator() -> None:
    found = figures("slim_estimator.py")
    assert found["accuracy at step 300"] >= 0.95
    assert found["accuracy"] >= 0.97
    assert found["global step"] == 700
    assert found["accuracy of predictions"] == found["accuracy"]
