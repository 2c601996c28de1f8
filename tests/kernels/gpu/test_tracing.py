"""What `torch.compile` and other tracers see of the GPU's kernels, without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.kernels.gpu.devices import need_compiler, torch

need_compiler()

import triton  # noqa: E402
from torch._dynamo.backends.common import aot_autograd  # noqa: E402
from torch._subclasses import FakeTensorMode  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

from homeostat.kernels import gpu  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION is unset:UserWarning"),
]

# One that is kept on chip in a launch, and one that streams.
SMALL, LARGE = (8, 16, 14, 14), (64, 8, 112, 112)


@pytest.fixture(autouse=True)
def hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tell Triton what to compile for: the tracer reads in its code which tensors it writes."""
    if not torch.cuda.is_available():
        target = SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 90, 32))
        monkeypatch.setattr(triton.runtime.driver, "_active", target)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def shape_of(x: torch.Tensor) -> gpu.Shape:
    return gpu.Shape(x.shape[0], x.shape[1], x.shape[2] * x.shape[3])


def whole_step(x: Any, gamma: Any, residual: Any, dy: Any) -> Any:
    shape = shape_of(x)
    y, moments, kept = gpu.train(x, gamma, None, residual, shape, 1e-3, 0.0)
    return y, moments, gpu.backward(x, dy, y, kept, shape, 0.0)


def synchronized_step(x: Any, gamma: Any, residual: Any, dy: Any) -> Any:
    shape = shape_of(x)
    moments = gpu.moments(x, shape)
    y, kept = gpu.normalize(x, moments, gamma, gamma, None, shape, 1e-3, None)
    sums, g = gpu.gradient_sums(x, dy, None, kept, shape, None)
    assert g is None
    count = moments.sum() * 0 + 7
    return y, gpu.input_gradient(x, dy, None, kept, sums, count, shape, None)


class SeenError(Exception):
    """Ends a compilation whose graph has been seen: there is no GPU to run it."""


def seen_by_the_compiler(function: Callable[..., Any], dims: tuple[int, ...]) -> list[list[str]]:
    """Return which arguments each kernel of the whole graph writes."""
    written: list[list[str]] = []

    def see(graph: Any, _: Any) -> Any:
        kernels = [n for n in graph.graph.nodes if "triton_kernel_wrapper" in str(n.target)]
        written.extend(sorted(kernel.kwargs["tensors_to_clone"]) for kernel in kernels)
        raise SeenError

    x, gamma = torch.randn(dims), torch.randn(dims[1])
    compiled = torch.compile(function, backend=aot_autograd(fw_compiler=see), fullgraph=True)
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="SeenError"):
        compiled(x, gamma, torch.randn(dims), torch.randn(dims))
    return written


def test_the_compiler_sees_one_graph_and_what_each_kernel_writes() -> None:
    assert seen_by_the_compiler(whole_step, SMALL) == [
        ["kept", "moments", "y"],
        ["dx", "g", "results"],
    ]
    assert seen_by_the_compiler(whole_step, LARGE) == [
        ["partials"],
        ["kept", "moments"],
        ["y"],
        ["g", "partials"],
        ["results", "sums"],
        ["dx"],
    ]


def test_the_compiler_sees_the_synchronized_steps_whole() -> None:
    assert seen_by_the_compiler(synchronized_step, SMALL) == [
        ["partials"],
        ["moments"],
        ["kept", "y"],
        ["partials"],
        ["sums"],
        ["dx"],
    ]


def test_a_traced_launch_never_is_cooperative() -> None:
    """The tracer cannot tell a launch to be, and programs that wait for absent ones never end."""
    dims = (8192, 128, 1, 1)
    shape = gpu.Shape(8192, 128, 1)
    eager = gpu.plan(shape, torch.float32, "forward", torch.device("cpu"))
    assert eager.resident
    assert eager.splits > 1
    assert seen_by_the_compiler(whole_step, dims)[0] == ["partials"]


@pytest.mark.parametrize("function", [whole_step, synchronized_step])
@pytest.mark.parametrize("dims", [SMALL, LARGE], ids=str)
def test_operators_stay_whole_in_a_graph_of_fake_tensors(function: Any, dims: Any) -> None:
    with FakeTensorMode():
        x = torch.empty(dims, device="cuda", dtype=torch.bfloat16)
        x = x.to(memory_format=torch.channels_last)
        given = (x, torch.empty(dims[1], device="cuda"), torch.empty_like(x), torch.empty_like(x))
        graph = make_fx(function)(*given).graph
        y, *_ = function(*given)
    assert (y.dtype, y.device.type, y.stride()) == (torch.bfloat16, "cuda", x.stride())
    called = {str(node.target) for node in graph.nodes if node.op == "call_function"}
    assert any(name.startswith("homeostat.gpu_") for name in called)
    assert not any("triton" in name for name in called)


def test_fake_results_look_like_real_ones() -> None:
    with FakeTensorMode():
        x = torch.empty(SMALL, device="cuda", dtype=torch.float16)
        shape = shape_of(x)
        y, moments, kept = gpu.train(x, None, None, x, shape, 1e-3, 0.0)
        dx, dgamma, dbeta, g = gpu.backward(x, x, y, kept, shape, 0.0)
        assert g is not None
        for t in (y, dx, g):
            assert (t.shape, t.dtype, t.stride()) == (x.shape, x.dtype, x.stride())
        assert (moments.shape, moments.dtype) == ((2, 16), torch.float64)
        assert (dgamma.shape, dbeta.dtype) == ((16,), torch.float32)
        assert gpu.backward(x, x, None, kept, shape, 0.0)[3] is None
        counted = gpu.backward(x, x, None, kept, shape, 0.0, 5)
        assert (counted[0].dtype, counted[1].dtype) == (torch.float16, torch.float32)
