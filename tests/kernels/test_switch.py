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
