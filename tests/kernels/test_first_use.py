"""What the first use of the loops costs, and what it says."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.command import run_homeostat

pytest.importorskip("numba", reason="the CPU kernels need numba")
pytest.importorskip("torch")

STEP = """
    import time, warnings
    import torch
    warnings.simplefilter("error")
    from homeostat.ops.torch import normalize_batch
    from homeostat.ops.torch.choice import prefers_loops
    x = torch.randn(64, 32, 32, 64, requires_grad=True)
    assert prefers_loops("train+", "last", 4, x.numel(), 1)
    import numba
    # Of this process alone, however busy the machine.
    start = time.process_time()
    normalize_batch(x, activation="relu")[0].sum().backward()
    print(time.process_time() - start)
"""
NEWS = "Homeostat compiles its CPU kernels"


def first_step(cache: Path) -> tuple[float, str]:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(STEP)], capture_output=True, text=True, check=False,
        env={**os.environ, "NUMBA_CACHE_DIR": str(cache)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return float(done.stdout), done.stderr


def test_the_first_step_compiles_says_so_and_later_processes_load(tmp_path: Path) -> None:
    seconds, said = first_step(tmp_path)
    assert seconds < 10
    assert said.count(NEWS) == 1
    again, said = first_step(tmp_path)
    assert again < 1
    assert NEWS not in said


@pytest.mark.slow
def test_warmup_compiles_ahead(tmp_path: Path) -> None:
    done = run_homeostat("warmup", "--dtype", "float32", NUMBA_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "Ready" in done.stdout
    seconds, said = first_step(tmp_path)
    assert seconds < 1
    assert NEWS not in said


def test_warmup_refuses_what_it_does_not_know() -> None:
    done = run_homeostat("warmup", "--dtype", "int8")
    assert done.returncode == 2
    assert "dtype 'int8' is not known: expected one of float32, bfloat16" in done.stderr


def test_what_was_kept_by_another_version_is_not_used() -> None:
    """Numba sees one file change; the loops' names hold a digest of all of them."""
    from homeostat.kernels import compiled, cpu

    cpu.c_function_of(cpu.rows_moments, "float32")
    assert cpu.rows_moments.__qualname__ == f"rows_moments-{compiled._VERSION}"
