"""Without a GPU the kernels run in Triton's interpreter, in processes of their own.

Triton decides when it is first imported whether it interprets, and the rest of the tests, which
compile, must not see it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.gpu.devices import INTERPRETED, ON_GPU

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.skipif(ON_GPU, reason="there is a GPU: the kernels run there")
@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter's process")
@pytest.mark.parametrize(
    "module", ["test_steps.py", "test_exactness.py", "../../ops/test_torch_gpu.py"]
)
def test_kernels_pass_in_the_interpreter(module: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", HERE / module],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        cwd=HERE.parents[2],
    )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert re.search(r"\d{2,} passed", run.stdout), run.stdout[-2000:]
    assert "skipped" not in run.stdout, run.stdout[-2000:]
