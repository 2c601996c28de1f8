"""Where the kernels run in tests: on a GPU, or without one in Triton's interpreter."""

from __future__ import annotations

import os

import pytest

torch = pytest.importorskip("torch", reason="the GPU kernels need PyTorch")
pytest.importorskip("triton", reason="the GPU kernels need the extra gpu")

ON_GPU = torch.cuda.is_available()
# Triton reads it once, when it is first imported: so the interpreter has processes of its own.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and not ON_GPU
DEVICE = torch.device("cuda" if ON_GPU else "cpu")


def need_kernels() -> None:
    """Skip a module where no kernel can run."""
    if not (ON_GPU or INTERPRETED):
        reason = "no GPU here: test_interpreter runs this module in Triton's interpreter"
        pytest.skip(reason, allow_module_level=True)


def need_compiler() -> None:
    """Skip a module where Triton only interprets."""
    if INTERPRETED:
        pytest.skip("Triton's interpreter does not compile", allow_module_level=True)
