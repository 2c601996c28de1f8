"""PyTorch's operations on the kernels for GPUs, without a GPU in Triton's interpreter."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import homeostat
from homeostat import reference
from tests.kernels.gpu.devices import DEVICE, need_kernels

need_kernels()
torch = pytest.importorskip("torch", reason="the GPU kernels need PyTorch")

from homeostat.errors import NonFiniteBatchError  # noqa: E402
from homeostat.moments import Moments, MovingStatistics, advance  # noqa: E402
from homeostat.ops import torch as ops  # noqa: E402
from homeostat.spec import BatchNormSpec  # noqa: E402
from homeostat.torch import BatchNorm2d  # noqa: E402

EPSILON = 1e-3


@pytest.fixture(autouse=True)
def _switched_on() -> Iterator[None]:
    with homeostat.kernels(True, gpu=True):
        yield


def draw(*shape: int, last: bool = False, dtype: Any = torch.float32) -> Any:
    order = torch.channels_last if last else torch.contiguous_format
    drawn = torch.randn(shape, dtype=torch.float64).mul_(2).add_(0.5).to(DEVICE, dtype)
    return drawn.contiguous(memory_format=order).requires_grad_()


def is_launched(y: Any) -> bool:
    """Return whether the kernels for GPUs computed an output."""
    return type(y.grad_fn).__name__ == "LaunchedBackward"


def wide(t: Any) -> Any:
    return t.detach().double().cpu().numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_a_step_equals_the_oracle(
    activation: str | None, residual: bool, last: bool, dtype: Any
) -> None:
    x, dy = (draw(4, 6, 5, 7, last=last, dtype=dtype) for _ in range(2))
    added = draw(4, 6, 5, 7, last=last, dtype=dtype) if residual else None
    gamma, beta = torch.randn(2, 6, dtype=dtype, device=DEVICE).unbind()
    given = [gamma.requires_grad_(), beta.requires_grad_(), *([added] if residual else [])]
    y, batch = ops.normalize_batch(
        x, gamma, beta, axis=1, epsilon=EPSILON, activation=activation, residual=added
    )
    assert is_launched(y)
    assert y.stride() == x.stride()
    found = torch.autograd.grad(y, (x, *given), dy.detach())
    options: dict[str, Any] = {"axis": 1, "epsilon": EPSILON, "activation": activation}
    options["residual"] = wide(added) if residual else None
    expected, moments = reference.normalize_batch(wide(x), wide(gamma), wide(beta), **options)
    exact = reference.backward(wide(dy), wide(x), wide(gamma), wide(beta), **options)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    close = {"rtol": tolerance, "atol": 10 * tolerance}
    np.testing.assert_allclose(wide(y), expected, **close)
    np.testing.assert_allclose(wide(batch.mean), moments.mean, **close)
    np.testing.assert_allclose(wide(batch.variance), moments.variance, **close)
    wanted = [exact.x, exact.gamma, exact.beta, *([exact.residual] if residual else [])]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(wide(one), other, **close)


def test_what_the_kernels_take() -> None:
    def launched(x: Any, **options: Any) -> bool:
        return is_launched(ops.normalize_batch(x, axis=1, **options)[0])

    x = draw(4, 3, 2, 2)
    assert launched(x)
    assert launched(x.bfloat16())
    assert not launched(x, weights=torch.ones(4, 1, 2, 2, device=DEVICE))
    assert not launched(x[:, :, :, ::2])
    assert not launched(x.bfloat16(), residual=x)
    with homeostat.kernels(True, gpu=False):
        assert not launched(x)
    with homeostat.kernels(False):
        assert not launched(x)


def test_given_moments_and_inference() -> None:
    x, mean, variance = draw(4, 3, 2, 2), torch.randn(3, device=DEVICE), torch.rand(3).to(DEVICE)
    y, batch = ops.normalize_batch(x, axis=1, epsilon=EPSILON, batch=Moments(16, mean, variance))
    assert is_launched(y)
    assert batch.mean is mean
    with torch.no_grad():
        found = ops.normalize(x, mean, variance, axis=1, epsilon=EPSILON, activation="relu")
    torch.testing.assert_close(found, y.detach().relu(), rtol=1e-6, atol=1e-6)
    moments = ops.moments(x, axis=1)
    np.testing.assert_allclose(wide(moments.mean), wide(x).mean((0, 2, 3)), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(wide(moments.variance), wide(x).var((0, 2, 3)), rtol=1e-6)


@pytest.mark.parametrize("activation", [None, "leaky_relu"])
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
def test_gradients_of_gradients(activation: str | None, residual: bool) -> None:
    x, added = draw(4, 2, 3, 1, dtype=torch.float64), draw(4, 2, 3, 1, dtype=torch.float64)
    parameters = torch.randn(2, 2, dtype=torch.float64, device=DEVICE).unbind()
    given = (x, *(p.clone().requires_grad_() for p in parameters), added)

    def function(x: Any, gamma: Any, beta: Any, added: Any) -> Any:
        more = {"residual": added} if residual else {}
        y, _ = ops.normalize_batch(x, gamma, beta, axis=1, activation=activation, **more)
        assert is_launched(y)
        return y + 0 * added

    assert torch.autograd.gradcheck(function, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, given, fast_mode=True)


class Replicas:
    """Two replicas in turns, over and over, until each has all sums.

    The interpreter has no threads.
    """

    def __init__(self) -> None:
        self.sums: list[Any] = []

    def run(self, step: Callable[[int, Any], None], sums: int) -> None:
        for _ in range(sums + 1):
            given: list[list[Any]] = [[], []]
            for rank, mine in enumerate(given):
                step(rank, functools.partial(self._add, mine))
            self.sums = [one + other for one, other in zip(*given, strict=True)]

    def _add(self, mine: list[Any], tensor: Any) -> Any:
        mine.append(tensor.clone())
        known = len(mine) <= len(self.sums)
        return self.sums[len(mine) - 1].clone() if known else tensor.clone()


@pytest.mark.parametrize("activation", [None, "relu"])
def test_replicas_compute_what_the_whole_does(activation: str | None) -> None:
    whole, dy, added = (draw(6, 3, 4, 2) for _ in range(3))
    options = {"axis": 1, "epsilon": EPSILON, "activation": activation}
    gamma, beta = torch.randn(2, 3, device=DEVICE).unbind()
    gamma, beta = gamma.requires_grad_(), beta.requires_grad_()
    y, batch = ops.normalize_batch(whole, gamma, beta, residual=added, **options)
    expected = torch.autograd.grad(y, (whole, gamma, beta, added), dy.detach())
    parts, found = (slice(2), slice(2, 6)), {}

    def step(rank: int, all_reduce: Any) -> None:
        x, r = (t.detach()[parts[rank]].requires_grad_() for t in (whole, added))
        y, batch = ops.normalize_batch(x, gamma, beta, residual=r, all_reduce=all_reduce, **options)
        assert is_launched(y)
        gradients = torch.autograd.grad(y, (x, gamma, beta, r), dy.detach()[parts[rank]])
        found[rank] = (y, batch, gradients)

    Replicas().run(step, sums=3)
    (y0, batch0, g0), (y1, _, g1) = found[0], found[1]
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(torch.cat([y0, y1]), y, **close)
    assert float(batch0.count) == batch.count
    torch.testing.assert_close(batch0.mean, batch.mean, **close)
    torch.testing.assert_close(batch0.variance, batch.variance, **close)
    # Those of gamma and beta are each replica's own, and add up.
    joined = torch.cat([g0[0], g1[0]]), g0[1] + g1[1], g0[2] + g1[2], torch.cat([g0[3], g1[3]])
    for one, other in zip(joined, expected, strict=True):
        torch.testing.assert_close(one, other, **close)


def test_a_module_trains_as_the_native_one_does() -> None:
    ours, native = BatchNorm2d(4, activation="relu").to(DEVICE), torch.nn.BatchNorm2d(4).to(DEVICE)
    # Larger than what is best taken in PyTorch's few calls on a CPU.
    x, dy = draw(40, 4, 15, 15, last=True), draw(40, 4, 15, 15, last=True)
    for _ in range(2):
        y, expected = ours(x), native(x).relu()
        assert is_launched(y)
        gradients = [torch.autograd.grad(out, x, dy.detach())[0] for out in (y, expected)]
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dict(ours.state_dict()), dict(native.state_dict()))
    with torch.no_grad():
        ours(x.detach().masked_fill(torch.arange(4, device=DEVICE).view(4, 1, 1) == 2, torch.nan))
    assert ours.skipped_updates.tolist() == [0, 0, 1, 0]
    assert torch.isfinite(ours.running_mean).all()


def state(channels: int, dtype: Any) -> list[Any]:
    """Return moving statistics, what was skipped, and the number of updates."""
    mean, variance = torch.randn(channels), torch.rand(channels) + 0.5
    made = [mean.to(dtype), variance.to(dtype), torch.arange(channels), torch.tensor(7)]
    return [t.to(DEVICE) for t in made]


# The interpreter computes with NumPy, which warns of infinity less infinity.
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("sample", [False, True], ids=["population", "sample"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(4, 5, 3, 3), (40, 5, 15, 15)], ids=["one launch", "three"])
@pytest.mark.parametrize("bad", [None, torch.nan, torch.inf], ids=str)
def test_statistics_follow_in_passing(shape: Any, dtype: Any, sample: bool, bad: Any) -> None:
    x = draw(*shape, last=True, dtype=dtype).detach()
    if bad is not None:
        x[1, 2, 0, 0] = bad
    wide_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    mean, variance, skipped, updates = now = state(shape[1], wide_dtype)
    before, versions = [t.clone() for t in now], [t._version for t in now]
    moving = ops.Moving(mean, variance, updates, 0.75, sample, skipped)
    _, batch = ops.normalize_and_move(x, None, None, moving, axis=1)
    assert batch is None
    assert all(t._version > version for t, version in zip(now, versions, strict=True))
    spec = BatchNormSpec(momentum=0.75, stored_variance="sample" if sample else "population")
    old = MovingStatistics(before[0], before[1], skipped=before[2])
    new = advance(old, ops.moments(x, axis=1), spec, torch)
    close = {"rtol": 1e-6 if wide_dtype == torch.float32 else 1e-14, "atol": 1e-7}
    torch.testing.assert_close(mean, new.mean, **close)
    torch.testing.assert_close(variance, new.variance, **close)
    assert skipped.tolist() == new.skipped.tolist()
    assert skipped.tolist() == [i + (bad is not None and i == 2) for i in range(5)]
    assert updates == 8


def test_statistics_that_the_kernels_cannot_move_are_left_to_the_caller() -> None:
    x = draw(4, 5, 3, 3)
    for change in (
        {"skipped": None},
        {"updates": None},
        {"mean": torch.zeros(5, dtype=torch.float64, device=DEVICE)},
        {"variance": torch.ones(10, device=DEVICE)[::2]},
        {"skipped": torch.zeros(5, dtype=torch.int32, device=DEVICE)},
    ):
        mean, variance, skipped, updates = state(5, torch.float32)
        moving = ops.Moving(mean, variance, updates, 0.75, True, skipped)._replace(**change)
        kept = [t.clone() for t in moving if isinstance(t, torch.Tensor)]
        _, batch = ops.normalize_and_move(x, None, None, moving, axis=1)
        assert batch is not None, change
        torch.testing.assert_close([t for t in moving if isinstance(t, torch.Tensor)], kept)


def test_what_must_be_raised_is_looked_at() -> None:
    module = BatchNorm2d(4, nonfinite="raise").to(DEVICE)
    x = draw(40, 4, 15, 15, last=True).detach()
    x[0, 1] = torch.nan
    with pytest.raises(NonFiniteBatchError, match="channels 1:"):
        module(x)
    assert torch.isfinite(module.running_mean).all()
