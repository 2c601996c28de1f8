"""Training as people do it: mixed precision, checkpointing, workers, second derivatives."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from homeostat import UnsupportedError
from homeostat.torch import BatchNorm1d, BatchNorm2d
from tests.messages import has_three_parts

pytestmark = pytest.mark.usefixtures("size")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_autocast_keeps_statistics_in_float32(dtype: torch.dtype, activation: Any) -> None:
    conv, x = torch.nn.Conv2d(3, 6, 3), torch.randn(4, 3, 8, 8)
    bn, native = BatchNorm2d(6, activation=activation), torch.nn.BatchNorm2d(6)
    for _ in range(3):
        with torch.autocast("cpu", dtype=dtype):
            h = conv(x)
            y, expected = bn(h), native(h)
        assert y.dtype == expected.dtype == dtype
        expected = expected if activation is None else expected.relu()
        torch.testing.assert_close(y, expected, rtol=2e-2, atol=2e-2)
        y.float().square().sum().backward()
    torch.testing.assert_close(bn.state_dict(), native.state_dict(), rtol=1e-5, atol=1e-5)
    assert {p.grad.dtype for p in (*bn.parameters(), *conv.parameters())} == {torch.float32}


class Twice(torch.nn.Module):
    """Calls a batch norm between two layers."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.first, self.norm, self.last = torch.nn.Linear(5, 4), norm, torch.nn.Linear(4, 2)

    def forward(self, x: Any) -> Any:
        return self.last(self.norm(self.first(x)).tanh())


@pytest.mark.parametrize("reentrant", [False, True], ids=["not-reentrant", "reentrant"])
@pytest.mark.parametrize(
    "options",
    [{}, {"activation": "relu"}, {"momentum": None}, {"virtual_batch_size": 4}, {"nan": True}],
    ids=str,
)
def test_checkpointing_moves_the_statistics_once(reentrant: bool, options: Any) -> None:
    """Native modules move them again when the backward repeats the forward."""
    options = dict(options)
    x = torch.randn(8, 5)
    if options.pop("nan", False):
        x[0] = torch.nan
    model = Twice(BatchNorm1d(4, **options))
    plain, native = copy.deepcopy(model), Twice(torch.nn.BatchNorm1d(4))
    for _ in range(2):
        found = []
        for run in (lambda v: checkpoint(model, v, use_reentrant=reentrant), plain):
            given = x.clone().requires_grad_()
            run(given).square().sum().backward()
            found.append(given.grad)
        torch.testing.assert_close(*found, equal_nan=True)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, equal_nan=True)
    torch.testing.assert_close(dict(model.named_buffers()), dict(plain.named_buffers()))
    given = x.requires_grad_()
    checkpoint(native, given, use_reentrant=reentrant).sum().backward()
    assert int(native.norm.num_batches_tracked) == 2


def test_nested_and_chained_checkpoints_move_the_statistics_once() -> None:
    layers = [torch.nn.Sequential(torch.nn.Linear(4, 4), BatchNorm1d(4)) for _ in range(4)]
    model = torch.nn.Sequential(*layers)
    plain, x = copy.deepcopy(model), torch.randn(8, 4, requires_grad=True)

    def inner(v: Any) -> Any:
        return checkpoint(
            lambda u: checkpoint(model, u, use_reentrant=False), v, use_reentrant=False
        )

    inner(x).sum().backward()
    plain(x)
    torch.testing.assert_close(model.state_dict(), plain.state_dict())
    checkpoint_sequential(model, 2, x, use_reentrant=False).sum().backward()
    plain(x)
    torch.testing.assert_close(model.state_dict(), plain.state_dict())


def test_a_forward_between_two_backwards_is_no_repetition() -> None:
    """Gradients of gradients, and hooks that ran, leave no trace."""
    bn, x = BatchNorm1d(3), torch.randn(8, 3, requires_grad=True)
    (g,) = torch.autograd.grad(bn(x).pow(3).sum(), x, create_graph=True)
    bn(x)
    g.square().sum().backward()
    bn(x)
    assert int(bn.num_batches_tracked) == 3


def test_renorm_in_a_checkpoint_is_refused() -> None:
    bn, x = BatchNorm1d(3, renorm=True), torch.randn(8, 3, requires_grad=True)
    with pytest.raises(UnsupportedError, match="activation checkpointing") as caught:
        checkpoint(bn, x, use_reentrant=False).sum().backward()
    assert has_three_parts(caught.value)
    bn.frozen_statistics = True
    checkpoint(bn, x, use_reentrant=False).sum().backward()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"activation": "leaky_relu"},
        {"virtual_batch_size": 3},
        {"inference_mode": True},
        {"affine": False},
    ],
    ids=str,
)
def test_second_derivatives(options: dict[str, Any]) -> None:
    bn = BatchNorm1d(2, **options).double()
    x = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    r = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)

    def call(x: Any, r: Any, *affine: Any) -> Any:
        named = dict(zip(("weight", "bias"), affine, strict=False))
        return torch.func.functional_call(bn, named, (x, r))

    inputs = (x, r, *bn.parameters())
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


class Normalized(torch.utils.data.Dataset):
    """Examples that a batch norm in eval mode normalizes in the worker."""

    def __init__(self, bn: Any, x: Any) -> None:
        self.bn, self.x = bn, x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        with torch.no_grad():
            return self.bn(self.x[index : index + 1])[0]


# JAX, if another test loaded it into this process, dislikes forks.
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_data_loader_workers(method: str) -> None:
    bn, x = BatchNorm2d(3, activation="relu"), torch.randn(6, 3, 4, 4)
    bn(x)
    bn.eval()
    loader = torch.utils.data.DataLoader(
        Normalized(bn, x), batch_size=3, num_workers=2, multiprocessing_context=method
    )
    torch.testing.assert_close(torch.cat(list(loader)), bn(x).detach())


def test_no_grad_and_inference_mode_train_too() -> None:
    x = torch.randn(8, 3)
    twins = BatchNorm1d(3), BatchNorm1d(3), BatchNorm1d(3)
    twins[0](x)
    with torch.no_grad():
        twins[1](x)
    with torch.inference_mode():
        twins[2](x)
    for twin in twins[1:]:
        torch.testing.assert_close(twin.state_dict(), twins[0].state_dict())


def test_activations_in_place_may_follow() -> None:
    for training in (True, False):
        model = torch.nn.Sequential(BatchNorm2d(3), torch.nn.ReLU(inplace=True)).train(training)
        fused = BatchNorm2d(3, activation="relu").train(training)
        a, b = (torch.randn(4, 3, 5, 5, generator=torch.manual_seed(1)) for _ in range(2))
        model(a.requires_grad_()).square().sum().backward()
        fused(b.requires_grad_()).square().sum().backward()
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("then", ["a batch of NaN", "a step", "a reset"])
def test_a_graph_outlives_what_becomes_of_the_statistics(size: str, then: str) -> None:
    """Native modules' backward fails where the running mean has changed in between."""
    bn, x = BatchNorm2d(4), torch.randn(8, 4, 5, 5, requires_grad=True)
    y = bn(x)
    (expected,) = torch.autograd.grad(y.square().sum(), x, retain_graph=True)
    if then == "a reset":
        bn.reset_running_stats()
    else:
        bn(torch.full_like(x, torch.nan if then == "a batch of NaN" else 2.0))
    (found,) = torch.autograd.grad(y.square().sum(), x)
    assert torch.equal(found, expected)
