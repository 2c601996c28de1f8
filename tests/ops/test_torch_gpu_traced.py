"""What a compiler sees of PyTorch's operations on the kernels for GPUs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import homeostat
from tests.kernels.gpu.devices import DEVICE, ON_GPU, need_compiler

need_compiler()
torch = pytest.importorskip("torch", reason="the GPU kernels need PyTorch")
triton = pytest.importorskip("triton", reason="the GPU kernels need the extra gpu")

from torch._dynamo.backends.common import aot_autograd  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

from homeostat.torch import BatchNorm2d  # noqa: E402


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION is unset:UserWarning")
def test_the_compiler_sees_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU the graph is looked at, not run."""

    class SeenError(Exception):
        pass

    def see(graph: Any, _: Any) -> Any:
        names.extend(str(node.target) for node in graph.graph.nodes)
        raise SeenError

    if not ON_GPU:
        target = SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 90, 32))
        monkeypatch.setattr(triton.runtime.driver, "_active", target)
        monkeypatch.setattr(homeostat.kernels, "enabled_on", lambda device: True)
    names: list[str] = []
    torch._dynamo.reset()
    module = BatchNorm2d(6, activation="relu").to(DEVICE)
    compiled = torch.compile(module, backend=aot_autograd(fw_compiler=see), fullgraph=True)
    failure = pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="SeenError")
    with homeostat.kernels(True, gpu=True), failure:
        compiled(*torch.randn(2, 40, 6, 50, 5, device=DEVICE).requires_grad_())
    torch._dynamo.reset()
    assert any("triton_kernel_wrapper" in name for name in names)
    # None of the formula that the compiler takes apart elsewhere is left.
    assert not any("rsqrt" in name or "var" in name for name in names)
