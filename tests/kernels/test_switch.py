"""The switch of the kernels."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import homeostat

pytest.importorskip("numba", reason="the kernels need numba")


def test_the_module_is_a_switch() -> None:
    assert homeostat.kernels.enabled()
    homeostat.kernels(False)
    try:
        assert not homeostat.kernels.enabled()
        with homeostat.kernels(True):
            assert homeostat.kernels.enabled()
        assert not homeostat.kernels.enabled()
    finally:
        homeostat.kernels(True)


def test_leaving_by_an_error_sets_the_switch_back() -> None:
    with pytest.raises(KeyError), homeostat.kernels(False):
        raise KeyError
    assert homeostat.kernels.enabled()


def test_those_for_gpus_have_a_switch_of_their_own() -> None:
    pytest.importorskip("triton", reason="the GPU kernels need the extra gpu")
    enabled_on = homeostat.kernels.enabled_on
    assert not enabled_on("cuda")
    with homeostat.kernels(True, gpu=True):
        assert enabled_on("cuda")
        assert not enabled_on("cpu")
        with homeostat.kernels(True):
            assert enabled_on("cuda")
        with homeostat.kernels(False):
            assert not enabled_on("cuda")
        with homeostat.kernels(True, gpu=False):
            assert homeostat.kernels.enabled()
            assert not enabled_on("cuda")
    assert not enabled_on("cuda")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"HOMEOSTAT_GPU_KERNELS": "1"}, "True False"),
        ({"HOMEOSTAT_GPU_KERNELS": "1", "TRITON_INTERPRET": "1"}, "True True"),
        ({"HOMEOSTAT_GPU_KERNELS": "1", "HOMEOSTAT_KERNELS": "0"}, "False False"),
        ({"HOMEOSTAT_GPU_KERNELS": "0"}, "False False"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else value,
)
def test_how_a_process_starts_with_those_for_gpus(
    environment: dict[str, str], expected: str
) -> None:
    pytest.importorskip("triton", reason="the GPU kernels need the extra gpu")
    code = "import homeostat; print(*map(homeostat.kernels.enabled_on, ('cuda', 'cpu')))"
    names = ("HOMEOSTAT_KERNELS", "HOMEOSTAT_GPU_KERNELS", "TRITON_INTERPRET")
    inherited = {k: v for k, v in os.environ.items() if k not in names}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=inherited | environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == expected


@pytest.mark.parametrize(
    ("before", "environment", "expected"),
    [
        ("", {}, "True"),
        ("", {"HOMEOSTAT_KERNELS": "0"}, "False"),
        ("import sys; sys.modules['numba'] = None", {}, "False"),
    ],
    ids=["as it comes", "by the environment", "without numba"],
)
def test_how_a_process_starts(before: str, environment: dict[str, str], expected: str) -> None:
    code = f"{before}\nimport homeostat; print(homeostat.kernels.enabled())"
    inherited = {k: v for k, v in os.environ.items() if k != "HOMEOSTAT_KERNELS"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=inherited | environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == expected
