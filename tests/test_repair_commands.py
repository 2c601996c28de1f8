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
from homeostat.models.files import read_model_file
from tests.command import run_homeostat, run_python, start_homeostat

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


SAVE_TF1 = """
import numpy as np
import homeostat.tf1 as tf
x = tf.placeholder(tf.float32, [None, 6, 6, 3])
y = tf.layers.conv2d(x, 4, 3)
y = tf.layers.batch_normalization(y, training=True, name="bn_a")
y = tf.layers.conv2d(y, 4, 3)
y = tf.layers.batch_normalization(y, training=True, name="bn_b")
with tf.Session() as session:
    session.run(tf.global_variables_initializer())
    rng = np.random.default_rng(0)
    for _ in range(5):
        session.run(tf.get_collection(tf.GraphKeys.UPDATE_OPS), {x: rng.normal(3, 2, (8, 6, 6, 3))})
    tf.train.Saver().save(session, "old.ckpt")
"""

SAVE_KERAS = """
import keras
layers = keras.layers
stack = [keras.Input((6, 6, 3))]
for name in "ab":
    stack += [layers.Conv2D(4, 3), layers.BatchNormalization(name=f"bn_{name}")]
keras.Sequential(stack).save("new.keras")
"""


def test_from_a_tensorflow_1_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tf_keras")
    monkeypatch.chdir(tmp_path)
    for code in (SAVE_TF1, SAVE_KERAS):
        done = run_python("-c", code)
        assert done.returncode == 0, done.stderr[-3000:]
    done = run_homeostat("convert", "old.ckpt", "new.keras", "-o", "done.keras", COLUMNS="120")
    assert done.returncode == 0, done.stderr
    old, new = (read_model_file(tmp_path / name) for name in ("old.ckpt", "done.keras"))
    assert [norm.name for norm in old.norms] == [norm.name for norm in new.norms]
    for theirs, ours in zip(old.norms, new.norms, strict=True):
        assert np.any(theirs.moving_mean)
        for name, array in theirs.arrays.items():
            np.testing.assert_array_equal(ours.arrays[name], array)


DATASET = """
import numpy as np
import tensorflow as tf

def images():
    def parse(record):
        features = {"x": tf.io.FixedLenFeature([6 * 6 * 3], tf.float32)}
        found = tf.io.parse_single_example(record, features)
        return tf.reshape(found["x"], (6, 6, 3))
    return tf.data.TFRecordDataset("x.tfrecord").map(parse).batch(16)

def write():
    x = np.random.default_rng(0).normal(3, 2, (50, 108)).astype("float32")
    np.save("x.npy", x.reshape(50, 6, 6, 3))
    with tf.io.TFRecordWriter("x.tfrecord") as writer:
        for row in x:
            feature = {"x": tf.train.Feature(float_list=tf.train.FloatList(value=row))}
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            writer.write(example.SerializeToString())
"""


def test_tfrecords_by_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mydata.py").write_text(DATASET)
    done = run_python("-c", SAVE_KERAS + "\nimport mydata; mydata.write()")
    assert done.returncode == 0, done.stderr[-3000:]
    for data, out in (("mydata:images", "a.keras"), ("x.npy", "b.keras")):
        done = run_homeostat(
            "recalibrate", "new.keras", "--data", data, "--batch-size", "16", "-o", out
        )
        assert done.returncode == 0, done.stderr
        assert "50 examples in 4 batches" in " ".join(done.stdout.split())
    first, second = (read_model_file(tmp_path / name) for name in ("a.keras", "b.keras"))
    for theirs, ours in zip(first.norms, second.norms, strict=True):
        assert np.any(theirs.moving_mean)
        np.testing.assert_allclose(theirs.moving_mean, ours.moving_mean, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(theirs.moving_variance, ours.moving_variance, rtol=1e-6)
