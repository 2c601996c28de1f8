from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812

import homeostat.torch as ours  # noqa: E402
from homeostat.errors import (  # noqa: E402
    ModelFileError,
    ShapeError,
    SpecError,
    UnsupportedError,
)
from homeostat.models import adapt  # noqa: E402
from homeostat.models.torch import TorchModel, load_weights  # noqa: E402
from homeostat.moments import Moments, merge_all  # noqa: E402
from tests.messages import has_three_parts  # noqa: E402
from tests.torch.networks import DenseNet, Inception, MobileNet, ResNet  # noqa: E402

NETWORKS = [ResNet, MobileNet, DenseNet, Inception]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(3)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def everything(model: nn.Module) -> dict[str, Any]:
    """Return all that a forward could change: values, modes, classes, hooks, random numbers."""
    found: dict[str, Any] = {"state": {k: v.clone() for k, v in model.state_dict().items()}}
    found["tensors"] = [(n, id(t)) for n, t in model.named_parameters()]
    found["buffers"] = [(n, id(t)) for n, t in model.named_buffers()]
    found["parts"] = [(n, type(m), m.training, sorted(vars(m))) for n, m in model.named_modules()]
    found["hooks"] = [
        (name, key, list(value))
        for name, part in model.named_modules()
        for key, value in vars(part).items()
        if "hooks" in key and value
    ]
    found["numbers"] = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())
    return found


def assert_same(now: dict[str, Any], then: dict[str, Any]) -> None:
    assert now["state"].keys() == then["state"].keys()
    for name, value in then["state"].items():
        torch.testing.assert_close(now["state"][name], value, rtol=0, atol=0, equal_nan=True)
    for key in ("tensors", "buffers", "parts", "hooks"):
        assert now[key] == then[key], key
    assert torch.equal(now["numbers"][0], then["numbers"][0])
    assert now["numbers"][1] == then["numbers"][1]
    assert np.array_equal(now["numbers"][2], then["numbers"][2])


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    then = everything(model)
    yield
    assert_same(everything(model), then)


def truth(x: Any, weights: Any = None) -> Moments:
    """Return the moments of an array in float64."""
    x = np.asarray(x, "float64")
    axes = tuple(a for a in range(x.ndim) if a != 1)
    w = np.ones(len(x)) if weights is None else np.asarray(weights, "float64")
    w = np.broadcast_to(w.reshape([-1] + [1] * (x.ndim - 1)), x.shape)
    mean = np.average(x, axis=axes, weights=w)
    shape = [-1 if a == 1 else 1 for a in range(x.ndim)]
    variance = np.average((x - mean.reshape(shape)) ** 2, axis=axes, weights=w)
    return Moments(float(w.sum() / x.shape[1]), mean, variance)


def assert_close(found: Moments, expected: Moments, rtol: float = 1e-6) -> None:
    assert float(found.count) == pytest.approx(float(expected.count))
    assert found.mean.dtype == found.variance.dtype == np.float64
    std = np.sqrt(expected.variance).max()
    np.testing.assert_allclose(found.mean, expected.mean, rtol=rtol, atol=rtol * 1e-3 * std)
    np.testing.assert_allclose(found.variance, expected.variance, rtol=rtol)


# The record.


@pytest.mark.parametrize("network", NETWORKS)
def test_norms_are_those_of_the_network_in_its_order(network: Any) -> None:
    model = network()
    called: list[str] = []
    for name, part in model.named_modules():
        if isinstance(part, nn.BatchNorm2d):
            part.register_forward_hook(lambda *_, name=name: called.append(name))
    model.eval()(torch.randn(2, 3, 16, 16))
    record = TorchModel(model).record()
    assert [norm.name for norm in record.norms] == called
    assert [operation for norm in record.norms for operation in norm.operations] == called
    assert (record.framework, record.name) == ("torch", network.__name__)
    size = sum(t.numel() for t in (*model.parameters(), *model.buffers()))
    assert record.parameters == size


def test_what_a_record_tells() -> None:
    bn = nn.BatchNorm2d(3, eps=1e-3, momentum=0.25)
    bn.weight.data = torch.tensor([1.0, 2.0, 3.0])
    bn(torch.randn(4, 3, 2, 2))
    (norm,) = TorchModel(nn.Sequential(nn.Conv2d(3, 3, 1), bn)).record().norms
    assert (norm.name, norm.kind, norm.epsilon, norm.momentum) == ("1", "BatchNorm2d", 1e-3, 0.75)
    assert (norm.updates, norm.skipped, norm.cumulative) == (1, None, False)
    assert (norm.stored_variance, norm.dtype, norm.synchronized) == ("sample", "float32", False)
    assert (norm.trainable, norm.tracking, norm.training) == (True, True, True)
    assert norm.unknown == frozenset()
    np.testing.assert_array_equal(norm.gamma, [1, 2, 3])
    np.testing.assert_array_equal(norm.moving_mean, bn.running_mean.numpy())
    bn.running_mean.zero_()
    assert norm.moving_mean is not None
    assert norm.moving_mean.any()


class Frozen(nn.Module):
    """As torchvision, Detectron2 and Transformers write it."""

    def __init__(self, features: int, eps: float | None = None) -> None:
        super().__init__()
        for name in ("weight", "running_var"):
            self.register_buffer(name, torch.rand(features) + 0.5)
        for name in ("bias", "running_mean"):
            self.register_buffer(name, torch.randn(features))
        if eps is not None:
            self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


FIELDS: list[tuple[Any, dict[str, Any]]] = [
    (lambda: nn.BatchNorm1d(4).eval(), {"training": False}),
    (lambda: nn.BatchNorm1d(4, momentum=None), {"momentum": None, "cumulative": True}),
    (lambda: nn.BatchNorm1d(4, momentum=0.0), {"tracking": False, "momentum": 1.0}),
    (
        lambda: nn.BatchNorm1d(4, affine=False),
        {"gamma": None, "beta": None, "trainable": None, "dtype": "float32"},
    ),
    (
        lambda: nn.BatchNorm1d(4, track_running_stats=False).eval(),
        {"training": True, "tracking": False, "moving_mean": None, "stored_variance": None},
    ),
    (lambda: nn.BatchNorm3d(4).requires_grad_(False), {"trainable": False, "tracking": True}),
    (lambda: nn.BatchNorm2d(4).half(), {"dtype": "float16"}),
    (lambda: nn.BatchNorm2d(4).bfloat16(), {"dtype": "bfloat16", "unknown": frozenset()}),
    (lambda: nn.SyncBatchNorm(4), {"synchronized": True, "kind": "SyncBatchNorm"}),
    (
        lambda: nn.BatchNorm2d(4, device="meta"),
        {
            "moving_mean": None,
            "updates": None,
            "unknown": {"gamma", "beta", "moving_mean", "moving_variance"},
        },
    ),
    (lambda: Frozen(4), {"epsilon": None, "unknown": {"epsilon"}, "trainable": False}),
    (lambda: Frozen(4, 1e-3), {"epsilon": 1e-3, "tracking": False, "training": False}),
    (
        lambda: ours.BatchNorm2d(4, activation="relu", eps=1e-4),
        {"activation": "relu", "epsilon": 1e-4, "kind": "homeostat.BatchNorm2d", "skipped": 0},
    ),
    (lambda: ours.BatchNorm2d(4, inference_mode=True), {"tracking": False, "training": False}),
    (lambda: ours.BatchNorm2d(4, frozen_statistics=True), {"tracking": False, "training": True}),
    (lambda: ours.BatchNorm1d(4, frozen_affine=True), {"trainable": False}),
    (lambda: ours.BatchNorm1d(4, synchronized=True), {"synchronized": True}),
    (lambda: ours.FrozenBatchNorm(4, activation="relu"), {"activation": "relu", "epsilon": 1e-5}),
]


@pytest.mark.parametrize(("make", "fields"), FIELDS)
def test_fields(make: Any, fields: dict[str, Any]) -> None:
    (norm,) = TorchModel(nn.Sequential(nn.Identity(), make())).record().norms
    assert {name: getattr(norm, name) for name in fields} == fields


def test_skipped_updates_are_told() -> None:
    bn = ours.BatchNorm1d(2)
    x = torch.randn(8, 2)
    bn(x)
    bn(torch.where(torch.arange(2) == 1, torch.nan, x))
    bn(torch.full_like(x, torch.inf))
    (norm,) = TorchModel(bn).record().norms
    assert (norm.name, norm.updates, norm.skipped) == ("", 2, 2)


def test_a_norm_that_stays_in_eval_while_the_model_trains_is_frozen() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3)).train()
    model[1].eval()
    first, second = TorchModel(model).record().norms
    assert (first.tracking, second.tracking) == (True, False)
    assert any("training mode" in note for note in TorchModel(model).record().notes)
    first, second = TorchModel(model.eval()).record().norms
    assert (first.tracking, second.tracking) == (True, True)
    assert TorchModel(model).record().notes == ()


def test_what_is_no_batch_norm() -> None:
    others = nn.Sequential(nn.InstanceNorm1d(4, affine=True), nn.LayerNorm(4), nn.GroupNorm(2, 4))
    assert TorchModel(others).record().norms == ()


def test_lazy_norms_are_told_of_and_not_run() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), ours.LazyBatchNorm1d())
    adapter = TorchModel(model)
    record = adapter.record()
    assert record.norms == ()
    assert "0, 1, 2" in record.notes[0]
    with pytest.raises(UnsupportedError, match="wait for a first input") as caught:
        adapter.observe(torch.randn(4, 3))
    assert has_three_parts(caught.value)
    model(torch.randn(4, 3))
    assert [norm.name for norm in adapter.record().norms] == ["1", "2"]


# Moments.


@pytest.mark.parametrize("ratio", [0.0, 1.0, 1e3])
@pytest.mark.parametrize("layout", ["1d", "1d length", "2d", "channels last", "strided", "3d"])
def test_moments_are_those_of_float64(ratio: float, layout: str, rng: Any) -> None:
    shapes = {"1d": (97, 5), "1d length": (9, 5, 31), "3d": (6, 5, 4, 3, 7)}
    x = torch.tensor(
        rng.normal(ratio, 1.0, shapes.get(layout, (6, 5, 17, 13))), dtype=torch.float32
    )
    bn: Any = {"1d": nn.BatchNorm1d, "1d length": nn.BatchNorm1d, "3d": nn.BatchNorm3d}.get(
        layout, nn.BatchNorm2d
    )(5)
    if layout == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    if layout == "strided":
        x = x[:, :, ::2, 1::3]
    for adapter in (TorchModel(bn), adapt(nn.Sequential(bn))):
        with unchanged(bn):
            (found,) = adapter.observe(x).values()
        assert_close(found, truth(x))
    before = x.double().sum()
    TorchModel(bn.double()).observe(x.double())
    assert x.double().sum() == before


def test_moments_of_large_inputs_are_merged_from_parts(rng: Any) -> None:
    x = rng.normal(50, 1, (40, 3, 96, 96)).astype("float32")
    x[20:] += 3
    assert_close(TorchModel(nn.BatchNorm2d(3)).observe(x)[""], truth(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits(dtype: torch.dtype, rng: Any) -> None:
    x = torch.tensor(rng.normal(3, 1, (64, 4, 5, 5))).to(dtype)
    native, complete = nn.BatchNorm2d(4).to(dtype), ours.BatchNorm2d(4).to(dtype)
    for bn in (native, complete, nn.BatchNorm2d(4)):
        with unchanged(bn):
            assert_close(TorchModel(bn).observe(x)[""], truth(x.double()))


@pytest.mark.parametrize("network", NETWORKS)
def test_networks_normalize_by_the_batch_as_in_training(network: Any, rng: Any) -> None:
    model, x = network().train(), rng.normal(1, 2, (8, 3, 16, 16)).astype("float32")
    adapter = TorchModel(model)
    with unchanged(model):
        found = adapter.observe(x)
        outputs = adapter.outputs(x, batch_statistics=True)
    seen: dict[str, Any] = {}
    for name, part in model.named_modules():
        if isinstance(part, nn.BatchNorm2d):
            part.register_forward_pre_hook(lambda _, x, n=name: seen.update({n: x[0].detach()}))
    np.testing.assert_allclose(outputs, model(torch.tensor(x)).detach(), rtol=1e-4, atol=1e-5)
    assert list(found) == list(seen)
    for name, moments in found.items():
        # The forward that trains rounds in another order.
        assert_close(moments, truth(seen[name]), rtol=1e-4)


def test_transformers(rng: Any) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        hidden_sizes=[16, 32], depths=[1, 2], embedding_size=8, num_labels=3
    )
    model = transformers.ResNetForImageClassification(config).eval()
    adapter = TorchModel(model)
    batch = {"pixel_values": rng.normal(0, 1, (4, 3, 32, 32)).astype("float32")}
    with unchanged(model):
        found = adapter.observe(batch)
        outputs = adapter.outputs(batch)
    record = adapter.record()
    assert [norm.name for norm in record.norms] == list(found)
    assert outputs["logits"].shape == (4, 3)
    assert outputs["logits"].dtype == np.float64
    seen = []
    model.resnet.embedder.embedder.normalization.register_forward_pre_hook(
        lambda _, x: seen.append(x[0].detach())
    )
    model(torch.tensor(batch["pixel_values"]))
    assert_close(found["resnet.embedder.embedder.normalization"], truth(seen[0]))


class Shared(nn.Module):
    """One norm on two inputs of different sizes, given by position and by name."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.norm, self.again = norm, norm

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        return {"x": self.norm(x), "rest": [self.again(input=y), None]}


@pytest.mark.parametrize("make", [nn.BatchNorm1d, ours.BatchNorm1d])
def test_both_uses_of_a_shared_norm_are_merged(make: Any, rng: Any) -> None:
    x, y = rng.normal(0, 1, (6, 3)).astype("float32"), rng.normal(5, 2, (6, 3, 7)).astype("float32")
    adapter = TorchModel(Shared(make(3)))
    (norm,) = adapter.record().norms
    assert norm.operations == ("norm", "norm#2")
    flat = np.concatenate([x, np.moveaxis(y, 1, 2).reshape(-1, 3)])
    for batch in ((x, y), [x, y], {"y": y, "x": x}):
        found = adapter.observe(batch)
        assert list(found) == ["norm"]
        assert_close(found["norm"], truth(flat))
    # Each use is normalized by its own.
    outputs = adapter.outputs((x, y), batch_statistics=True)
    expected = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    np.testing.assert_allclose(outputs["x"], expected, rtol=1e-4, atol=1e-5)
    assert outputs["rest"][0].dtype == np.float64
    assert outputs["rest"][1] is None


@pytest.mark.parametrize(
    "make",
    [nn.BatchNorm1d, ours.BatchNorm1d, lambda n: nn.BatchNorm1d(n, track_running_stats=False)],
)
def test_some_norms_take_the_batch(make: Any, rng: Any) -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), make(3), nn.Dropout(0.9)).train()
    for norm in model[:2]:
        if norm.running_mean is not None:
            norm.running_mean.copy_(torch.tensor([1.0, -2.0, 3.0]))
            norm.running_var.copy_(torch.tensor([4.0, 0.25, 2.0]))
    x = rng.normal(0, 1, (16, 3))
    adapter = TorchModel(model.double())
    moving = (x - [1, -2, 3]) / np.sqrt(np.array([4, 0.25, 2]) + 1e-5)
    own = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    for chosen, second in (
        (True, own),
        (False, moving),
        (["0"], own),
        (["1"], moving),
        ([], moving),
    ):
        with unchanged(model):
            found = adapter.observe(x, batch_statistics=chosen)
        assert_close(found["0"], truth(x))
        assert_close(found["1"], truth(second))
    with pytest.raises(SpecError, match=r"no batch norm '7': expected one of \['0', '1'\]"):
        adapter.observe(x, batch_statistics=["7"])


@pytest.mark.parametrize(
    "make",
    [nn.BatchNorm2d, ours.BatchNorm2d, lambda n: nn.BatchNorm2d(n, track_running_stats=False)],
)
def test_weights(make: Any, rng: Any) -> None:
    model = nn.Sequential(make(3), nn.Conv2d(3, 3, 1), make(3))
    adapter = TorchModel(model.double())
    x = rng.normal(2, 1, (7, 3, 4, 4))
    for weights in (
        np.array([1, 0, 1, 1, 0, 1, 1]),
        np.array([0.5, 2, 0, 1, 1, 3, 0.25]),
        torch.tensor([True, False, True, True, True, False, True]),
        np.full(7, 2.0),
    ):
        w = np.asarray(weights, "float64")
        with unchanged(model):
            found = adapter.observe(x, weights=weights)
        first = truth(x, w)
        assert_close(found["0"], first)
        if model[0].running_mean is None:
            # It takes the batch's statistics anyway.
            again = adapter.observe(x, weights=weights, batch_statistics=False)
            assert_close(again["2"], found["2"])
        y = (x - first.mean.reshape(1, 3, 1, 1)) / np.sqrt(
            first.variance.reshape(1, 3, 1, 1) + 1e-5
        )
        with torch.no_grad():
            inner = model[1](torch.tensor(y)).numpy()
        assert_close(found["2"], truth(inner, w))
        repeated = np.repeat(x, (w * 4).astype(int), axis=0)
        assert_close(found["0"]._replace(count=4 * found["0"].count), truth(repeated))


def test_examples_of_weight_zero_do_not_reach_the_model(rng: Any) -> None:
    x = rng.normal(0, 1, (5, 3)).astype("float32")
    x[2] = np.nan
    adapter = TorchModel(nn.BatchNorm1d(3))
    assert_close(adapter.observe(x, weights=[1, 1, 0, 1, 1])[""], truth(np.delete(x, 2, 0)))
    batch = {"input": torch.tensor(x)}
    assert_close(adapter.observe(batch, weights=[1, 1, 0, 1, 1])[""], truth(np.delete(x, 2, 0)))
    assert adapter.observe(x, weights=np.zeros(5)) == {}


def test_weights_that_do_not_fit(rng: Any) -> None:
    folded = nn.Sequential(nn.Flatten(0, 1), nn.BatchNorm1d(4))
    adapter, x = TorchModel(folded), rng.normal(0, 1, (6, 5, 4)).astype("float32")
    kept = adapter.observe(x, weights=[1, 0, 1, 1, 0, 1])["1"]
    assert_close(kept, truth(x[[0, 2, 3, 5]].reshape(-1, 4)))
    for weights, error, words in (
        ([1, 2, 1, 1, 1, 1], UnsupportedError, "6 weighted examples came to a batch norm as 30"),
        ([1, 1], ShapeError, r"weights have shape \(2,\)"),
        ([1, 1, -1, 1, 1, 1], SpecError, "negative"),
        ([1, 1, np.nan, 1, 1, 1], SpecError, "not finite"),
    ):
        with unchanged(folded), pytest.raises(error, match=words) as caught:
            adapter.observe(x, weights=weights)
        assert has_three_parts(caught.value)


def test_one_example_is_a_batch() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    found = TorchModel(model.train()).observe(torch.randn(1, 3))["1"]
    assert (found.count, found.variance.tolist()) == (1.0, [0.0] * 4)


def test_merged_moments_of_ragged_batches_are_the_pooled_truth(rng: Any) -> None:
    """Where `torch.optim.swa_utils.update_bn` averages each batch's alike (peer's fault P6)."""
    batches = [rng.normal(mean, 1, (n, 3)) for n, mean in ((64, 0.0), (64, 0.0), (4, 10.0))]
    tensors = [torch.tensor(batch, dtype=torch.float32) for batch in batches]
    adapter = TorchModel(nn.BatchNorm1d(3))
    pooled = merge_all((adapter.observe(batch)[""] for batch in tensors), np)
    expected = truth(torch.cat(tensors))
    assert_close(pooled, expected)
    adapter.write("", pooled)
    theirs = nn.BatchNorm1d(3)
    torch.optim.swa_utils.update_bn([(batch,) for batch in tensors], theirs)
    ours_mean, theirs_mean = adapter.model.running_mean, theirs.running_mean
    np.testing.assert_allclose(ours_mean, expected.mean, rtol=1e-5)
    assert (np.abs(theirs_mean.numpy() - expected.mean) > 2.5).all()
    variance = expected.variance * 132 / 131
    np.testing.assert_allclose(adapter.model.running_var, variance, rtol=1e-5)
    assert (theirs.running_var.numpy() < 0.5 * variance).all()


# What a forward must not touch.


class Failing(nn.Module):
    """Raises where it is told to, in the middle of a residual network."""

    def __init__(self, network: nn.Module, fails: bool = True) -> None:
        super().__init__()
        self.network, self.fails = network, fails
        self.calls = 0

    def forward(self, x: torch.Tensor) -> Any:
        self.calls += 1
        random.random()
        x = x + torch.randn_like(x) + np.random.rand()
        y = self.network(x)
        for part in self.network.modules():
            if isinstance(part, nn.BatchNorm2d):
                # As badly as a forward may behave.
                part.running_mean.add_(1)
                part.training = True
        if self.fails:
            raise RuntimeError("in the middle")
        return y


@pytest.mark.parametrize("call", ["observe", "moving", "weights", "outputs", "batch outputs"])
@pytest.mark.parametrize("fails", [True, False])
def test_a_forward_leaves_everything_as_it_was(call: str, fails: bool) -> None:
    model = Failing(ResNet().train(), fails)
    model.network.layer1[1].bn2.eval()
    model.network.bn1.register_forward_hook(lambda *_: None)
    x = torch.randn(4, 3, 16, 16)
    adapter = TorchModel(model)
    run = {
        "observe": lambda: adapter.observe(x),
        "moving": lambda: adapter.observe(x, batch_statistics=False),
        "weights": lambda: adapter.observe(x, weights=[1, 2, 0.5, 0]),
        "outputs": lambda: adapter.outputs(x),
        "batch outputs": lambda: adapter.outputs(x, batch_statistics=True),
    }[call]
    expectation = (
        pytest.raises(RuntimeError, match="in the middle") if fails else contextlib.nullcontext()
    )
    with unchanged(model), expectation:
        run()
    assert model.calls == 0


def test_a_hook_that_fails_leaves_everything_as_it_was() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()

    def hook(*_: Any) -> None:
        raise KeyboardInterrupt

    model[1].register_forward_pre_hook(hook)
    x = torch.randn(4, 3, 5, 5)
    with unchanged(model), pytest.raises(KeyboardInterrupt):
        TorchModel(model).observe(x)
    complex_input = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    x = torch.randn(4, 3, dtype=torch.complex64)
    with unchanged(complex_input), pytest.raises(UnsupportedError, match="complex64"):
        TorchModel(complex_input).observe(x)


def test_no_gradients_are_kept_and_those_of_others_stay_right() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
    x = torch.randn(8, 3)
    loss = model(x).square().sum()
    TorchModel(model).observe(x)
    loss.backward()
    assert model[0].weight.grad is not None


@pytest.mark.parametrize("make", [nn.BatchNorm2d, ours.BatchNorm2d])
def test_autocast(make: Any, rng: Any) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), make(4), nn.Conv2d(4, 4, 1), make(4))
    x = torch.tensor(rng.normal(1, 1, (8, 3, 9, 9)), dtype=torch.float32)
    seen = []
    handle = model[1].register_forward_pre_hook(lambda _, x: seen.append(x[0].detach()))
    with torch.autocast("cpu", torch.bfloat16):
        found = TorchModel(model).observe(x)
        assert seen[0].dtype == torch.bfloat16
        handle.remove()
        # What autocast keeps of weights made under no_grad would have no gradients.
        model(x).float().sum().backward()
    assert_close(found["1"], truth(seen[0].double()))
    assert model[2].weight.grad is not None


def test_fused_norms_are_observed(rng: Any) -> None:
    x = rng.normal(1, 2, (8, 3, 16, 16)).astype("float32")
    model = ResNet().eval()
    expected = TorchModel(model).observe(x)
    expected_outputs = TorchModel(model).outputs(x)
    ours.convert(model)
    adapter = TorchModel(model)
    with unchanged(model):
        found = adapter.observe(x)
    # A norm with a residual comes where the residual is known.
    assert list(found) == [norm.name for norm in adapter.record().norms]
    assert found.keys() == expected.keys()
    for name, moments in found.items():
        np.testing.assert_allclose(moments.mean, expected[name].mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(moments.variance, expected[name].variance, rtol=1e-4)
    np.testing.assert_allclose(adapter.outputs(x), expected_outputs, rtol=1e-4, atol=1e-5)


def test_wrappers_are_looked_into(rng: Any) -> None:
    x = rng.normal(0, 1, (4, 3)).astype("float32")
    parallel = TorchModel(nn.DataParallel(nn.Sequential(nn.BatchNorm1d(3))))
    assert parallel.record().distributed is True
    assert_close(parallel.observe(x)["0"], truth(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.trace(nn.BatchNorm1d(3).eval(), torch.tensor(x))
    with pytest.raises(UnsupportedError, match="ScriptModule"):
        TorchModel(scripted)


@pytest.mark.slow
def test_compiled_models_run_eagerly(rng: Any) -> None:
    x = torch.tensor(rng.normal(0, 1, (4, 3)), dtype=torch.float32)
    compiled = []

    def backend(graph: Any, _: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    # In eval mode already, so that nothing but the hooks is another.
    inside = Shared(nn.BatchNorm1d(3)).eval()
    inside.compile(backend=backend)
    around = torch.compile(Shared(nn.BatchNorm1d(3)).eval(), backend=backend)
    for model in (inside, around):
        # Both may share what was compiled.
        model(x, x)
        after = len(compiled)
        assert after
        assert_close(TorchModel(model).observe((x, x))["norm"], truth(np.concatenate([x, x])))
        assert len(compiled) == after


# Writing.


def test_statistics_are_written_in_the_norms_dtype_and_kind() -> None:
    statistics = Moments(5.0, np.array([1.5, -2.0]), np.array([4.0, 0.25]))
    for bn in (nn.BatchNorm1d(2), nn.BatchNorm1d(2).half(), ours.BatchNorm1d(2).half(), Frozen(2)):
        mean, dtype = bn.running_mean, bn.running_mean.dtype
        TorchModel(nn.Sequential(bn)).write("0", statistics)
        assert bn.running_mean is mean
        assert bn.running_mean.tolist() == [1.5, -2.0]
        assert bn.running_var.tolist() == [5.0, 0.3125]
        assert bn.running_var.dtype == dtype


@pytest.mark.parametrize("options", [{"momentum": None}, {"momentum": 0.5, "zero_debias": True}])
def test_statistics_written_are_not_thrown_away_by_the_next_batch(options: Any) -> None:
    bn = ours.BatchNorm1d(1, **options)
    TorchModel(bn).write("", Moments(100.0, np.array([8.0]), np.array([1.0])))
    bn(torch.tensor([[0.0], [0.0]]))
    assert bn.running_mean.item() > 2.5


def test_renorm_corrects_towards_what_was_written() -> None:
    bn = ours.BatchNorm1d(1, renorm=True, eps=0.5)
    TorchModel(bn).write("", Moments(1e9, np.array([8.0]), np.array([3.5])))
    assert (bn.renorm_mean.item(), bn.renorm_std.item()) == (8.0, 2.0)


def test_statistics_that_cannot_be_written() -> None:
    model = nn.Sequential(
        nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False), nn.BatchNorm1d(2).half()
    )
    adapter, ones = TorchModel(model), np.ones(2)
    for name, statistics, error in (
        ("0", Moments(5.0, np.array([np.nan, 1]), ones), SpecError),
        ("0", Moments(5.0, np.ones(3), np.ones(3)), ShapeError),
        ("1", Moments(5.0, ones, ones), UnsupportedError),
        ("2", Moments(5.0, ones, ones * 1e6), SpecError),
        ("3", Moments(5.0, ones, ones), SpecError),
    ):
        with unchanged(model), pytest.raises(error) as caught:
            adapter.write(name, statistics)
        assert has_three_parts(caught.value)


def test_preserved_restores_what_an_error_left() -> None:
    model = ResNet().train()
    adapter = TorchModel(model)

    def change() -> None:
        with adapter.preserved():
            adapter.write("bn1", Moments(9.0, np.ones(6), np.ones(6)))
            model.eval()
            model.bn1.momentum = None
            model.bn1.reset_running_stats()
            model.layer1[0].bn1.register_forward_hook(lambda *_: None)
            model.layer1[0].bn2 = nn.Identity()
            raise KeyboardInterrupt

    with unchanged(model), pytest.raises(KeyboardInterrupt):
        change()
    with adapter.preserved():
        adapter.write("bn1", Moments(9.0, np.ones(6), np.ones(6)))
    assert model.bn1.running_mean.tolist() == [1.0] * 6


# Files.


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_files_hold_the_whole_model(suffix: str, tmp_path: Path) -> None:
    model = ours.convert(ResNet().train()).model
    model(torch.randn(4, 3, 16, 16))
    model.twin = model.fc
    path = tmp_path / f"model{suffix}"
    TorchModel(model).save(path)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    other = ResNet()
    other.twin = other.fc
    load_weights(other, path)
    for name, value in other.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    written = path.read_bytes()
    with pytest.raises(ModelFileError, match="is there already") as caught:
        TorchModel(other).save(path)
    assert has_three_parts(caught.value)
    assert path.read_bytes() == written


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    class Extra(nn.BatchNorm1d):
        def get_extra_state(self) -> Any:
            return {"a": 1}

    for name, error in (("a.h5", ModelFileError), ("a.safetensors", ModelFileError)):
        with pytest.raises(error) as caught:
            TorchModel(Extra(2)).save(tmp_path / name)
        assert has_three_parts(caught.value)

    class Broken(nn.BatchNorm1d):
        def get_extra_state(self) -> Any:
            return (each for each in ())

    with pytest.raises(TypeError):
        TorchModel(Broken(2)).save(tmp_path / "a.pt")
    assert not list(tmp_path.iterdir())


def test_weights_inside_checkpoints(tmp_path: Path) -> None:
    model = ResNet()
    for state in (
        {"state_dict": model.state_dict(), "epoch": 3},
        {"model": {f"module.{k}": v for k, v in model.state_dict().items()}},
    ):
        path = tmp_path / "checkpoint.pth"
        torch.save(state, path)
        other = ResNet()
        load_weights(other, path)
        assert torch.equal(other.fc.weight, model.fc.weight)


def reach() -> None:
    raise AssertionError


class Code:
    def __reduce__(self) -> Any:
        return reach, ()


def test_weights_that_do_not_fit_leave_the_module_as_it_was(tmp_path: Path) -> None:
    good = ResNet().state_dict()
    lacks = {k: v for k, v in good.items() if k != "bn1.running_mean"}
    files: dict[str, Any] = {
        r"lacks 'bn1.running_mean'": lacks,
        r"has 'other.weight'": {**good, "other.weight": torch.ones(2)},
        r"size mismatch for fc.bias": {**good, "fc.bias": torch.ones(2)},
        r"holds more than tensors": {**good, "fc.bias": Code()},
        r"holds a list": [1, 2],
    }
    for words, state in files.items():
        path = tmp_path / "weights.pt"
        torch.save(state, path)
        model = ResNet()
        with unchanged(model), pytest.raises(ModelFileError, match=words) as caught:
            load_weights(model, path)
        assert has_three_parts(caught.value)
    for name in ("none.pt", "damaged.pt", "damaged.safetensors", "weights.bin"):
        if name.startswith("damaged"):
            (tmp_path / name).write_bytes(b"PK\x03\x04 and no more")
        with unchanged(model), pytest.raises(ModelFileError) as caught:
            load_weights(model, tmp_path / name)
        assert has_three_parts(caught.value)


def test_lazy_modules_take_their_shapes_from_a_file(tmp_path: Path) -> None:
    full = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    torch.save(full.state_dict(), tmp_path / "a.pt")
    lacks = {k: v for k, v in full.state_dict().items() if k != "1.bias"}
    torch.save(lacks, tmp_path / "b.pt")
    lazy = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d())
    with pytest.raises(ModelFileError, match=r"lacks '1\.bias'"):
        load_weights(lazy, tmp_path / "b.pt")
    assert all(isinstance(p, nn.UninitializedParameter) for p in lazy[1].parameters())
    load_weights(lazy, tmp_path / "a.pt")
    assert torch.equal(F.relu(lazy.eval()(torch.ones(2, 3))), F.relu(full.eval()(torch.ones(2, 3))))
