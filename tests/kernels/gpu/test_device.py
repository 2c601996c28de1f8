"""What only a GPU can show: streams, graphs, programs that wait for each other, large tensors."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kernels.gpu.devices import DEVICE, ON_GPU, torch

if not ON_GPU:
    pytest.skip("no GPU here", allow_module_level=True)

from homeostat.kernels import gpu
from homeostat.kernels.gpu import operators
from tests.kernels.gpu.steps import (
    DTYPES,
    EPSILON,
    TOLERANCES,
    Outcome,
    away_from_the_kink,
    close,
    draw,
    parameters,
    small_tiles,
    step,
    wide,
)

# Several splits that stay on chip, in either order.
COOPERATIVE = [(8192, 128, 1), (1, 4, 200_000), (32, 8, 3136)]


def equal(one: Outcome, other: Outcome) -> bool:
    pairs = zip(one, other, strict=True)
    return all(a is b or a.view(torch.uint8).equal(b.view(torch.uint8)) for a, b in pairs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", COOPERATIVE, ids=str)
def test_programs_that_wait_for_each_other_agree_with_those_that_do_not(
    shape: Any, dtype: str
) -> None:
    kind = DTYPES[dtype]
    assert gpu.plan(gpu.Shape(*shape), kind, "forward", torch.device("cuda")).splits > 1
    x, dy, residual = draw(shape, dtype)
    gamma, beta = parameters(shape[1])
    dy = away_from_the_kink(x, dy, gamma, beta, residual, 10 * TOLERANCES[dtype])
    for given in (None, residual):
        found = step(shape, x, dy, given, gamma, beta, 0.0)
        with small_tiles(shape, 50):
            other = step(shape, x, dy, given, gamma, beta, 0.0)
        for one, another in zip(found, other, strict=True):
            if one is not None:
                close(one, wide(another), TOLERANCES[dtype], 100.0 if one.ndim == 1 else 1.0)
        for _ in range(20):
            assert equal(found, step(shape, x, dy, given, gamma, beta, 0.0))


@pytest.mark.parametrize("shape", [*COOPERATIVE, (64, 32, 1), (32, 64, 3136)], ids=str)
def test_a_graph_replays_the_step(shape: Any) -> None:
    x, dy, residual = draw(shape, "float32")
    gamma, beta = parameters(shape[1])
    expected = step(shape, x, dy, residual, gamma, beta, 0.0)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(shape, x, dy, residual, gamma, beta, 0.0)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step(shape, x, dy, residual, gamma, beta, 0.0)
    for _ in range(5):
        for t in found:
            if t is not None:
                t.fill_(torch.nan)
        graph.replay()
        assert equal(found, expected)


@pytest.mark.parametrize("shape", COOPERATIVE, ids=str)
def test_a_side_stream_is_respected(shape: Any) -> None:
    x, dy, residual = draw(shape, "float32")
    expected = step(shape, x, dy, residual, None, None, 0.0)
    late, stream = torch.zeros_like(x), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # x is there only once the stream has come so far.
        torch.cuda._sleep(50_000_000)
        late.copy_(x)
        found = step(shape, late, dy, residual, None, None, 0.0)
    stream.synchronize()
    assert equal(found, expected)


@pytest.mark.parametrize("shape", [*COOPERATIVE, (64, 32, 1), (32, 64, 3136)], ids=str)
def test_nothing_waits_for_the_device(shape: Any) -> None:
    x, dy, residual = draw(shape, "float32")
    step(shape, x, dy, residual, None, None, 0.0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(shape, x, dy, residual, None, None, 0.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(400_000, 64, 1), (64, 64, 12_544)], ids=str)
def test_large_tensors_are_exact_by_the_plans_of_the_table(shape: Any, dtype: str) -> None:
    x, dy = (torch.randn(shape, device=DEVICE, dtype=torch.float64) for _ in range(2))
    x, dy = (x + 100).to(DTYPES[dtype]), dy.to(DTYPES[dtype])
    _, moments, kept = gpu.train(x, None, None, None, gpu.Shape(*shape), EPSILON, None)
    _, dgamma, dbeta, _ = gpu.backward(x, dy, None, kept, gpu.Shape(*shape), None)
    exact, terms = x.double(), dy.double()
    mean, variance = exact.mean((0, 2)), exact.var((0, 2), correction=0)
    tolerance = 1e-12 if dtype == "float64" else 1e-6
    torch.testing.assert_close(moments[1], variance, rtol=tolerance, atol=0.0)
    assert ((moments[0] - mean).abs() < tolerance * variance.sqrt()).all()
    hat = (exact - mean[:, None]) / (variance + EPSILON).sqrt()[:, None]
    for found, its in ((dbeta, terms), (dgamma, terms * hat)):
        assert ((found - its.sum((0, 2))).abs() < tolerance * its.abs().sum((0, 2))).all()


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2**24 + 3, 130, 1), (3, 2, 2**29)], ids=str)
def test_more_than_2_to_the_31_elements(shape: Any) -> None:
    size = shape[0] * shape[1] * shape[2]
    assert size > 2**31
    if torch.cuda.mem_get_info()[0] < 10 * size:
        pytest.skip("too little memory on this GPU")
    x = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    y, moments, kept = gpu.train(x, None, None, None, gpu.Shape(*shape), EPSILON, 0.0)
    dx, *_ = gpu.backward(x, y, None, kept, gpu.Shape(*shape), 0.0)
    last = x[-1, -1].double()
    mean, variance = moments[:, -1]
    assert abs(mean) < 1e-3
    assert abs(variance - 1) < 1e-3
    expected = ((last - mean) / (variance + EPSILON).sqrt()).clamp(min=0)
    close(y[-1, -1], wide(expected), TOLERANCES["bfloat16"])
    assert dx[-1, -1].isfinite().all()


@pytest.mark.parametrize("shape", [(64, 32, 1), (8192, 128, 1), (32, 64, 3136)], ids=str)
def test_compiled_steps_equal_eager_ones(shape: Any) -> None:
    x, dy, residual = draw(shape, "float32")
    gamma, beta = parameters(shape[1])
    eager = step(shape, x, dy, residual, gamma, beta, 0.0)
    compiled = torch.compile(step, fullgraph=True)(shape, x, dy, residual, gamma, beta, 0.0)
    for one, other in zip(eager, compiled, strict=True):
        close(other, wide(one), 1e-5, 100.0 if one.ndim == 1 else 1.0)


@pytest.mark.parametrize("shape", [(64, 32, 1), (32, 64, 3136)], ids=str)
def test_operators_keep_what_they_promise_pytorch(shape: Any) -> None:
    x, dy, residual = draw(shape, "float32")
    y, moments, kept = gpu.train(x, None, None, residual, gpu.Shape(*shape), EPSILON, 0.0)
    sums, _ = gpu.gradient_sums(x, dy, y, kept, gpu.Shape(*shape), 0.0)
    calls = [
        (operators._moments, (x, *shape)),
        (operators._train, (x, None, None, residual, *shape, EPSILON, 0.0)),
        (operators._normalize, (x, moments, None, None, None, *shape, EPSILON, None)),
        (operators._backward, (x, dy, y, kept, *shape, 0.0)),
        (operators._gradient_sums, (x, dy, None, kept, *shape, 0.0)),
        (operators._input_gradient, (x, dy, None, kept, sums, None, 7, *shape, 0.0)),
    ]
    for operator, arguments in calls:
        torch.library.opcheck(operator, arguments)
