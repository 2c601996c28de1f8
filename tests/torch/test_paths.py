"""Which kernels a training step runs on, by what it looks like."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("numba", reason="the CPU kernels need numba")

import homeostat  # noqa: E402
from homeostat.torch import BatchNorm2d  # noqa: E402

FIRST, LAST = torch.contiguous_format, torch.channels_last


def path_of(x: Any) -> str:
    return type(BatchNorm2d(x.shape[1])(x.requires_grad_()).grad_fn).__name__


@pytest.mark.parametrize(
    ("shape", "order", "dtype", "loops"),
    [
        ((8, 64, 16, 16), FIRST, torch.float32, True),
        ((8, 32, 16, 16), FIRST, torch.float32, False),
        ((8, 32, 16, 16), FIRST, torch.bfloat16, True),
        ((8, 8, 16, 16), FIRST, torch.bfloat16, False),
        ((64, 64, 6, 6), FIRST, torch.float32, True),
        ((128, 64, 4, 4), FIRST, torch.float32, False),
        ((8, 64, 16, 16), LAST, torch.float32, True),
        ((4, 8, 16, 16), LAST, torch.float32, False),
    ],
)
def test_large_tensors_of_long_lines_run_on_the_loops(
    shape: Any, order: Any, dtype: Any, loops: bool
) -> None:
    x = torch.randn(shape).to(dtype).to(memory_format=order)
    assert (path_of(x) == "CompiledBackward") == loops


def test_without_the_loops_mid_sized_steps_take_few_calls() -> None:
    x = torch.randn(8, 64, 16, 16)
    with homeostat.kernels(False):
        assert path_of(x) == "NativeBatchNormBackward0"
    assert path_of(x) == "CompiledBackward"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("order", [FIRST, LAST], ids=str)
def test_inference_that_fuses_nothing_is_one_call_of_pytorchs(dtype: Any, order: Any) -> None:
    x = torch.randn(8, 64, 64, 64).to(dtype).to(memory_format=order).requires_grad_()
    bn, native = BatchNorm2d(64).eval(), torch.nn.BatchNorm2d(64).eval()
    bn.running_mean.fill_(0.5), native.running_mean.fill_(0.5)
    y = bn(x)
    assert type(y.grad_fn).__name__ == "NativeBatchNormBackward0"
    assert torch.equal(y, native(x))
    assert y.is_contiguous(memory_format=order)
    # Beyond what its kernel computes exactly, another way takes the call.
    bn.running_mean.fill_(1e4)
    assert type(bn(x).grad_fn).__name__ != "NativeBatchNormBackward0"
