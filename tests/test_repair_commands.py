"""`homeostat recalibrate` and `homeostat convert`: files in, files out, nothing lost."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from homeostat.cli.output import check_output, write_beside
from homeostat.errors import DataError
from tests.command import run_homeostat, start_homeostat

MODULE = """
import os, time
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))

def other():
    return nn.Sequential(nn.BatchNorm1d(4))

def slow():
    for i in range(1000):
        open("started", "a").write("x")
        time.sleep(0.05)
        yield torch.randn(8, 3)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mynet.py").write_text(MODULE)
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.normal(3, 2, (150, 3)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    sys.path.insert(0, str(tmp_path))
    import mynet

    torch.save(mynet.net().state_dict(), tmp_path / "net.pt")
    sys.path.remove(str(tmp_path))
    del sys.modules["mynet"]
    return tmp_path


def recalibrate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_homeostat(
        "recalibrate", "mynet:net", "--weights", "net.pt", *arguments, COLUMNS="120"
    )


@pytest.mark.parametrize("method", ["together", "in-order"])
@pytest.mark.parametrize("out", ["new.pt", "new.safetensors"])
def test_a_file_with_the_datas_statistics(folder: Path, out: str, method: str) -> None:
    before = (folder / "net.pt").read_bytes()
    done = recalibrate("--data", "x.npy", "-o", out, "--batch-size", "40", "--method", method)
    assert done.returncode == 0, done.stderr
    assert "150 examples in 4 batches" in done.stdout
    assert f"To undo: rm {out}" in done.stdout
    assert (folder / "net.pt").read_bytes() == before
    new = load_file(out) if out.endswith("tensors") else torch.load(out, weights_only=True)
    old = torch.load("net.pt", weights_only=True)
    inputs = np.load("x.npy") @ old["0.weight"].numpy().T + old["0.bias"].numpy()
    np.testing.assert_allclose(new["1.running_mean"], inputs.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(new["1.running_var"], inputs.var(0, ddof=1), rtol=1e-5)
    assert torch.equal(new["0.weight"], old["0.weight"])
    assert sorted(path.name for path in folder.iterdir() if path.name[0] == ".") == []


def test_what_is_there_is_kept(folder: Path) -> None:
    (folder / "new.pt").write_text("precious")
    refused = recalibrate("--data", "x.npy", "-o", "new.pt")
    assert refused.returncode == 2
    assert "new.pt is there already" in refused.stderr
    assert (folder / "new.pt").read_text() == "precious"
    done = recalibrate("--data", "x.npy", "-o", "new.pt", "--force")
    assert "To undo: mv new.pt.bak new.pt" in done.stdout
    assert (folder / "new.pt.bak").read_text() == "precious"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "missing.npy"), "does not exist"),
        (("--data", "x.npy", "--method", "twice"), "expected together or in-order"),
        (("--data", "x.npy", "--image-size", "big"), "is not a size"),
        (("--data", "mynet:typo"), "no attribute 'typo'"),
    ],
)
def test_what_cannot_be_done(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    done = recalibrate(*arguments, "-o", "new.pt")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "new.pt").exists()


def test_ctrl_c_writes_nothing(folder: Path) -> None:
    running = start_homeostat(
        "recalibrate", "mynet:net", "--weights", "net.pt", "--data", "mynet:slow", "-o", "new.pt"
    )
    deadline = time.monotonic() + 120
    while not (folder / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    running.send_signal(signal.SIGINT)
    out, _ = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "nothing was written" in out
    assert not (folder / "new.pt").exists()


def test_norms_move_between_files(folder: Path) -> None:
    (folder / "names.json").write_text(json.dumps({"1": "0"}))
    state = torch.load("net.pt", weights_only=True)
    state["1.running_mean"] += 3
    torch.save(state, "net.pt")
    done = run_homeostat(
        "convert", "mynet:net", "mynet:other", "--source-weights", "net.pt", "-o", "new.pt",
        "--mapping", "names.json", COLUMNS="120",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "mapping" in done.stdout
    assert torch.load("new.pt", weights_only=True)["0.running_mean"].eq(3).all()
    # The file alone does not tell the epsilon, and its one norm fits the target's one.
    done = run_homeostat("convert", "net.pt", "mynet:other", "-o", "again.pt", COLUMNS="120")
    assert done.returncode == 0, done.stderr
    assert "epsilon is the target's own" in done.stdout


def test_a_failed_save_leaves_everything(tmp_path: Path) -> None:
    out = tmp_path / "out.pt"
    out.write_text("precious")

    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_beside(out, fail)
    assert [path.name for path in tmp_path.iterdir()] == ["out.pt"]
    assert out.read_text() == "precious"


def test_every_version_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out file.pt"
    for number in range(3):
        undo = write_beside(out, lambda path, n=number: path.write_text(str(n)))
    assert out.read_text() == "2"
    assert {p.name: p.read_text() for p in tmp_path.iterdir() if "bak" in p.name} == {
        "out file.pt.bak": "0",
        "out file.pt.bak2": "1",
    }
    assert undo == f"mv '{tmp_path}/out file.pt.bak2' '{tmp_path}/out file.pt'"


def test_outputs_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder"):
        check_output(tmp_path, force=True)
    with pytest.raises(DataError, match="does not exist"):
        check_output(tmp_path / "nowhere" / "x.pt", force=True)
