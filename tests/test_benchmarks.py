"""The layer benchmark runs, checks before it times, and writes its rows."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import folding, kernels, layers, tf1
from benchmarks.steps import Arrays
from homeostat import reference
from homeostat.bench import timing


def test_the_command_writes_a_row_for_every_layer(tmp_path):
    pytest.importorskip("tensorflow")
    out = tmp_path / "rows.csv"
    command = [sys.executable, "-m", "benchmarks.layers", "--backend", "tensorflow"]
    command += ["--rounds", "3", "--shapes", "64x32", "--out", str(out)]
    result = subprocess.run(
        command, cwd=Path(__file__).parent.parent, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
    with out.open() as file:
        rows = list(csv.DictReader(file))
    layers_ = ["copy", "keras", "homeostat", "again"]
    assert [row["layer"] for row in rows] == layers_ * 2
    assert all(float(row["p50_ms"]) > 0 for row in rows)


def test_a_wrong_result_is_not_timed():
    x = layers.make_input((64, 5))
    dy = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    y, _ = reference.normalize_batch(x)
    exact = reference.backward(dy, x)
    layers.check(Arrays(y, exact.x, exact.gamma, exact.beta), x, dy, None)
    with pytest.raises(SystemExit, match="dx is off"):
        layers.check(Arrays(y, exact.x + 0.01, exact.gamma, exact.beta), x, dy, None)


def test_candidates_take_turns():
    calls = []
    candidates = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    times = timing.interleave(candidates, rounds=10)
    assert 0 < times["a"].p20 <= times["a"].p50 <= times["a"].p80
    assert calls.count("a") > 10 < calls.count("b")


@pytest.mark.parametrize(
    ("benchmark", "page"), [(layers, "speed"), (tf1, "speed"), (folding, "fold")]
)
def test_the_documented_table_is_the_committed_measurement(benchmark, page):
    root = Path(__file__).parent.parent
    name = benchmark.__name__.rpartition(".")[2]
    with (root / "benchmarks" / "results" / f"{name}.csv").open() as file:
        table = benchmark.markdown(list(csv.DictReader(file)))
    assert table in (root / "docs" / f"{page}.md").read_text()


def test_tf1_programs_are_measured_in_sessions(tmp_path):
    pytest.importorskip("tf_keras")
    out = tmp_path / "tf1.csv"
    command = [sys.executable, "-m", "benchmarks.tf1", "--network", "dense", "--rounds", "3"]
    result = subprocess.run(
        [*command, "--out", str(out)],
        cwd=Path(__file__).parent.parent, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["layer"] for row in rows] == ["legacy", "homeostat", "again"] * 2
    assert all(float(row["steps_per_s"]) > 0 for row in rows)


def test_networks_that_train_differently_are_not_timed():
    step, values = (lambda: None), [np.ones(3), np.zeros(2)]
    off = [values[0], values[1] + 0.01]
    tf1.check((step, lambda: values), (step, lambda: values))
    with pytest.raises(SystemExit, match="training is off"):
        tf1.check((step, lambda: values), (step, lambda: off))


def test_the_documented_table_of_the_kernels_is_the_committed_measurement():
    root = Path(__file__).parent.parent
    with (root / "benchmarks" / "results" / "kernels.csv").open() as file:
        table = kernels.markdown(list(csv.DictReader(file)))
    assert table in (root / "docs" / "speed.md").read_text()


def test_the_benchmark_of_the_kernels_writes_a_row_for_every_layer(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("numba")
    out = tmp_path / "rows.csv"
    command = [sys.executable, "-m", "benchmarks.kernels", "--rounds", "3", "--dtypes", "float32"]
    command += ["--shapes", "4x64x32x32", "--orders", "last", "--allocator", "keep"]
    result = subprocess.run(
        [*command, "--out", str(out)],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["layer"] for row in rows] == ["copy", "torch", "native", "homeostat", "again"] * 3
    assert {row["fused"] for row in rows} == {"none", "relu", "add+relu"}


@pytest.mark.slow
def test_folding_is_measured_on_a_published_network(tmp_path):
    pytest.importorskip("tensorflow")
    out = tmp_path / "folding.csv"
    command = [sys.executable, "-m", "benchmarks.folding", "--network", "MobileNetV2"]
    command += ["--rounds", "1", "--out", str(out)]
    result = subprocess.run(
        command, cwd=Path(__file__).parent.parent, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
    with out.open() as file:
        (row,) = csv.DictReader(file)
    assert (row["norms"], row["folded"], row["parameters_saved"]) == ("52", "52", "51168")
    assert float(row["error"]) < 1e-6
    assert float(row["before_ms"]) > 0
