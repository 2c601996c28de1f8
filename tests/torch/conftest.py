from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest

from tests.ops.adapters import kernels_for_all

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(3)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture(params=["small", "large", "loops"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Whether small inputs take their own, short way, or that of large ones, or of the loops."""
    if request.param != "small":
        monkeypatch.setattr("homeostat.torch.small.few_calls_are_best", lambda *_, **__: False)
    if request.param == "loops":
        pytest.importorskip("numba", reason="the CPU kernels need numba")
    with kernels_for_all() if request.param == "loops" else contextlib.nullcontext():
        yield request.param


def named(value: object) -> str:
    """Write a value as a test's name, which every process must give alike."""
    if isinstance(value, dict):
        return ", ".join(f"{key}={named(each)}" for key, each in value.items())
    return getattr(value, "__name__", None) or str(value)
