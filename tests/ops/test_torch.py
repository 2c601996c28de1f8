"""What only PyTorch has: compilation, transforms, double backward, memory formats, replicas."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from homeostat import UnsupportedError, reference
from tests.ops.adapters import kernels_for_all

torch = pytest.importorskip("torch")
ops = pytest.importorskip("homeostat.ops.torch")

# PyTorch's compiler and forward mode meet PyTorch's own deprecations.
compiled = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
LEAKY = {"name": "leaky_relu", "negative_slope": 0.3}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def numpy_of(tensor: Any) -> Any:
    return None if tensor is None else tensor.detach().double().numpy()


def leaf(*shape: int, dtype: Any = None, shift: float = 0.0) -> Any:
    return (torch.randn(shape, dtype=dtype) + shift).requires_grad_()


def largest_error(actual: Any, expected: Any) -> float:
    expected = numpy_of(expected) if isinstance(expected, torch.Tensor) else expected
    return float(np.max(np.abs(numpy_of(actual) - expected)) / max(np.max(np.abs(expected)), 1e-30))


def check_step(function: Any, x: Any, *, tolerance: float = 2e-5, **options: Any) -> None:
    """Compare a forward and backward of ``function`` with the oracle."""
    channels = x.shape[options.get("axis", -1)]
    gamma, beta, residual = leaf(channels), leaf(channels), leaf(*x.shape)
    y, batch = function(x, gamma, beta, residual=residual, **options)
    dy = torch.randn(x.shape)
    found = torch.autograd.grad(y, (x, gamma, beta, residual), dy)
    given = [numpy_of(t) for t in (x, gamma, beta)]
    options = {k: numpy_of(v) if k == "weights" else v for k, v in options.items()}
    options["residual"] = numpy_of(residual)
    expected, moments = reference.normalize_batch(*given, **options)
    assert largest_error(y, expected) < tolerance
    assert largest_error(batch.variance, moments.variance) < 1e-5
    for actual, wanted in zip(
        found, reference.backward(dy.numpy(), *given, **options), strict=True
    ):
        assert largest_error(actual, wanted) < tolerance


# Compiling and transforming.


@compiled
@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((4, 5, 5, 3), {"activation": "relu"}),
        ((4, 3, 5), {"axis": 1, "activation": LEAKY}),
        ((16, 3), {"weights": torch.tensor([0.0, 1.0, 0.5, 2.0] * 4)}),
    ],
)
def test_compiles_as_one_graph(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    function = torch.compile(ops.normalize_batch, fullgraph=True)
    check_step(function, leaf(*shape), **options)


@compiled
@pytest.mark.slow
def test_compiled_code_takes_any_batch_size_and_badly_conditioned_inputs() -> None:
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counts = CompileCounter()

    def layer(x: Any, gamma: Any, beta: Any, residual: Any) -> Any:
        return ops.normalize_batch(x, gamma, beta, axis=-1, epsilon=1e-3, residual=residual)

    function = torch.compile(layer, fullgraph=True, backend=counts, dynamic=True)
    for size in (8, 12, 31):
        check_step(function, leaf(size, 3))
    assert counts.frame_count == 1
    torch._dynamo.reset()
    x = torch.randn(4096, 3) + 1e3
    batch = torch.compile(ops.moments, fullgraph=True)(x)
    assert largest_error(batch.variance, reference.moments(x.numpy()).variance) < 1e-5


@compiled
def test_functional_transforms_equal_a_loop() -> None:
    def loss(x: Any, gamma: Any) -> Any:
        y, _ = ops.normalize_batch(x, gamma, activation="relu")
        return (y**2).sum()

    x, gamma = torch.randn(3, 8, 4), torch.randn(4)
    found = torch.func.vmap(torch.func.grad(loss), in_dims=(0, None))(x, gamma)
    for each, gradient in zip(x, found, strict=True):
        each.requires_grad_()
        (expected,) = torch.autograd.grad(loss(each, gamma), each)
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4)
    variances = torch.func.vmap(lambda each: ops.moments(each).variance)(x)
    torch.testing.assert_close(variances, x.var(1, correction=0))
    inferred = torch.func.vmap(lambda each: ops.normalize(each, gamma, gamma**2))(x)
    torch.testing.assert_close(inferred, ops.normalize(x, gamma, gamma**2))


def test_transforms_over_replicas_are_refused() -> None:
    def loss(x: Any) -> Any:
        return ops.normalize_batch(x, all_reduce=lambda t: t)[0].sum()

    with pytest.raises(UnsupportedError, match="all_reduce=None"):
        torch.func.grad(loss)(torch.randn(4, 3))
    x = leaf(4, 3)
    with pytest.raises(UnsupportedError, match="all_reduce=None"):
        torch.autograd.grad(loss(x), x, create_graph=True)


# Gradients of gradients.


@pytest.mark.parametrize("options", [{}, {"activation": LEAKY}, {"weights": torch.rand(4)}])
@pytest.mark.parametrize(("shape", "axis"), [((4, 3), -1), ((4, 3, 2), 1), ((4, 2, 2, 3), (1, 3))])
def test_first_and_second_gradients_equal_finite_differences(
    shape: tuple[int, ...], axis: Any, options: dict[str, Any]
) -> None:
    channels = [shape[a] for a in (axis if isinstance(axis, tuple) else (axis,))]
    double = torch.float64
    x, residual = leaf(*shape, dtype=double), leaf(*shape, dtype=double)
    gamma, beta = leaf(*channels, dtype=double), leaf(*channels, dtype=double)

    def function(x: Any, gamma: Any, beta: Any, residual: Any) -> Any:
        return ops.normalize_batch(x, gamma, beta, residual=residual, axis=axis, **options)[0]

    assert torch.autograd.gradcheck(function, (x, gamma, beta, residual))
    assert torch.autograd.gradgradcheck(function, (x, gamma, beta, residual))


# What is kept for the backward.


@pytest.mark.parametrize("weights", [None, torch.ones(64)])
@pytest.mark.parametrize(
    ("options", "large"), [({}, 1), ({"activation": "relu"}, 2), ({"residual": True}, 1)]
)
def test_keeps_x_and_behind_an_activation_y(
    options: dict[str, Any], large: int, weights: Any
) -> None:
    kept: list[Any] = []
    x, gamma = leaf(64, 8), leaf(8)
    if options.get("residual"):
        options = {"residual": leaf(64, 8)}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y, _ = ops.normalize_batch(x, gamma, weights=weights, **options)
    sizes = {t.data_ptr() for t in kept if t.numel() == x.numel()}
    assert x.data_ptr() in sizes
    assert len(sizes) == large
    assert large == 1 or y.data_ptr() in sizes


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("activation", "with_residual", "large"),
    [(None, False, 1), ("relu", False, 1), (None, True, 1), ("relu", True, 2)],
)
def test_the_loops_keep_x_alone_unless_activation_and_residual_meet(
    activation: Any, with_residual: bool, large: int, last: bool
) -> None:
    pytest.importorskip("numba", reason="the CPU kernels need numba")
    kept: list[Any] = []
    order = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(8, 4, 5, 5).to(memory_format=order).requires_grad_()
    options = {"residual": leaf(8, 4, 5, 5)} if with_residual else {}
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t)
    with hooks, kernels_for_all():
        y, _ = ops.normalize_batch(x, leaf(4), axis=1, activation=activation, **options)
    assert type(y.grad_fn).__name__ == "CompiledBackward"
    sizes = {t.data_ptr() for t in kept if t.numel() == x.numel()}
    assert x.data_ptr() in sizes
    assert len(sizes) == large


@pytest.mark.parametrize("options", [{}, {"activation": LEAKY}, {"activation": "relu"}])
@pytest.mark.parametrize(("shape", "axis"), [((4, 3), -1), ((4, 3, 2), 1)])
def test_second_gradients_on_the_loops_equal_finite_differences(
    shape: tuple[int, ...], axis: int, options: dict[str, Any]
) -> None:
    pytest.importorskip("numba", reason="the CPU kernels need numba")
    double = torch.float64
    x, residual = leaf(*shape, dtype=double), leaf(*shape, dtype=double)
    gamma, beta = leaf(3, dtype=double), leaf(3, dtype=double)

    def with_residual(x: Any, gamma: Any, beta: Any, residual: Any) -> Any:
        return ops.normalize_batch(x, gamma, beta, residual=residual, axis=axis, **options)[0]

    def without(x: Any, gamma: Any, beta: Any) -> Any:
        return ops.normalize_batch(x, gamma, beta, axis=axis, **options)[0]

    with kernels_for_all():
        assert type(without(x, gamma, beta).grad_fn).__name__ == "CompiledBackward"
        assert torch.autograd.gradcheck(with_residual, (x, gamma, beta, residual))
        assert torch.autograd.gradgradcheck(with_residual, (x, gamma, beta, residual))
        assert torch.autograd.gradgradcheck(without, (x, gamma, beta))


def test_the_loops_leave_what_is_watched_and_what_is_more_than_a_tensor() -> None:
    pytest.importorskip("numba", reason="the CPU kernels need numba")
    from torch.utils.flop_counter import FlopCounterMode

    class Special(torch.Tensor):
        """A tensor with a life of its own."""

    def taken(x: Any, **options: Any) -> bool:
        y, _ = ops.normalize_batch(x.requires_grad_(), **options)
        return type(y.grad_fn).__name__ == "CompiledBackward"

    x = torch.randn(8, 3)
    with kernels_for_all():
        assert taken(x)
        assert not taken(x.as_subclass(Special))
        assert not taken(x.detach().bfloat16(), residual=x)
        assert not taken(x, weights=torch.ones(8))
        with FlopCounterMode(display=False):
            assert not taken(x)
        with ops.choice.kernels(False):
            assert not taken(x)
    assert not taken(x)


def test_keeps_nothing_without_gradients() -> None:
    kept: list[Any] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(kept.append, lambda t: t)
    with hooks, torch.no_grad():
        y, _ = ops.normalize_batch(leaf(8, 3), leaf(3), activation="relu")
    assert not kept
    assert not y.requires_grad


def test_an_activation_behind_may_work_in_place() -> None:
    x = leaf(8, 3)
    y = ops.normalize_batch(x)[0]
    (found,) = torch.autograd.grad(torch.relu_(y).sum(), x)
    (expected,) = torch.autograd.grad(ops.normalize_batch(x, activation="relu")[0].sum(), x)
    torch.testing.assert_close(found, expected)


# Memory.


@pytest.mark.parametrize(
    "strided",
    [
        pytest.param(lambda: torch.randn(4, 6, 5, 3).permute(0, 3, 1, 2), id="channels_last"),
        pytest.param(lambda: torch.randn(4, 6, 5, 3).transpose(0, 2)[..., ::2], id="gaps"),
        pytest.param(lambda: torch.randn(4, 1, 5, 3).expand(4, 6, 5, 3), id="expanded"),
    ],
)
@pytest.mark.parametrize("axis", [1, -1])
def test_any_strides(strided: Any, axis: int) -> None:
    check_step(ops.normalize_batch, strided().requires_grad_(), axis=axis, activation="relu")


def test_memory_format_is_kept() -> None:
    x = torch.randn(4, 3, 6, 5).to(memory_format=torch.channels_last).requires_grad_()
    y, _ = ops.normalize_batch(x, axis=1)
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.sum().backward()
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


# Numbers.


@pytest.mark.parametrize("ratio", [0.0, 10.0, 30.0, 100.0, 1e3, 1e4, 1e6])
@pytest.mark.parametrize(
    ("shape", "axis"), [((100352, 64), -1), ((100003, 16), -1), ((8, 16, 40, 40), 1), ((50, 7), -1)]
)
def test_variance_is_exact_however_large_the_mean(
    shape: tuple[int, ...], axis: int, ratio: float
) -> None:
    x = torch.randn(shape) + ratio
    expected = reference.moments(x.numpy(), axis).variance
    y, batch = ops.normalize_batch(x, axis=axis)
    bound = 1e-5 if ratio <= 1e3 else 0.1
    assert largest_error(batch.variance, expected) < bound
    assert largest_error(ops.moments(x, axis).variance, expected) < bound
    weighted = ops.moments(x, axis, weights=torch.ones(shape[0]))
    assert largest_error(weighted.variance, expected) < bound
    assert largest_error(y, reference.normalize_batch(x.numpy(), axis=axis)[0]) < 1e-5


def test_one_badly_conditioned_channel_does_not_disturb_the_others() -> None:
    x = torch.randn(5000, 3) + torch.tensor([0.0, 1e5, float("nan")])
    batch = ops.moments(x)
    expected = reference.moments(x.numpy()).variance
    np.testing.assert_allclose(batch.variance[:2], expected[:2], rtol=1e-5)
    assert batch.variance[2].isnan()
    constant = ops.moments(torch.full((100, 3), 0.1))
    assert (constant.variance >= 0).all()
    assert (constant.variance < 1e-12).all()


@pytest.mark.parametrize("affine", [torch.float32, torch.float64, "same"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weights", [None, torch.ones(256)])
def test_half_precision_keeps_float32_statistics(dtype: Any, affine: Any, weights: Any) -> None:
    x = (torch.randn(256, 8) + 2).to(dtype).requires_grad_()
    gamma = torch.ones(8, dtype=dtype if affine == "same" else affine, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, batch = ops.normalize_batch(x, gamma, weights=weights, activation="relu")
    y.float().pow(2).sum().backward()
    assert (y.dtype, x.grad.dtype, gamma.grad.dtype) == (dtype, dtype, gamma.dtype)
    assert batch.mean.dtype == batch.variance.dtype == torch.float32
    assert largest_error(batch.variance, reference.moments(numpy_of(x)).variance) < 1e-5
    assert ops.normalize(x, batch.mean, batch.variance, gamma).dtype == dtype


# Masks.


@compiled
@pytest.mark.parametrize("compiling", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_nan_under_a_mask_reaches_neither_statistics_nor_gradients(compiling: bool) -> None:
    torch._dynamo.reset()
    values = torch.randn(6, 3)
    values[2], values[4] = float("nan"), float("inf")
    mask = torch.tensor([True, True, False, True, False, True])
    x, gamma = values.requires_grad_(), leaf(3)
    function = torch.compile(ops.normalize_batch) if compiling else ops.normalize_batch
    y, batch = function(x, gamma, weights=mask, activation="relu")
    torch.where(mask[:, None], y, 0.0).pow(2).sum().backward()
    expected = reference.moments(numpy_of(x)[mask.numpy()])
    assert largest_error(batch.mean, expected.mean) < 1e-6
    assert largest_error(batch.variance, expected.variance) < 1e-6
    assert x.grad.isfinite().all()
    assert gamma.grad.isfinite().all()
    assert not x.grad[~mask].any()


@pytest.mark.parametrize("shape", [(5, 3), (0, 3)])
def test_nothing_to_average(shape: tuple[int, ...]) -> None:
    x, gamma = leaf(*shape), leaf(3)
    y, batch = ops.normalize_batch(x, gamma, weights=torch.zeros(shape[0]))
    y.sum().backward()
    assert float(batch.count) == 0
    assert not batch.mean.any()
    assert not batch.variance.any()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
    assert gamma.grad.isfinite().all()
    assert isinstance(ops.moments(torch.zeros(0, 3)).count, int)


# Replicas.


def _replica(rank: int, sizes: tuple[int, ...], weighted: bool, folder: str) -> None:
    """Run one of two processes that share their statistics, on its part of the batch."""
    import torch.distributed as dist

    store = dist.FileStore(f"{folder}/store", len(sizes))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=len(sizes))
    data = np.load(f"{folder}/in.npz")
    part = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))

    def all_reduce(tensor: Any) -> Any:
        dist.all_reduce(tensor)
        return tensor

    x, dy = (torch.tensor(data[name][part]) for name in ("x", "dy"))
    gamma, beta = (torch.tensor(data[name], requires_grad=True) for name in ("gamma", "beta"))
    x.requires_grad_()
    options = {"weights": torch.tensor(data["weights"][part])} if weighted else {}
    batch = ops.moments(x, all_reduce=all_reduce, **options)
    for given in (None, batch):
        y, found = ops.normalize_batch(
            x, gamma, beta, activation="relu", batch=given, all_reduce=all_reduce, **options
        )
        dx, dgamma, dbeta = torch.autograd.grad(y, (x, gamma, beta), dy)
    np.savez(
        f"{folder}/out{rank}.npz", y=y.detach(), dx=dx, dgamma=dgamma, dbeta=dbeta,
        count=found.count, mean=found.mean, variance=found.variance,
    )  # fmt: skip
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sizes", [(5, 3), (6, 0)])
def test_two_replicas_equal_the_oracle_on_the_whole_batch(
    sizes: tuple[int, ...], weighted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    rng = np.random.default_rng(0)
    shape = (sum(sizes), 4, 3)
    data = {name: rng.normal(size=shape).astype(np.float32) for name in ("x", "dy")}
    data["x"] += 50.0
    data |= {name: rng.normal(size=3).astype(np.float32) for name in ("gamma", "beta")}
    data["weights"] = rng.integers(0, 3, shape[:2]).astype(np.float32)
    np.savez(tmp_path / "in.npz", **data)
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_replica, args=(rank, sizes, weighted, str(tmp_path)))
        for rank in range(len(sizes))
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]

    parts = [np.load(tmp_path / f"out{rank}.npz") for rank in range(len(sizes))]
    weights = data["weights"] if weighted else None
    given = (data["x"], data["gamma"], data["beta"])
    y, batch = reference.normalize_batch(*given, weights=weights, activation="relu")
    gradients = reference.backward(data["dy"], *given, weights=weights, activation="relu")
    close = {"rtol": 2e-5, "atol": 2e-5}
    np.testing.assert_allclose(np.concatenate([part["y"] for part in parts]), y, **close)
    np.testing.assert_allclose(np.concatenate([part["dx"] for part in parts]), gradients.x, **close)
    np.testing.assert_allclose(sum(part["dgamma"] for part in parts), gradients.gamma, **close)
    np.testing.assert_allclose(sum(part["dbeta"] for part in parts), gradients.beta, **close)
    for part in parts:
        assert part["count"] == batch.count.flat[0]
        np.testing.assert_allclose(part["mean"], batch.mean, rtol=1e-6)
        np.testing.assert_allclose(part["variance"], batch.variance, rtol=1e-5)
