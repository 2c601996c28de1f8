"""Running statistics that the compiled loops move in passing, as tensor operations would."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from homeostat import NonFiniteBatchError
from homeostat.moments import Moments, MovingStatistics, advance
from homeostat.ops.torch import Moving, moments, normalize_and_move
from homeostat.torch import BatchNorm1d, BatchNorm2d
from tests.ops.adapters import kernels_for_all

pytest.importorskip("numba", reason="the CPU kernels need numba")

STATISTICS = ("running_mean", "running_var", "num_batches_tracked", "skipped_updates")
SHAPE = (6, 5, 7, 9)


@pytest.fixture(autouse=True)
def _on_loops(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("homeostat.torch.small.few_calls_are_best", lambda *_, **__: False)
    with kernels_for_all():
        yield


@pytest.fixture
def in_passing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where statistics are moved by tensor operations."""

    def unexpected(*_: Any) -> None:
        raise AssertionError("the loops did not move the statistics")

    monkeypatch.setattr("homeostat.torch.step._move_statistics", unexpected)


def by_operations(bn: Any, x: Any, residual: Any = None) -> Any:
    """Return what a twin of a module has for y, and for statistics, without the loops' moving."""
    twin = copy.deepcopy(bn)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Moving, "on_loops", lambda *_: None)
        y = twin(x, residual)
    return y, {name: getattr(twin, name) for name in STATISTICS}


def statistics(bn: Any) -> dict[str, Any]:
    return {name: getattr(bn, name) for name in STATISTICS}


@pytest.mark.usefixtures("in_passing")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, 0.37])
@pytest.mark.parametrize("fused", [False, True])
def test_the_loops_move_what_advance_moves(
    dtype: Any, memory: Any, momentum: float, fused: bool
) -> None:
    bn = BatchNorm2d(5, momentum=momentum, activation="relu" if fused else None).to(dtype)
    expected = MovingStatistics(np.zeros(5), np.ones(5))
    for _ in range(3):
        x = (torch.randn(SHAPE) * 3 + 2).to(dtype).contiguous(memory_format=memory)
        _, mean, variance = moments(x, 1)
        batch = Moments(6 * 7 * 9, mean.double().numpy(), variance.double().numpy())
        expected = advance(expected, batch, bn.spec, np)
        bn(x, x if fused else None).float().square().sum().backward()
    close = {"rtol": 1e-14 if dtype == torch.float64 else 1e-6, "atol": 0}
    np.testing.assert_allclose(bn.running_mean, expected.mean, **close)
    np.testing.assert_allclose(bn.running_var, expected.variance, **close)
    assert int(bn.num_batches_tracked) == 3
    assert bn.skipped_updates.tolist() == [0] * 5
    assert bn.running_var.dtype == (dtype if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("residual", [False, True])
def test_output_and_gradients_are_those_without(activation: Any, residual: bool) -> None:
    bn = BatchNorm2d(5, activation=activation)
    x = torch.randn(SHAPE, requires_grad=True)
    r = torch.randn(SHAPE, requires_grad=True) if residual else None
    dy, leaves = torch.randn(SHAPE), [x, *bn.parameters(), *([r] if residual else [])]
    expected, moved = by_operations(bn, x, r)
    y = bn(x, r)
    assert torch.equal(y, expected)
    torch.testing.assert_close(statistics(bn), moved, rtol=1e-6, atol=0)
    twin = copy.deepcopy(bn)
    for one, other in zip(torch.autograd.grad(y, leaves, dy), leaves, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
    with kernels_for_all(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Moving, "on_loops", lambda *_: None)
        again = torch.autograd.grad(twin(x, r), [x], dy)
    torch.testing.assert_close(again, torch.autograd.grad(bn(x, r), [x], dy), rtol=0, atol=0)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads_moves_the_same_bits(threads: int) -> None:
    x = torch.randn((16, 24, 40, 40), generator=torch.Generator().manual_seed(0))
    before, seen = torch.get_num_threads(), []
    try:
        for number in (1, threads):
            torch.set_num_threads(number)
            bn = BatchNorm2d(24)
            bn(x)
            seen.append([t.numpy().tobytes() for t in (bn.running_mean, bn.running_var)])
    finally:
        torch.set_num_threads(before)
    assert seen[0] == seen[1]


# What is not finite.


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("nonfinite", ["skip", "propagate"])
def test_a_batch_that_is_not_finite_takes_the_long_way(nonfinite: str, bad: float) -> None:
    bn = BatchNorm2d(5, nonfinite=nonfinite)
    bn(torch.randn(SHAPE))
    x = torch.randn(SHAPE)
    x[2, 3, 4, 5] = bad
    before = copy.deepcopy(bn)
    expected, moved = by_operations(bn, x)
    y = bn(x)
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(statistics(bn), moved, rtol=0, atol=0, equal_nan=True)
    assert int(bn.num_batches_tracked) == 2
    skipped = nonfinite == "skip"
    assert bn.skipped_updates.tolist() == [0, 0, 0, int(skipped), 0]
    assert torch.equal(bn.running_mean[3], before.running_mean[3]) == skipped
    assert not torch.equal(bn.running_mean[:3], before.running_mean[:3])


def test_raising_harms_nothing() -> None:
    bn, x = BatchNorm2d(5, nonfinite="raise", momentum=1.0), torch.randn(SHAPE)
    x[0, 1] = torch.nan
    with pytest.raises(NonFiniteBatchError, match="in channels 1: expected finite"):
        bn(x)
    torch.testing.assert_close(bn.running_mean[2:], x.transpose(0, 1).flatten(1).mean(1)[2:])
    assert bn.running_mean[1] == 0
    bn(torch.randn(SHAPE))
    assert (int(bn.num_batches_tracked), bn.skipped_updates.tolist()) == (2, [0, 1, 0, 0, 0])


# What autograd knows.


@pytest.mark.usefixtures("in_passing")
@pytest.mark.parametrize("name", ["running_mean", "running_var"])
def test_a_graph_that_kept_a_statistic_knows_that_it_changed(name: str) -> None:
    bn = BatchNorm2d(5)
    w = torch.ones(5, requires_grad=True)
    z = (w * getattr(bn, name)).sum()
    bn(torch.randn(SHAPE))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.backward()


@pytest.mark.usefixtures("in_passing")
def test_versions_count_what_moved() -> None:
    bn = BatchNorm2d(5)
    moved = [bn.running_mean, bn.running_var, bn.num_batches_tracked]
    before = [t._version for t in moved]
    bn(torch.randn(SHAPE))
    assert [t._version - b for t, b in zip(moved, before, strict=True)] == [1, 1, 1]
    bn.frozen_statistics = True
    bn(torch.randn(SHAPE))
    bn.eval()(torch.randn(SHAPE))
    assert [t._version - b for t, b in zip(moved, before, strict=True)] == [1, 1, 1]


def test_statistics_made_in_inference_mode_change_only_there() -> None:
    with torch.inference_mode():
        bn = BatchNorm2d(5)
        bn(torch.randn(SHAPE))
        assert int(bn.num_batches_tracked) == 1
    with pytest.raises(RuntimeError, match="Inplace update to inference tensor"), torch.no_grad():
        bn(torch.randn(SHAPE))


# Statistics of other kinds, which tensor operations move.


class Logged(torch.Tensor):
    """A tensor that says what is done with it."""

    done: list[str] = []  # noqa: RUF012

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        cls.done.append(function.__name__)
        return super().__torch_function__(function, types, args, kwargs or {})


def strided(t: Any) -> Any:
    return torch.stack([t, t], 1)[:, 0]


OTHERS = {
    "float64": lambda t: t.double(),
    "float16": lambda t: t.half(),
    "strided": strided,
    "a type of its own": lambda t: t.as_subclass(Logged),
}


@pytest.mark.parametrize("names", [("running_mean",), ("running_var",), STATISTICS[:2]], ids=str)
@pytest.mark.parametrize("kind", OTHERS)
def test_statistics_that_the_loops_cannot_move_still_move(kind: str, names: Any) -> None:
    bn, x = BatchNorm2d(5), torch.randn(SHAPE)
    plain = copy.deepcopy(bn)
    for name in names:
        bn._buffers[name] = OTHERS[kind](bn._buffers[name])
    Logged.done.clear()
    for _ in range(2):
        bn(x), plain(x)
    assert ("mul_" in Logged.done) == (kind == "a type of its own")
    tolerance = 2e-3 if kind == "float16" else 1e-6
    for name in STATISTICS[:2]:
        found, expected = getattr(bn, name), getattr(plain, name)
        torch.testing.assert_close(torch.Tensor(found.float()), expected, rtol=tolerance, atol=1e-4)
    assert int(bn.num_batches_tracked) == 2


def test_a_count_of_another_kind_still_counts() -> None:
    bn = BatchNorm2d(5)
    bn._buffers["num_batches_tracked"] = torch.tensor(3, dtype=torch.int32)
    bn(torch.randn(SHAPE))
    assert bn.num_batches_tracked.dtype == torch.int32
    assert int(bn.num_batches_tracked) == 4


@pytest.mark.parametrize("options", [{"momentum": None}, {"zero_debias": True}, {"renorm": True}])
def test_other_averages_move_as_without(options: dict[str, Any]) -> None:
    bn = BatchNorm2d(5, **options)
    for _ in range(3):
        x = torch.randn(SHAPE) + 1
        _, moved = by_operations(bn, x)
        bn(x)
        torch.testing.assert_close(statistics(bn), moved, rtol=0, atol=0)


# Calls with statistics from elsewhere.


@pytest.mark.usefixtures("in_passing")
def test_a_functional_call_moves_the_statistics_that_it_is_given() -> None:
    bn, x = BatchNorm2d(5), torch.randn(SHAPE)
    given = {name: t.clone() for name, t in bn.named_buffers()}
    torch.func.functional_call(bn, given, (x,))
    assert (bn.running_mean.tolist(), int(bn.num_batches_tracked)) == ([0.0] * 5, 0)
    bn(x)
    for name, t in bn.named_buffers():
        assert torch.equal(given[name], t)


def test_under_vmap_each_model_moves_its_own() -> None:
    models = [BatchNorm1d(3) for _ in range(4)]
    parameters, buffers = torch.func.stack_module_state(models)
    base, x = copy.deepcopy(models[0]).to("meta"), torch.randn(4, 64, 3)

    def call(p: Any, b: Any, each: Any) -> Any:
        return torch.func.functional_call(base, (p, b), (each,))

    y = torch.func.vmap(call)(parameters, buffers, x)
    for index, model in enumerate(models):
        torch.testing.assert_close(y[index], model(x[index]))
        for name, t in model.named_buffers():
            torch.testing.assert_close(buffers[name][index], t)


def test_moments_come_back_where_nothing_followed_them() -> None:
    x, still = torch.randn(8, 3), torch.zeros(3, dtype=torch.float64)
    wide = Moving(still, still.clone(), torch.tensor(0), 0.9, sample=True)
    y, batch = normalize_and_move(x, None, None, wide)
    torch.testing.assert_close(batch.mean, x.mean(0))
    assert still.tolist() == [0.0] * 3
    fitting = Moving(torch.zeros(3), torch.ones(3), torch.tensor(0), 0.5, sample=False)
    again, batch = normalize_and_move(x, None, None, fitting)
    assert batch is None
    assert torch.equal(again, y)
    torch.testing.assert_close(fitting.mean, x.mean(0) / 2)
    torch.testing.assert_close(fitting.variance, 0.5 + x.var(0, correction=0) / 2)
    assert int(fitting.updates) == 1
    one = Moving(torch.zeros(3), torch.ones(3), torch.tensor(0), 0.5, sample=True)
    assert normalize_and_move(x[:1], None, None, one)[1].variance.tolist() == [0.0] * 3
