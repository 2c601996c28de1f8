"""What stands in the way of Triton is told before it ends the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from homeostat.errors import MissingExtraError, UnsupportedError
from homeostat.kernels.loading import check_triton


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, extra in (("torch", "torch"), ("triton", "gpu")):
        with monkeypatch.context() as patch:
            found = {"torch": object(), "triton": object(), name: None}
            patch.setattr("importlib.util.find_spec", found.get)
            with pytest.raises(MissingExtraError, match=rf"homeostat\[{extra}\]"):
                check_triton()


def test_tensorflow_before_triton_is_an_error_that_can_be_caught() -> None:
    pytest.importorskip("tensorflow")
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    program = """
import tensorflow
from homeostat.errors import UnsupportedError
try:
    import homeostat.kernels.gpu
except UnsupportedError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "Import triton before tensorflow." in run.stdout


def test_triton_before_tensorflow_works() -> None:
    pytest.importorskip("tensorflow")
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    program = "import triton, tensorflow, homeostat.kernels.gpu"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_the_order_is_what_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"torch": object(), "triton": object()}
    monkeypatch.setattr("importlib.util.find_spec", found.get)
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    check_triton()
    monkeypatch.setitem(sys.modules, "tensorflow", sys)
    with pytest.raises(UnsupportedError, match="before"):
        check_triton()
    monkeypatch.setitem(sys.modules, "triton", sys)
    check_triton()
