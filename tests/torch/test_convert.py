"""Models whose batch norms are replaced, and back, with equal outputs, gradients and statistics."""

from __future__ import annotations

import copy
import importlib
import io
import pickle
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.modules.batchnorm import _BatchNorm

import homeostat.torch as ours
from homeostat import UnsupportedError
from homeostat.torch import convert, revert
from homeostat.torch.state import State
from tests.messages import has_three_parts
from tests.torch import networks
from tests.torch.networks import (
    CASES,
    BasicBlock,
    BasicConv,
    DenseNet,
    Inception,
    MobileNet,
    ResNet,
    around,
)

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
NETWORKS = [ResNet, MobileNet, DenseNet, Inception]


def disturb(model: nn.Module) -> nn.Module:
    """Give every batch norm weights and statistics that matter."""
    for norm in norms_of(model).values():
        with torch.no_grad():
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.5, 0.5)
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 1.5)
    return model


def norms_of(model: nn.Module) -> dict[str, Any]:
    return {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}


def leaves(found: Any) -> Iterator[torch.Tensor]:
    if isinstance(found, torch.Tensor):
        yield found
    else:
        for value in found.values() if hasattr(found, "values") else found:
            yield from leaves(value)


def gradients(model: nn.Module, x: torch.Tensor) -> tuple[list[torch.Tensor], list[Any]]:
    """Return outputs, and gradients by the input and by every parameter."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    outputs = [y for y in leaves(model(x)) if y.is_floating_point()]
    wanted = [x, *(p for p in model.parameters() if p.requires_grad)]
    generator = torch.Generator().manual_seed(11)
    loss = sum((y.float() * torch.randn(y.shape, generator=generator)).sum() for y in outputs)
    return outputs, list(torch.autograd.grad(loss, wanted, allow_unused=True))


def check_equal(mine: nn.Module, native: nn.Module, x: torch.Tensor, close: Any = CLOSE) -> None:
    """Compare outputs, gradients and statistics over training steps and in eval mode."""
    for training in (True, True, False):
        mine.train(training), native.train(training)
        (found, d_found), (wanted, d_wanted) = gradients(mine, x), gradients(native, x)
        assert len(found) == len(wanted) > 0
        for a, b in zip(found + d_found, wanted + d_wanted, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                assert a.dtype == b.dtype
                scale = max(1.0, float(b.detach().abs().max()))
                torch.testing.assert_close(a / scale, b / scale, **close)
    check_state(mine, native, close)


def check_state(mine: nn.Module, native: nn.Module, close: Any = CLOSE) -> None:
    actual, expected = mine.state_dict(), native.state_dict()
    assert list(actual) == list(expected)
    for key, value in expected.items():
        torch.testing.assert_close(actual[key].to(value.dtype), value, **close, msg=key)


def kinds(model: nn.Module) -> list[type]:
    return [type(norm) for norm in norms_of(model).values()]


@pytest.mark.parametrize("make", NETWORKS)
@pytest.mark.parametrize("fuse", [True, False])
def test_networks_there_and_back(make: Any, fuse: bool) -> None:
    native = disturb(make())
    model, report = convert(copy.deepcopy(native), fuse_activations=fuse)
    assert set(kinds(model)) == {ours.BatchNorm2d}
    assert len(report.replaced) == len(report.norms) == len(norms_of(native))
    assert bool(report.fused) is fuse
    x = torch.randn(4, 3, 9, 9)
    check_equal(model, native, x)
    back = revert(model)
    assert back is model
    assert kinds(back) == kinds(native)
    assert repr(back) == repr(native)
    assert [type(m) for m in back.modules()] == [type(m) for m in native.modules()]
    check_equal(back, native, x)


def test_what_moves_in_a_resnet() -> None:
    _, report = convert(ResNet())
    assert {record.name: record.fused for record in report.norms} == {
        "bn1": "relu",
        "layer1.0.bn1": "relu",
        "layer1.0.bn2": "add + relu",
        "layer1.1.bn1": "relu",
        "layer1.1.bn2": "add + relu",
        "layer1.1.downsample.1": "",
    }
    assert report["layer1.1.downsample.1"].not_fused == "it is the residual of another"


def test_what_moves_in_the_others() -> None:
    fused = {make: [r.fused for r in convert(make()).report.norms] for make in NETWORKS[1:]}
    assert fused[MobileNet] == ["", "", "", "add", "", "", ""]
    assert fused[DenseNet] == ["relu"] * 8
    assert fused[Inception] == ["leaky_relu(0.1)"] * 5
    reasons = [record.not_fused for record in convert(MobileNet()).report.norms]
    assert reasons.count("ReLU6 follows") == 5
    assert reasons[-1] == "the end of InvertedResidual follows"


@pytest.mark.parametrize("name", CASES)
def test_every_way_to_write_it(name: str) -> None:
    call, expected = CASES[name]
    native = disturb(around(call)())
    model, report = convert(copy.deepcopy(native))
    record = report["bn"]
    assert (record.activation, record.residual) == expected
    assert bool(record.not_fused) is (expected == networks.NOTHING)
    check_equal(model, native, torch.randn(5, 4, 3, 3))
    assert vars(model).keys() == vars(native).keys()
    assert type(revert(model)) is type(native)
    check_equal(model, native, torch.randn(5, 4, 3, 3))


def test_a_fused_call_is_one_call() -> None:
    """The activation and the addition are gone from the forward, and not made twice."""
    model, _ = convert(BasicBlock(4, 4))
    traced = torch.fx.symbolic_trace(model)
    called = [str(node.target) for node in traced.graph.nodes if node.op.startswith("call")]
    assert called == ["conv1", "bn1", "conv2", "bn2"]
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(traced.eval()(x), model.eval()(x))


class Rewritten(nn.Module):
    """Writes into what a norm read before it adds to what the norm made of it."""

    def __init__(self, write: Any) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.inner = Writer()
        self.write = write

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn(x)
        return y + self.write(self, x)


class Writer(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(3)


def _iadd(self: Any, x: torch.Tensor) -> torch.Tensor:
    x += 1
    return x


@pytest.mark.parametrize(
    "write",
    [
        lambda self, x: self.relu(x),
        lambda self, x: self.inner(x),
        lambda self, x: x.mul_(2),
        lambda self, x: F.relu(x, True),
        lambda self, x: torch.relu_(x.view(-1)).view(x.shape),
        lambda self, x: torch.sigmoid(x, out=x),
        _iadd,
    ],
)
def test_a_norm_whose_input_is_overwritten_does_not_wait(write: Any) -> None:
    native = disturb(Rewritten(write)).eval()
    model, report = convert(copy.deepcopy(native))
    assert "may be written to" in report["bn"].not_fused
    x = torch.randn(2, 4, 3, 3)
    with torch.no_grad():
        torch.testing.assert_close(model(x.clone()), native(x.clone()), **CLOSE)


REFUSED = {
    "dropout": "self.training",
    "training": "self.training",
    "shape": "control flow",
    "none": "what kind of thing x is",
    "kind": "what kind of thing x is",
    "random": "random numbers",
    "no_grad": "sets a mode",
    "counts": "changes the module",
    "new tensor": "aten.ones",
    "checkpoint": "torch.utils.checkpoint",
    "item assignment": "item assignment",
    "relu6": "relu6 follows",
    "alpha two": "alpha=2",
    "number": "a number",
    "two users": "2 users",
    "shared": "more than once",
    "into the other": "another tensor",
}


@pytest.mark.parametrize("name", REFUSED)
def test_reasons_are_told(name: str) -> None:
    _, report = convert(around(CASES[name][0])())
    assert REFUSED[name] in report["bn"].not_fused


def test_refused_forwards_still_take_both_branches() -> None:
    model, _ = convert(around(CASES["training"][0])())
    x = torch.randn(4, 4, 3, 3)
    assert model(x).min() >= 0
    assert model.eval()(x).min() < 0


def test_an_optional_argument_is_not_decided() -> None:
    def forward(self: Any, x: Any, skip: Any = None) -> Any:
        y = self.bn(x)
        return F.relu(y if skip is None else y + skip)

    model, report = convert(around(forward)())
    assert "optional argument skip" in report["bn"].not_fused
    x = torch.randn(4, 4, 3, 3)
    model(x), model(x, x)


def test_random_numbers_are_as_if_nothing_was_traced() -> None:
    random.seed(5)
    expected = random.random()
    random.seed(5)
    convert(around(CASES["random"][0])())
    assert random.random() == expected


def test_everything_stays_the_same_object() -> None:
    model = ResNet()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    bn, block, statistics = model.bn1, model.layer1[0], model.bn1.running_mean
    parameters, modules = list(model.parameters()), list(model.modules())
    found, _ = convert(model)
    assert found is model
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert all(a is b for a, b in zip(modules, model.modules(), strict=True))
    assert model.bn1 is bn
    assert model.bn1.running_mean is statistics
    assert isinstance(block, BasicBlock)
    assert isinstance(model, ResNet)
    assert model.describe() == "a small ResNet"
    before = model.bn1.weight.detach().clone()
    model(torch.randn(4, 3, 9, 9)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model.bn1.weight, before)


@pytest.mark.parametrize("cls", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm])
def test_options_and_flags_stay(cls: type) -> None:
    norm: Any = cls(3, eps=0.01, momentum=None, device="cpu", dtype=torch.float64).eval()
    norm.bias.requires_grad = False
    norm.label = "mine"
    found, report = convert(norm)
    assert found is norm
    assert str(report).splitlines()[2].split()[:3] == ["(model)", cls.__name__, "homeostat"]
    assert type(norm).__name__ == cls.__name__
    assert isinstance(norm, State)
    assert (norm.eps, norm.momentum, norm.training, norm.label) == (0.01, None, False, "mine")
    assert (norm.weight.requires_grad, norm.bias.requires_grad) == (True, False)
    assert norm.running_var.dtype == torch.float64
    assert norm.synchronized is (cls is nn.SyncBatchNorm)
    revert(norm)
    assert type(norm) is cls
    assert vars(norm).keys() == vars(cls(3)).keys() | {"label"}
    assert repr(norm) == repr(cls(3, eps=0.01, momentum=None))


@pytest.mark.parametrize(
    "options", [{"affine": False}, {"track_running_stats": False}, {"bias": False}], ids=str
)
def test_norms_that_lack_something(options: dict[str, bool]) -> None:
    native = nn.Sequential(nn.BatchNorm1d(4, **options), nn.LeakyReLU(0.3))
    model, report = convert(copy.deepcopy(native))
    assert report["0"].fused == "leaky_relu(0.3)"
    check_equal(model, native, torch.randn(6, 4))
    check_equal(revert(model), native, torch.randn(6, 4))


def test_statistics_that_are_there_but_do_not_follow() -> None:
    native = disturb(nn.Sequential(nn.BatchNorm1d(4)))
    native[0].track_running_stats = False
    model, _ = convert(copy.deepcopy(native))
    check_equal(model, native, torch.randn(6, 4))
    model[0].track_running_stats = native[0].track_running_stats = True
    check_equal(model, native, torch.randn(6, 4))


def test_a_synchronized_norm_of_any_rank() -> None:
    for inner in ((), (5,), (3, 4)):
        native = disturb(nn.Sequential(nn.SyncBatchNorm(4), nn.ReLU()))
        model, _ = convert(copy.deepcopy(native))
        check_equal(model, native, torch.randn(6, 4, *inner))
    with pytest.raises(ValueError, match="unsqueeze"):
        model(torch.randn(4))


def test_sequential_models_stay_sequential() -> None:
    native = disturb(
        nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
            nn.ReLU(),
            nn.BatchNorm2d(4),
            nn.LeakyReLU(0.2, inplace=True),
            nn.BatchNorm2d(4),
            nn.Hardswish(),
            nn.BatchNorm2d(4),
        )
    )
    model, report = convert(copy.deepcopy(native))
    assert [record.fused for record in report.norms] == ["relu", "leaky_relu(0.2)", "", ""]
    assert type(model) is nn.Sequential
    assert isinstance(model[1], nn.Identity)
    check_equal(model, native, torch.randn(4, 3, 6, 6))
    assert repr(revert(model)) == repr(native)


def test_a_relu_in_two_places_stays_where_it_is_needed() -> None:
    relu = nn.ReLU()
    native = nn.Sequential(nn.BatchNorm1d(4), relu, nn.Linear(4, 4), relu)
    model, _ = convert(copy.deepcopy(native))
    assert isinstance(model[3], nn.ReLU)
    check_equal(model, native, torch.randn(6, 4))
    revert(model)
    assert model[1] is model[3]


def test_tied_norms_stay_tied_and_apart() -> None:
    bn = nn.BatchNorm1d(4)
    native = nn.Sequential(nn.Sequential(bn, nn.ReLU()), nn.Linear(4, 4), bn)
    model, report = convert(copy.deepcopy(native))
    assert model[0][0] is model[2]
    assert len(report.norms) == 1
    assert "more than once" in report.norms[0].not_fused
    check_equal(model, native, torch.randn(6, 4))


def test_a_norm_that_another_module_calls_unseen_is_left() -> None:
    seen, unseen = around(CASES["functional"][0])(), around(CASES["training"][0])()
    unseen.bn = seen.bn
    native = disturb(nn.Sequential(seen, unseen))
    model, report = convert(copy.deepcopy(native))
    assert "in the model more than once" in report["0.bn"].not_fused
    check_equal(model, native, torch.randn(4, 4, 3, 3))


class Walking(nn.Module):
    """Takes its blocks in turn, each by a call, in a way that torch.fx does not follow."""

    def __init__(self) -> None:
        super().__init__()
        self.block1 = BasicConv(4, 4)
        self.block2 = BasicConv(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in (self.block1, self.block2):
            x = block(x) if x.shape[0] > 1 else x
        return x


def test_blocks_of_a_model_that_cannot_be_traced_are_fused() -> None:
    native = disturb(Walking())
    model, report = convert(copy.deepcopy(native))
    assert [record.fused for record in report.norms] == ["leaky_relu(0.1)"] * 2
    assert type(model) is Walking
    check_equal(model, native, torch.randn(4, 4, 3, 3))


class Reaching(nn.Module):
    """Calls the inside of its blocks, one call in a way that torch.fx does not follow."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.block = BasicConv(4, 4)
        self.seq = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU())
        self.way = way

    def forward(self, x: torch.Tensor) -> Any:
        if x.shape[0] > 1:
            if self.way == "block":
                return torch.tanh(self.block.bn(x)), self.seq(x)
            if self.way == "seq":
                return self.block(x), [layer(x) for layer in self.seq]
        return self.block(x), self.seq(x)


@pytest.mark.parametrize("way", ["block", "seq", ""])
def test_norms_that_others_reach_for_are_left(way: str) -> None:
    native = disturb(Reaching(way))
    model, report = convert(copy.deepcopy(native))
    assert "reads .bn" in report["block.bn"].not_fused
    assert "reads .seq" in report["seq.0"].not_fused
    check_equal(model, native, torch.randn(4, 4, 3, 3))


class Outer(nn.Module):
    """Calls a norm of a child, which calls it too."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.inner.bn(x)) + self.inner(x)


@pytest.mark.parametrize("inner", ["functional", "shape"])
def test_a_norm_that_two_modules_call_is_left(inner: str) -> None:
    native = disturb(Outer(around(CASES[inner][0])()))
    model, report = convert(copy.deepcopy(native))
    assert "call" in report["inner.bn"].not_fused
    check_equal(model, native, torch.randn(4, 4, 3, 3))


def test_hooks_run_and_are_removed_as_before() -> None:
    model, seen = ResNet(), []
    handles = [
        model.bn1.register_forward_hook(lambda *_: seen.append("norm")),
        model.layer1[0].register_forward_hook(lambda *_: seen.append("block")),
        model.layer1[0].relu.register_forward_hook(lambda *_: seen.append("relu")),
        model.layer1[1]
        .downsample[1]
        .register_full_backward_hook(lambda *_: seen.append("backward")),
    ]
    native = disturb(copy.deepcopy(model))
    model.load_state_dict(native.state_dict())
    _, report = convert(model)
    assert report["bn1"].not_fused == "BatchNorm2d has hooks"
    assert report["layer1.0.bn1"].fused == ""
    check_equal(model, native, torch.randn(4, 3, 9, 9))
    seen.clear()
    model(torch.randn(4, 3, 9, 9)).sum().backward()
    assert seen == ["norm", "relu", "relu", "block", "backward"]
    for handle in handles:
        handle.remove()
    model(torch.randn(4, 3, 9, 9))
    assert len(seen) == 5


class Quiet(nn.BatchNorm2d):
    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-3)


class Loud(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


def test_subclasses_only_where_they_change_nothing() -> None:
    patched = nn.BatchNorm2d(4)
    patched.forward = lambda x: x
    reweighted = nn.utils.parametrizations.weight_norm(nn.BatchNorm2d(4))
    wild = nn.BatchNorm2d(4, momentum=1.5)
    native = nn.Sequential(Quiet(4), Loud(4), patched, reweighted, wild)
    model, report = convert(copy.deepcopy(native))
    assert [record.replaced for record in report.norms] == [True, False, False, False, False]
    reasons = [record.reason for record in report.norms[1:]]
    for reason, part in zip(
        reasons, ["defines forward", "replaced", "weight", "momentum"], strict=True
    ):
        assert part in reason
    assert "as it was: class Loud defines forward" in str(report)
    assert [type(m) for m in model][1:] == [type(m) for m in native][1:]
    check_equal(model, native, torch.randn(4, 4, 3, 3))


def test_nothing_to_do() -> None:
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False
    )
    before = [type(m) for m in encoder.modules()]
    model, report = convert(encoder)
    assert str(report) == "0 of 0 batch norms replaced, 0 fused"
    assert [type(m) for m in model.modules()] == before
    assert revert(model) is encoder


def test_half_precision() -> None:
    native = disturb(ResNet()).bfloat16()
    model, _ = convert(copy.deepcopy(native))
    assert model.bn1.running_var.dtype == torch.float32
    x = torch.randn(4, 3, 9, 9, dtype=torch.bfloat16)
    close = {"rtol": 0.05, "atol": 0.05}
    for training in (False, True):
        y, expected = model.train(training)(x), native.train(training)(x)
        assert y.dtype == expected.dtype
        torch.testing.assert_close(y, expected, **close)
    assert revert(model).bn1.running_var.dtype == torch.bfloat16
    torch.testing.assert_close(model(x), native(x), **close)


def test_autocast_adds_as_before() -> None:
    """The block's input is of 32 bits and its convolutions of 16: the sum promotes."""
    native = disturb(BasicBlock(4, 4))
    model, report = convert(copy.deepcopy(native))
    assert report["bn2"].residual
    x = torch.randn(4, 4, 5, 5)
    for training in (True, False):
        with torch.autocast("cpu", torch.bfloat16):
            y, expected = model.train(training)(x), native.train(training)(x)
        assert y.dtype == expected.dtype
        torch.testing.assert_close(y, expected, rtol=0.02, atol=0.02)


def test_channels_last() -> None:
    native = disturb(ResNet()).to(memory_format=torch.channels_last)
    model, _ = convert(copy.deepcopy(native))
    x = torch.randn(4, 3, 9, 9).contiguous(memory_format=torch.channels_last)
    check_equal(model, native, x)
    y = model.layer1(torch.randn(4, 6, 5, 5).contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_lazy_norms_before_their_first_input() -> None:
    native, first, second = (
        nn.Sequential(nn.Linear(3, 4), nn.LazyBatchNorm1d(momentum=0.3), nn.ReLU())
        for _ in range(3)
    )
    assert repr(revert(convert(first).model)) == repr(native)
    assert type(first[1]) is nn.LazyBatchNorm1d
    x = torch.randn(5, 3)
    first(x)
    assert type(first[1]) is nn.BatchNorm1d
    model, report = convert(second)
    assert report["1"].fused == "relu"
    model[0].load_state_dict(native[0].state_dict())
    model.eval()(x), native.eval()(x)
    assert type(model[1]) is ours.BatchNorm1d
    check_equal(model, native, x)
    assert type(revert(model)[1]) is nn.BatchNorm1d
    check_equal(model, native, x)


def copied(model: nn.Module, way: str) -> Any:
    if way == "deepcopy":
        return copy.deepcopy(model)
    if way == "pickle":
        return pickle.loads(pickle.dumps(model))  # noqa: S301
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "save"])
@pytest.mark.parametrize("make", NETWORKS)
def test_copies(make: Any, way: str) -> None:
    native = disturb(make())
    model, report = convert(copy.deepcopy(native))
    twin = copied(model, way)
    assert [type(m) for m in twin.modules()] == [type(m) for m in model.modules()]
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}
    check_equal(twin, native, torch.randn(4, 3, 9, 9))
    assert repr(revert(twin)) == repr(native)
    assert len(convert(model).report.norms) == len(report.norms)


@pytest.mark.parametrize("make", NETWORKS)
def test_checkpoints_go_both_ways(make: Any) -> None:
    native = disturb(make())
    model, _ = convert(make())
    model.load_state_dict(native.state_dict(), strict=True)
    check_state(model, native)
    other = make()
    other.load_state_dict(model.state_dict(), strict=True)
    x = torch.randn(4, 3, 9, 9)
    torch.testing.assert_close(other.eval()(x), model.eval()(x), **CLOSE)


def test_converting_twice_is_converting_once() -> None:
    native = disturb(ResNet())
    model, _ = convert(copy.deepcopy(native), fuse_activations=False)
    assert len(convert(model).report.fused) == 5
    types = [type(m) for m in model.modules()]
    assert len(convert(model).report.fused) == 0
    assert [type(m) for m in model.modules()] == types
    check_equal(model, native, torch.randn(4, 3, 9, 9))
    assert repr(revert(model)) == repr(native)


def test_what_can_be_fused_later_joins_what_was() -> None:
    native = disturb(ResNet())
    model = copy.deepcopy(native)
    handle = model.layer1[0].bn1.register_forward_hook(lambda *_: None)
    assert len(convert(model).report.fused) == 4
    handle.remove()
    assert [record.name for record in convert(model).report.fused] == ["layer1.0.bn1"]
    check_equal(model, native, torch.randn(4, 3, 9, 9))
    assert repr(revert(copied(model, "pickle"))) == repr(native)


def test_compiled_after_conversion() -> None:
    native = disturb(BasicBlock(4, 4))
    model, _ = convert(copy.deepcopy(native))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    check_equal(compiled._orig_mod, native, torch.randn(4, 4, 5, 5))
    x = torch.randn(4, 4, 5, 5)
    torch.testing.assert_close(compiled.eval()(x), native.eval()(x), **CLOSE)


def test_data_parallel() -> None:
    native = nn.DataParallel(disturb(ResNet()))
    model, report = convert(copy.deepcopy(native))
    assert type(model) is nn.DataParallel
    assert report["module.layer1.0.bn2"].fused == "add + relu"
    check_equal(model, native, torch.randn(4, 3, 9, 9))


def wrapped(kind: str, tmp_path: Any) -> Iterator[nn.Module]:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())
    if kind == "ScriptModule":
        yield torch.jit.trace(model.eval(), torch.randn(3, 4))
    elif kind == "OptimizedModule":
        yield torch.compile(model, backend="eager")
    else:
        store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            yield nn.parallel.DistributedDataParallel(model)
        finally:
            torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("do", [convert, revert])
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("kind", ["ScriptModule", "OptimizedModule", "DistributedDataParallel"])
def test_wrapped_models_are_refused(kind: str, inside: bool, do: Any, tmp_path: Any) -> None:
    for model in wrapped(kind, tmp_path):
        outer = nn.Sequential(nn.BatchNorm1d(4), model) if inside else model
        before = [type(m) for m in outer.modules()]
        with pytest.raises(UnsupportedError, match=f"{kind}.*{do.__name__}\\(model\\) first") as e:
            do(outer)
        assert has_three_parts(e.value)
        assert [type(m) for m in outer.modules()] == before


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"expected a torch\.nn\.Module") as caught:
        convert([nn.BatchNorm1d(4)])
    assert has_three_parts(caught.value)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"renorm": True}, "renorm=True"),
        ({"virtual_batch_size": 2}, "virtual_batch_size=2"),
        ({"zero_debias": True}, "zero_debias=True"),
        ({"frozen_statistics": True}, "frozen_statistics=True"),
        ({"inference_mode": True}, "inference_mode=True"),
        ({"nonfinite": "raise"}, "nonfinite='raise'"),
        ({"activation": "relu"}, "activation='relu'"),
    ],
    ids=str,
)
def test_options_that_native_does_not_have(options: dict[str, Any], word: str) -> None:
    model, _ = convert(ResNet())
    model.layer1[1].downsample[1] = ours.BatchNorm2d(8, **options)
    x = torch.randn(4, 3, 9, 9)
    before, expected = [type(m) for m in model.modules()], model.eval()(x)
    with pytest.raises(UnsupportedError, match="cannot revert") as caught:
        revert(model)
    assert f"layer1.1.downsample.1 uses {word}" in str(caught.value)
    assert has_three_parts(caught.value)
    assert [type(m) for m in model.modules()] == before
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)


def test_a_fused_norm_without_its_owner_does_not_revert() -> None:
    model, _ = convert(BasicBlock(4, 4))
    with pytest.raises(UnsupportedError, match="the model uses activation='relu'"):
        revert(model.bn1)


def test_synchronized_norms_revert_to_synchronized_ones() -> None:
    model = nn.Sequential(ours.BatchNorm2d(4, synchronized=True))
    assert type(revert(model)[0]) is nn.SyncBatchNorm
    model = nn.Sequential(ours.SyncBatchNorm(4, synchronized=False))
    with pytest.raises(UnsupportedError, match="synchronized=False"):
        revert(model)


@pytest.mark.parametrize("do", [convert, revert])
def test_a_failure_on_the_way_leaves_everything(do: Any, monkeypatch: Any) -> None:
    """An error at the last norm, after all others have changed."""
    model = disturb(ResNet())
    if do is revert:
        convert(model)
    x = torch.randn(4, 3, 9, 9)
    expected, state = model.eval()(x), copy.deepcopy(model.state_dict())
    before = [(m, type(m), dict(vars(m))) for m in model.modules()]
    module, name = ("fusion", "fuse") if do is convert else ("convert", "become_native")
    place = importlib.import_module(f"homeostat.torch.{module}")
    real, calls = getattr(place, name), []

    def failing(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(place, name, failing)
    with pytest.raises(KeyboardInterrupt):
        do(model)
    assert len(calls) == 3
    for part, cls, attributes in before:
        assert type(part) is cls
        assert vars(part) == attributes
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)


def test_the_report() -> None:
    report = convert(Inception()).report
    assert str(report).splitlines()[:3] == [
        "5 of 5 batch norms replaced, 5 fused",
        "name          was          now        fused            not fused because",
        "stem.bn       BatchNorm2d  homeostat  leaky_relu(0.1)",
    ]
    with pytest.raises(KeyError, match=r"stem\.bn"):
        report["stem"]
    with pytest.raises(AttributeError):
        report.norms[0].name = "other"


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    revert(convert(ResNet()).model)
    assert capsys.readouterr() == ("", "")


def published(name: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    if name == "resnet":
        config = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[2, 1], layer_type="basic", num_labels=4
        )
        return transformers.ResNetForImageClassification(config)
    config = transformers.MobileNetV2Config(depth_multiplier=0.25, image_size=32, num_labels=4)
    config.classifier_dropout_prob = 0.0
    return transformers.MobileNetV2ForImageClassification(config)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", ["resnet", pytest.param("mobilenet", marks=pytest.mark.slow)])
def test_networks_of_transformers(name: str) -> None:
    """Gradients through the 52 norms of one, which multiply every rounding, in float64."""
    native = disturb(published(name))
    model, report = convert(copy.deepcopy(native))
    assert set(kinds(model)) == {ours.BatchNorm2d}
    assert bool(report.fused) is (name == "resnet")
    x = torch.randn(4, 3, 32, 32)
    for training in (False, True):
        y, expected = model.train(training)(x).logits, native.train(training)(x).logits
        torch.testing.assert_close(y, expected, **CLOSE)
    check_state(model, native)
    if name == "resnet":
        check_equal(model, native, x)
    assert repr(revert(copied(model, "pickle"))) == repr(native)
    native.load_state_dict(model.state_dict())
    check_equal(model.double(), native.double(), x.double(), {"rtol": 1e-9, "atol": 1e-9})
