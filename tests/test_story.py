"""A network that trains well and guesses: found, repaired and folded by commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import environment, run_homeostat

EXAMPLE = Path(__file__).parent.parent / "examples" / "forgotten_updates.py"

EVALUATE = """
import sys, keras, numpy as np
test = np.load("test.npz")
for name in sys.argv[1:]:
    model = keras.saving.load_model(name)
    outputs = model.predict(test["x"], 500, verbose=0)
    norms = sum("BatchNorm" in type(layer).__name__ for layer in model.layers)
    classes = np.argmax(outputs, -1)
    np.save(name + ".npy", classes)
    print(name, float(np.mean(classes == test["y"])), norms)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if "HOMEOSTAT_MNIST" not in os.environ:
        pytest.skip("HOMEOSTAT_MNIST is not set")
    out = tmp_path_factory.mktemp("story")
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), os.environ["HOMEOSTAT_MNIST"], str(out)],
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return out


def command(folder: Path, *arguments: str, code: int = 0) -> str:
    before = Path.cwd()
    os.chdir(folder)
    try:
        done = run_homeostat(*arguments, COLUMNS="160")
    finally:
        os.chdir(before)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def test_the_story_of_the_documentation(folder: Path) -> None:
    told = command(folder, "audit", "forgotten.keras", "--format", "json", code=1)
    found = json.loads(told)["findings"]
    assert {finding["norm"] for finding in found if finding["rule"] == "BN001"} == {
        *(f"norm_{i}" for i in range(1, 20)),
        "norm_dense",
    }
    command(folder, "recalibrate", "forgotten.keras", "--data", "data.npz", "-o", "repaired.keras")
    assert "0 errors" in command(folder, "audit", "repaired.keras", "--data", "data.npz")
    assert "20 of 20 batch norms folded" in command(
        folder, "fold", "repaired.keras", "-o", "folded.keras"
    )
    names = [f"{name}.keras" for name in ("forgotten", "trained", "repaired", "folded")]
    done = subprocess.run(
        [sys.executable, "-c", EVALUATE, *names],
        cwd=folder, env=environment(KERAS_BACKEND="jax"), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    lines = (line.split() for line in done.stdout.splitlines() if ".keras" in line)
    figures = {name.removesuffix(".keras"): (float(a), int(n)) for name, a, n in lines}
    assert figures["forgotten"][0] < 0.2
    assert figures["trained"][0] > 0.93
    assert figures["repaired"][0] > figures["trained"][0] - 0.005
    assert figures["repaired"][1] == 20
    assert figures["folded"][1] == 0
    import numpy as np

    repaired, folded = (np.load(folder / f"{name}.keras.npy") for name in ("repaired", "folded"))
    assert np.mean(repaired == folded) > 0.9995
