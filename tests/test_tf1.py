"""Runs tests/tf1 in a process of its own, with TensorFlow 2's behaviour off."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_tf1_front_door() -> None:
    pytest.importorskip("tensorflow")
    pytest.importorskip("tf_keras")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/tf1", "-q", "-n", "0", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env=os.environ | {"HOMEOSTAT_TF1": "1", "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    assert " passed" in result.stdout
