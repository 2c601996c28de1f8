"""`homeostat fold`, in processes of its own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.command import run_homeostat, run_python

LOADED = """
import sys
from homeostat.cli import app
try:
    app(sys.argv[1:])
finally:
    print(sorted(set(sys.modules) & {"keras", "tensorflow", "jax", "torch"}))
"""

MODULE = """
def keras_model():
    import keras
    import numpy as np
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((6, 6, 3)), layers.Conv2D(4, 3), layers.BatchNormalization(name="bn")]
    )
    rng = np.random.default_rng(0)
    model.layers[1].set_weights([rng.uniform(0.5, 2, 4) for _ in range(4)])
    return model

def torch_model():
    import torch
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU())
    torch.nn.init.normal_(model[1].running_mean)
    torch.nn.init.normal_(model[1].weight)
    return model

def nothing():
    import torch
    return torch.nn.Sequential(torch.nn.ReLU(), torch.nn.BatchNorm1d(4), torch.nn.ReLU())

def half():
    return torch_model().half()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fold")
    (folder / "made.py").write_text(MODULE)
    return folder


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("homeostat.models.source")
    before = Path.cwd()
    os.chdir(folder)
    try:
        return run_homeostat(
            "fold",
            *arguments,
            PYTHONPATH=os.pathsep.join((str(folder), os.environ.get("PYTHONPATH", ""))),
        )
    finally:
        os.chdir(before)


def test_help_teaches_and_loads_no_framework() -> None:
    done = run_python("-c", LOADED, "fold", "--help")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "[]"
    text = " ".join(done.stdout.split())
    for words in ("homeostat fold model.keras -o folded.keras", "--tolerance", "Exit codes"):
        assert words in text


def test_a_file_is_not_replaced_unless_asked(folder: Path) -> None:
    (folder / "there.pt").write_bytes(b"mine")
    done = run_homeostat("fold", "made:torch_model", "-o", str(folder / "there.pt"))
    assert done.returncode == 2
    assert "is there already: expected a new name" in " ".join(done.stderr.split())
    assert (folder / "there.pt").read_bytes() == b"mine"


@pytest.mark.slow
def test_keras(folder: Path) -> None:
    pytest.importorskip("keras")
    script = "import made, sys; made.keras_model().save(sys.argv[1])"
    saved = run_python(
        "-c", script, str(folder / "model.keras"), PYTHONPATH=str(folder), KERAS_BACKEND="jax"
    )
    assert saved.returncode == 0, saved.stderr
    before = (folder / "model.keras").read_bytes()
    done = run(folder, "model.keras", "-o", "folded.keras")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 of 1 batch norms folded\nbn  BatchNormalization  into conv2d")
    assert "largest relative error, computed in float64" in done.stdout
    assert done.stdout.endswith("Written: folded.keras\nTo undo: rm folded.keras\n")
    assert (folder / "model.keras").read_bytes() == before
    first = (folder / "folded.keras").read_bytes()
    done = run(folder, "model.keras", "-o", "folded.keras", "--force")
    assert done.stdout.endswith("To undo: mv folded.keras.bak folded.keras\n"), done.stderr
    assert (folder / "folded.keras.bak").read_bytes() == first
    assert sorted(path.name for path in folder.glob("*folded*")) == [
        "folded.keras", "folded.keras.bak"
    ]  # fmt: skip


def test_torch_with_data(folder: Path) -> None:
    np, torch = pytest.importorskip("numpy"), pytest.importorskip("torch")
    np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(9, 3)).astype("float32"))
    done = run(folder, "made:torch_model", "--data", "x.npy", "-o", "folded.pt")
    assert done.returncode == 0, done.stderr
    assert "on the given ones" in done.stdout
    assert "inference of 9 examples" in done.stdout
    state = torch.load(folder / "folded.pt", weights_only=True)
    assert sorted(state) == ["0.bias", "0.weight"]


def test_what_is_not_written(folder: Path) -> None:
    pytest.importorskip("torch")
    done = run(folder, "made:nothing", "-o", "none.pt")
    assert (done.returncode, done.stderr) == (1, "Nothing was written.\n")
    assert "not folded: ReLU '0' is before it; ReLU '2' is after it" in done.stdout
    done = run(folder, "made:half", "-o", "none.pt")
    assert done.returncode == 2
    assert "expected at most 1e-05" in " ".join(done.stderr.split())
    assert not list(folder.glob("*none*"))
