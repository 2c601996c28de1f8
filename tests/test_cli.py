from __future__ import annotations

import pytest

import homeostat
from tests.command import run_homeostat, run_python


def test_version():
    run = run_homeostat("--version")
    assert (run.returncode, run.stdout) == (0, f"homeostat {homeostat.__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], ["study", "report", "run", "graph", "warmup", "bench"]),
        (["study", "--help"], ["homeostat study lesson --data mnist", "--backend", "Exit codes"]),
        (["report", "--help"], ["homeostat report mnist-full", "without training"]),
        (["bench", "--help"], ["homeostat bench --quick", "--allocator", "Exit codes"]),
        (["warmup", "--help"], ["homeostat warmup --dtype float32", "Exit codes"]),
    ],
)
def test_help_teaches(arguments, words):
    run = run_homeostat(*arguments)
    assert run.returncode == 0
    text = " ".join(run.stdout.split())
    assert all(word in text for word in words)


LOADED = """
import sys
from homeostat.cli import app
try:
    app(sys.argv[1:])
finally:
    print(sorted(set(sys.modules) & {"keras", "tensorflow", "jax", "torch", "sklearn", "plotly"}))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        [*command, "--help"]
        for command in ([], ["study"], ["report"], ["bench"], ["run"], ["graph"], ["warmup"])
    ],
)
def test_help_loads_no_framework(arguments):
    run = run_python("-c", LOADED, *arguments)
    assert run.stdout.splitlines()[-1] == "[]"


def test_report_loads_no_framework(digits_study):
    run = run_python("-c", LOADED, "report", str(digits_study))
    assert run.stdout.splitlines()[-1] == "['plotly']", run.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["study", "resnet"], "study 'resnet' is not known: expected 'lesson'"),
        (["study", "--data", "nowhere"], "neither a known name nor a folder"),
        (["study", "--grid", "huge"], "grid='huge' is not known: expected one of quick, full"),
        (["study", "--backend", "theano"], "expected one of tensorflow, jax, torch"),
        (["study", "--steps", "0"], "steps=0 is too small: expected a whole number, at least 1"),
        (["report", "nowhere"], "Give the folder that `homeostat study` wrote"),
    ],
)
def test_what_cannot_run_is_said_in_a_line_with_exit_code_2(tmp_path, arguments, message):
    out = ["--out", str(tmp_path)] if arguments[0] == "study" else []
    run = run_homeostat(*arguments, *out, KERAS_BACKEND="jax")
    assert run.returncode == 2
    assert message in " ".join(run.stderr.split())
    assert "Traceback" not in run.stderr


MISSING = """
import importlib.util, sys
missing = sys.argv[1]
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == missing else find(name, *rest)
from homeostat.cli import main
sys.argv = ["homeostat", "study", "--backend", missing, "--out", sys.argv[2]]
main()
"""


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_a_missing_backend_names_its_install_command(tmp_path, backend):
    run = run_python("-c", MISSING, backend, str(tmp_path))
    assert run.returncode == 2
    assert f"pip install 'homeostat[{backend}]'" in run.stderr


WITHOUT = """
import sys
sys.modules[sys.argv[1]] = None
from homeostat.cli import main
sys.argv = ["homeostat", "report", sys.argv[2]]
main()
"""


@pytest.mark.parametrize("package", ["jinja2", "plotly"])
def test_without_the_report_extra_the_table_stands(digits_study, tmp_path, package):
    rows = (digits_study / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(rows)
    run = run_python("-c", WITHOUT, package, str(tmp_path))
    assert run.returncode == 0, run.stderr
    assert "Test accuracy without and with batch norm" in run.stdout
    assert "pip install 'homeostat[study]'" in run.stderr
    assert not (tmp_path / "report.html").exists()
