"""Models by the names that they have on a command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from homeostat.errors import DataError, ModelFileError, SpecError, UnsupportedError
from homeostat.models import open_live, open_model
from tests.command import run_python

FACTORIES = """
import torch
from torch import nn

SIZE = 3

def build():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))

class Nets:
    @staticmethod
    def inner():
        return build()

def _private():
    return build()

def build_array():
    return [1, 2]

def build_nothing():
    pass

def fail():
    raise KeyError("bn")

def wants(size):
    return build()

def leave():
    raise KeyboardInterrupt
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current folder, which is not on the path."""
    name = f"nets_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each not in ("", ".")])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return name


def state(seed: float = 2.0) -> dict[str, Any]:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    network[1].running_var.fill_(seed)
    return network.state_dict()


def test_a_file(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "a.pt")
    for path in (tmp_path / "a.pt", str(tmp_path / "a.pt")):
        (norm,) = open_model(path).norms
        np.testing.assert_array_equal(norm.arrays["moving_variance"], np.full(4, 2, np.float32))


def test_a_file_whose_name_looks_like_a_factory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(state(), "nets:build")
    assert len(open_model("nets:build").norms) == 1


@pytest.mark.parametrize("name", ["build", "Nets.inner", "_private"])
def test_a_factory(module: str, name: str) -> None:
    pytest.importorskip("homeostat.models.torch")
    before = sys.path[:]
    record = open_model(f"{module}:{name}")
    assert [norm.name for norm in record.norms] == ["1"]
    assert record.norms[0].epsilon == 1e-5
    assert sys.path == before
    assert isinstance(open_live(f"{module}:{name}").model, torch.nn.Sequential)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_factory_and_weights(module: str, tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("homeostat.models.torch")
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(state(5.0), path)
    else:
        from safetensors.torch import save_file

        save_file(state(5.0), path)
    for found in (open_model(f"{module}:build", path), open_live(f"{module}:build", path).record()):
        np.testing.assert_array_equal(found.norms[0].arrays["moving_variance"], np.full(4, 5.0))


BAD = [
    ("no_such_module_at_all:build", "cannot be imported.*No module named", SpecError),
    ("{}:missing", r"'missing', which is not there.*such as .*build, build_array", SpecError),
    ("{}:Nets.missing", "'missing', which is not there", SpecError),
    ("{}:SIZE", "is a int: expected a function", SpecError),
    ("{}:fail", "failed, KeyError: 'bn'", SpecError),
    ("{}:wants", "failed, TypeError.*without arguments", SpecError),
    ("{}:build_array", "returned what is no model.*type list", UnsupportedError),
    ("{}:build_nothing", "returned what is no model.*type NoneType", UnsupportedError),
]


@pytest.mark.parametrize(("source", "match", "error"), BAD)
def test_names_that_make_no_model(
    module: str, source: str, match: str, error: type[Exception]
) -> None:
    for open_it in (open_model, open_live):
        with pytest.raises(error, match=match):
            open_it(source.format(module))


def test_modules_that_cannot_be_imported(module: str, tmp_path: Path) -> None:
    (tmp_path / "broken_module.py").write_text("import no_such_dependency")
    with pytest.raises(SpecError, match="No module named 'no_such_dependency'"):
        open_model("broken_module:build")
    (tmp_path / "broken_syntax.py").write_text("def build(:")
    with pytest.raises(SpecError, match="broken_syntax cannot be imported"):
        open_model("broken_syntax:build")


def test_ctrl_c_in_a_factory_is_ctrl_c(module: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        open_model(f"{module}:leave")


def test_paths_and_weights_that_do_not_fit(module: str, tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "a.pt")
    with pytest.raises(SpecError, match=r"expected weights with package\.module:factory alone"):
        open_model(tmp_path / "a.pt", tmp_path / "a.pt")
    with pytest.raises(DataError, match="does not exist"):
        open_model(f"{module}:build", tmp_path / "missing.pt")
    for open_it in (open_model, open_live):
        with pytest.raises(DataError, match="does not exist"):
            open_it("missing.keras")
        with pytest.raises(DataError, match="does not exist"):
            open_it("x" * 5000)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ModelFileError, match="is in no format that is known"):
        open_model(tmp_path / "text")


@pytest.mark.parametrize("name", ["a.pt", "a.weights.h5", "a.safetensors", "a.onnx"])
def test_arrays_alone_are_no_live_model(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UnsupportedError, match=r"arrays and not the code.*this file as its weig"):
        open_live(tmp_path / name)


def test_what_is_missing_for_a_keras_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.keras").write_bytes(b"PK")
    code = (
        "import sys; sys.modules['keras'] = None\n"
        "from homeostat.models import open_live\n"
        f"open_live({str(tmp_path / 'a.keras')!r})"
    )
    done = run_python("-c", code)
    assert "MissingExtraError: a Keras model cannot run without the package 'keras'" in done.stderr
    assert "pip install 'homeostat[tensorflow]'" in done.stderr
