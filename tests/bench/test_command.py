"""`homeostat bench` for real: its processes, what is kept of them, what it says."""

from __future__ import annotations

import csv
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from homeostat.bench.cases import FORMS
from homeostat.bench.columns import COLUMNS
from homeostat.report.bench.rows import read_rows
from tests.command import environment, run_homeostat, run_python, start_homeostat

FEW = ("--rounds", "2", "--threads", "1")
TWO = ("--frameworks", "torch", "--columns", "torch,homeostat.torch")


def cells(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["torch", "jax", "tensorflow"])
def test_a_framework_s_columns_are_measured(tmp_path, framework):
    pytest.importorskip(framework)
    pytest.importorskip("keras")
    run = run_homeostat(
        "bench", "--shapes", "4x3x3x8", "--quick", "--frameworks", framework,
        "--only", "time,accuracy", "--out", str(tmp_path), *FEW,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    names = [column.name for column in COLUMNS if column.framework == framework]
    rows = cells(tmp_path / "times.csv")
    by_call: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        by_call.setdefault((row["layout"], row["form"]), {})[row["column"]] = row["state"]
    assert set(by_call) == {("NCHW", "relu"), *(("NHWC", form) for form in FORMS)}
    for call, states in by_call.items():
        assert set(states) == {"copy", *names, "again"}, call
        ours = {state for name, state in states.items() if name.startswith(("home", "copy"))}
        assert ours == {"measured"}, call
        assert "wrong" not in states.values(), call
    # The least asked of everyone: each is measured where the channels come last.
    assert set(by_call["NHWC", "plain"].values()) == {"measured"}, rows
    accuracy = cells(tmp_path / "accuracy.csv")
    assert {row["column"] for row in accuracy} == set(names)
    near = [float(row["variance_error"]) for row in accuracy if row["data"] == "mean/std 1"]
    assert len(near) == len(names)
    assert max(near) < 1e-5
    assert framework in run.stdout
    assert "floor 4.0" in run.stdout
    assert (tmp_path / "bench.html").stat().st_size > 1_000_000


def test_a_run_tells_its_time_and_goes_on_where_it_stopped(tmp_path):
    pytest.importorskip("torch")
    call = ("bench", "--shapes", "6x4", "--dtype", "float32", "--only", "time", *TWO, *FEW)
    out = ("--out", str(tmp_path))
    process = start_homeostat(*call, *out)
    path = tmp_path / "times.csv"
    deadline = time.monotonic() + 120
    while not (path.exists() and path.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "9 to measure" in said
    assert re.search(r"This will take about \d+ (minutes|hours)", said)
    assert "What is measured is kept" in " ".join(said.split())
    assert "Traceback" not in errors
    kept = {row.job for row in read_rows(tmp_path)}
    assert 0 < len(kept) < 9
    before = path.read_text()
    again = run_homeostat(*call, *out)
    assert again.returncode == 0, again.stderr
    assert f"{9 - len(kept)} to measure" in again.stdout
    assert path.read_text().startswith(before)
    assert len({row.job for row in read_rows(tmp_path)}) == 9
    nothing = run_homeostat(*call, *out)
    assert "0 to measure" in nothing.stdout
    page = tmp_path / "bench.html"
    first = page.read_text()
    page.unlink()
    rebuilt = run_homeostat("bench", "--report", str(tmp_path))
    assert rebuilt.returncode == 0, rebuilt.stderr
    assert page.read_text() == first


def child_of(process: subprocess.Popen[str]) -> int | None:
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    found = listed.read_text().split() if listed.exists() else []
    return int(found[0]) if found else None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the child in /proc")
def test_a_process_that_dies_is_a_dash_and_the_others_go_on(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("jax")
    call = ("bench", "--only", "accuracy", "--frameworks", "torch,jax", "--out", str(tmp_path))
    columns = ("--columns", "torch,homeostat.torch,homeostat.jax", *FEW)
    command = [sys.executable, "-m", "homeostat.cli", *call, *columns]
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while (child := child_of(process)) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert child is not None
    subprocess.run(["kill", "-KILL", str(child)], check=True)
    said, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert "the process ended with signal 9" in said
    assert "Give the command again to go on" in " ".join(said.split())
    rows = read_rows(tmp_path)
    lost = [row for row in rows if row.environment.framework == "torch" and row.state == "failed"]
    assert [row.column for row in lost] == ["torch", "homeostat.torch"]
    assert all("signal 9" in row.note for row in lost)
    others = [row for row in rows if row.environment.framework == "jax"]
    assert len(others) == 6
    assert all(row.state == "measured" for row in others)


MISSING = """
import importlib.util, sys
from importlib.util import find_spec
gone = {"torch", "jax", "tensorflow"}
importlib.util.find_spec = lambda name, *rest: None if name in gone else find_spec(name, *rest)
from homeostat.cli import main
sys.argv = ["homeostat", "bench", *sys.argv[1:]]
main()
"""


def test_without_a_framework_the_extra_is_named(tmp_path):
    run = run_python("-c", MISSING, "--out", str(tmp_path))
    assert run.returncode == 2
    assert "pip install 'homeostat[torch]'" in run.stderr
    run = run_python("-c", MISSING, "--frameworks", "jax", "--out", str(tmp_path))
    assert "jax not installed" in run.stderr
    assert "pip install 'homeostat[jax]'" in run.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "8by8"], "shape '8by8' cannot be read: expected sizes with x between them"),
        (["--shapes", "8"], "shape 8 cannot be measured: expected 2 to 5 sizes"),
        (["--dtype", "float16"], "dtype 'float16' is not known: expected float32, bfloat16"),
        (["--frameworks", "theano"], "framework 'theano' is not known: expected torch, jax"),
        (["--columns", "ours"], "column 'ours' is not known: expected flax.linen"),
        (["--only", "speed"], "part 'speed' is not known: expected time, accuracy, training"),
        (["--allocator", "mine"], "allocator 'mine' is not known: expected keep, system"),
        (["--threads", "0"], "threads=0: expected 1 to"),
        (["--rounds", "1"], "rounds=1 is too small for a spread: expected at least 2"),
        (["--report", "nowhere"], "Run `homeostat bench` first, with this folder as --out"),
    ],
)
def test_what_cannot_run_is_said_in_a_line_with_exit_code_2(tmp_path, arguments, message):
    run = run_homeostat("bench", "--out", str(tmp_path), *arguments)
    assert run.returncode == 2
    assert message in " ".join(run.stderr.split())
    assert "Traceback" not in run.stderr
