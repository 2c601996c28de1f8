"""Real Keras files for tests, saved in a process of its own; and how two records differ."""

from __future__ import annotations

import dataclasses
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from homeostat.models import BatchNormRecord, ModelRecord

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models that Keras 3 and tf-keras saved; see `save_keras_models`."""
    pytest.importorskip("keras")
    pytest.importorskip("tf_keras")
    folder = tmp_path_factory.mktemp("keras")
    done = subprocess.run(
        [sys.executable, "-m", "tests.models.save_keras_models", str(folder)],
        cwd=ROOT,
        env=os.environ | {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def live(folder: Path, name: str) -> Any:
    return pickle.loads((folder / f"{name}.pickle").read_bytes())  # noqa: S301


def differences(first: ModelRecord, second: ModelRecord) -> list[Any]:
    """Return the fields in which two records differ, but for name and source."""
    found: list[Any] = []
    for field in dataclasses.fields(ModelRecord):
        if field.name not in ("name", "source", "norms", "notes"):
            values = getattr(first, field.name), getattr(second, field.name)
            found += [(field.name, *values)] if values[0] != values[1] else []
    names = [norm.name for norm in first.norms], [norm.name for norm in second.norms]
    if names[0] != names[1]:
        return [*found, ("norms", *names)]
    for one, other in zip(first.norms, second.norms, strict=True):
        for field in dataclasses.fields(BatchNormRecord):
            values = getattr(one, field.name), getattr(other, field.name)
            if not same(*values):
                found.append((one.name, field.name, *values))
    return found


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=True)
    return type(one) is type(other) and one == other
