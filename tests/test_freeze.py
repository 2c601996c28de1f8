from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import homeostat.torch as ours  # noqa: E402
from homeostat.errors import SpecError, UnsupportedError  # noqa: E402
from homeostat.freeze import FreezeReport, Frozen, freeze, unfreeze  # noqa: E402
from homeostat.models.torch import TorchModel, load_weights  # noqa: E402
from tests.messages import has_three_parts  # noqa: E402
from tests.models.test_torch_adapter import unchanged  # noqa: E402
from tests.torch.networks import DenseNet, Inception, MobileNet, ResNet  # noqa: E402

NETWORKS = [ResNet, MobileNet, DenseNet, Inception]
FOUR = ["weight", "bias", "running_mean", "running_var"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(3)


def lived(model: nn.Module) -> nn.Module:
    """Give every batch norm parameters and statistics that matter."""
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            for name, tensor in part.state_dict().items():
                if name in ("weight", "running_var"):
                    tensor.copy_(torch.rand_like(tensor) + 0.5)
                elif name in ("bias", "running_mean"):
                    tensor.copy_(torch.randn_like(tensor))
    return model


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("converted", [False, True])
def test_outputs_are_those_of_inference_to_the_bit(network: Any, converted: bool) -> None:
    model, x = lived(network()), torch.randn(4, 3, 16, 16)
    if converted:
        ours.convert(model)
    expected = model.eval()(x)
    keys = [key for key in model.state_dict() if "num_batches" not in key]
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    report = freeze(model)
    assert len(report.changed) == len(report.norms) == len(norms) > 3
    assert torch.equal(model(x), expected)
    assert torch.equal(model.train()(x), expected)
    assert list(model.state_dict()) == keys
    assert all(type(norm) is ours.FrozenBatchNorm for norm in norms)
    assert not any(list(norm.parameters()) for norm in norms)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.BatchNorm1d(4),
        lambda: nn.BatchNorm3d(4, eps=0.1),
        lambda: nn.BatchNorm2d(4, affine=False),
        lambda: nn.BatchNorm2d(4).double(),
        lambda: nn.BatchNorm2d(4).half(),
        lambda: nn.SyncBatchNorm(4),
        lambda: ours.BatchNorm2d(4).half(),
        lambda: ours.BatchNorm2d(4, bias=False, renorm=True),
        lambda: ours.BatchNorm2d(4, zero_debias=True, virtual_batch_size=2),
        lambda: ours.SyncBatchNorm(4, activation="leaky_relu"),
    ],
)
def test_every_kind_of_norm(make: Any) -> None:
    norm = lived(make())
    dtype = norm.running_mean.dtype if norm.weight is None else norm.weight.dtype
    shape = {"BatchNorm1d": (8, 4), "BatchNorm3d": (8, 4, 2, 3, 5)}.get(
        type(norm).__name__, (8, 4, 5, 5)
    )
    x = torch.randn(shape).to(dtype)
    expected = norm.eval()(x)
    trained = copy.deepcopy(norm.train())
    state = {name: value.clone() for name, value in norm.state_dict().items()}
    assert freeze(norm).norms[0].kind == type(trained).__name__
    assert torch.equal(norm.train()(x), expected)
    assert {f"{k}" for k in norm.state_dict()} == set(FOUR) & state.keys()
    assert not list(norm.parameters())
    assert unfreeze(norm).changed
    assert type(norm) is type(trained)
    assert [n for n, _ in norm.named_parameters()] == [n for n, _ in trained.named_parameters()]
    assert list(norm.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in norm.state_dict().items())
    # It trains as it would have.
    assert torch.equal(norm.train()(x), trained(x))
    assert all(
        torch.equal(value, trained.state_dict()[name]) for name, value in norm.state_dict().items()
    )


def test_fine_tuning_moves_nothing_of_a_frozen_norm() -> None:
    model = lived(ours.convert(ResNet()).model)
    model.layer1[0].bn1.weight.requires_grad = False
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    x, y = torch.randn(8, 3, 16, 16), torch.randint(5, (8,))
    # What an optimizer holds from before, with a gradient, must not reach into the norms either.
    nn.functional.cross_entropy(model(x), y).backward()
    freeze(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    frozen = {f"{n}.{k}" for n, m in model.named_modules() for k in FOUR
              if isinstance(m, ours.FrozenBatchNorm)}  # fmt: skip
    for _ in range(3):
        nn.functional.cross_entropy(model.train()(x), y).backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (name in frozen), name
    assert frozen
    unfreeze(model)
    trains = {name: p.requires_grad for name, p in model.named_parameters()}
    assert [name for name, each in trains.items() if not each] == ["layer1.0.bn1.weight"]


def test_gradients_go_through_as_in_inference() -> None:
    model, x = lived(ResNet()).eval(), torch.randn(4, 3, 16, 16)
    model(x).square().sum().backward()
    expected = model.conv1.weight.grad.clone()
    model.conv1.weight.grad = None
    freeze(model)
    model.train()(x).square().sum().backward()
    torch.testing.assert_close(model.conv1.weight.grad, expected)


def test_named_norms_alone() -> None:
    model = lived(ResNet())
    report = freeze(model, ["bn1", "layer1.1.downsample.1"])
    assert [norm.name for norm in report.changed] == ["bn1", "layer1.1.downsample.1"]
    assert type(model.layer1[0].bn1) is nn.BatchNorm2d
    assert [norm.reason for norm in freeze(model, ["bn1"]).norms] == ["it is frozen already"]
    assert [n.reason for n in unfreeze(model, ["layer1.0.bn1"]).norms] == ["it is not frozen"]
    with unchanged(model), pytest.raises(SpecError, match=r"\['bn9'\]: expected names") as caught:
        freeze(model, ["bn1", "bn9"])
    assert has_three_parts(caught.value)


class Scaled(nn.BatchNorm1d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        return 2 * super().forward(input)


def test_what_cannot_be_frozen_is_told() -> None:
    model = nn.Sequential(
        nn.BatchNorm1d(3, track_running_stats=False), Scaled(3), nn.BatchNorm1d(3)
    )
    report = freeze(model)
    assert [norm.reason for norm in report.norms] == [
        "it keeps no running statistics to be frozen to",
        "class Scaled defines forward",
        "",
    ]
    assert str(report).splitlines() == [
        "1 of 3 batch norms changed",
        "0  as it was: it keeps no running statistics to be frozen to",
        "1  as it was: class Scaled defines forward",
        "2  BatchNorm1d -> FrozenBatchNorm",
        "Make the optimizer after this: it would hold parameters that are gone.",
    ]
    assert freeze(nn.Sequential()) == FreezeReport(())


def test_a_failure_on_the_way_leaves_everything(monkeypatch: Any) -> None:
    model = ours.convert(lived(ResNet())).model
    from homeostat.models.torch import freeze as half

    real, calls = half.become_frozen, []

    def fail(norm: nn.Module) -> None:
        real(norm)
        calls.append(norm)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(half, "become_frozen", fail)
    with unchanged(model), pytest.raises(KeyboardInterrupt):
        freeze(model)
    assert len(calls) == 3


def test_shared_norms_and_hooks_stay() -> None:
    shared = lived(nn.BatchNorm1d(3))
    model = nn.Sequential(shared, nn.ReLU(), shared)
    called = []
    shared.register_forward_hook(lambda *_: called.append(1))
    report = freeze(model)
    assert len(report.norms) == 1
    assert model[0] is model[2] is shared
    model(torch.randn(2, 3))
    assert called == [1, 1]


def test_frozen_models_are_saved_and_loaded(tmp_path: Path) -> None:
    model, x = lived(ResNet()).eval(), torch.randn(2, 3, 16, 16)
    expected = model(x)
    torch.save(model.state_dict(), tmp_path / "native.pt")
    other = ResNet()
    freeze(other)
    # From a checkpoint of norms that train, and from one of its own.
    load_weights(other, tmp_path / "native.pt")
    assert torch.equal(other(x), expected)
    TorchModel(other).save(tmp_path / "frozen.safetensors")
    third = freeze_all(ResNet())
    load_weights(third, tmp_path / "frozen.safetensors")
    assert torch.equal(third(x), expected)
    for again in (pickle.loads(pickle.dumps(third)), copy.deepcopy(third)):  # noqa: S301
        assert torch.equal(again(x), expected)
        unfreeze(again)
        assert torch.equal(again.eval()(x), expected)


def freeze_all(model: nn.Module) -> nn.Module:
    freeze(model)
    return model


def test_the_class_by_itself() -> None:
    frozen = ours.FrozenBatchNorm(
        3, eps=0.5, activation={"name": "leaky_relu", "negative_slope": 0.1}
    )
    frozen.load_state_dict(lived(ours.BatchNorm1d(3, renorm=True, zero_debias=True)).state_dict())
    x, r = torch.randn(5, 3), torch.randn(5, 3)
    scale = frozen.weight / (frozen.running_var + 0.5).sqrt()
    z = (x - frozen.running_mean) * scale + frozen.bias + r
    torch.testing.assert_close(frozen(x, r), torch.where(z > 0, z, 0.1 * z))
    assert repr(frozen) == (
        "FrozenBatchNorm(3, eps=0.5, activation={'name': 'leaky_relu', 'negative_slope': 0.1})"
    )
    half = frozen.half()
    assert half.weight.dtype == torch.float16
    assert half.running_var.dtype == torch.float32
    assert half(x.half()).dtype == torch.float16
    assert unfreeze(nn.Sequential(frozen)).norms[0].reason == "it was not frozen by freeze"


def test_what_is_no_model() -> None:
    with pytest.raises(UnsupportedError, match="type dict") as caught:
        freeze({})
    assert has_three_parts(caught.value)


KERAS = """
import numpy as np, keras
from homeostat.freeze import freeze, unfreeze
from homeostat.keras import BatchNormalization

def build():
    x = inputs = keras.Input((6,))
    x = keras.layers.Dense(5)(x)
    x = keras.layers.BatchNormalization(name="theirs", momentum=0.5)(x)
    x = keras.layers.Dense(5, "relu")(x)
    x = BatchNormalization(name="ours", momentum=0.5, frozen_affine=True, activation="relu")(x)
    inner = keras.Sequential([keras.Input((5,)), keras.layers.BatchNormalization(name="inner")],
                             name="block")
    return keras.Model(inputs, keras.layers.Dense(2)(inner(x)))

keras.utils.set_random_seed(1)
model = build()
norms = {name: layer for name in ("theirs", "ours") for layer in [model.get_layer(name)]}
norms["inner"] = model.layers[-2].get_layer("inner")
x, y = np.random.default_rng(0).normal(3, 2, (32, 6)), np.zeros((32, 2))
model.compile("sgd", "mse")
model.fit(x, y, epochs=2, verbose=0)
expected = model.predict(x, verbose=0)
report = freeze(model)
names = [norm.name for norm in report.changed]
assert names[:2] == ["theirs", "ours"] and names[2].endswith("inner") and len(names) == 3, names
assert "compile() again" in str(report)
np.testing.assert_array_equal(np.asarray(keras.ops.convert_to_numpy(model(x, training=True))),
                              np.asarray(keras.ops.convert_to_numpy(model(x, training=False))))
model.compile("sgd", "mse")
before = {n: [w.copy() for w in layer.get_weights()] for n, layer in norms.items()}
kernel = model.layers[1].get_weights()[0].copy()
model.fit(x, y, epochs=2, verbose=0)
assert (model.layers[1].get_weights()[0] != kernel).any()
for name, layer in norms.items():
    for now, then in zip(layer.get_weights(), before[name], strict=True):
        np.testing.assert_array_equal(now, then)
assert [norm.reason for norm in freeze(model, ["ours"]).norms] == ["it is frozen already"]
try:
    freeze(model, ["ours", "none"])
except ValueError as error:
    assert "['none']" in str(error) and "theirs" in str(error), error
else:
    raise AssertionError
assert len(unfreeze(model).changed) == 3
assert norms["ours"].frozen_affine
model.compile("sgd", "mse")
model.fit(x, y, epochs=1, verbose=0)
for name, layer in norms.items():
    moved = [(now != then).any() for now, then in
             zip(layer.get_weights()[:4], before[name][:4], strict=True)]
    assert all(moved) or (name == "ours" and sum(moved) == 2), (name, moved)
# A failure on the way leaves everything.
class Stubborn(keras.layers.BatchNormalization):
    trainable = property(lambda self: True,
                         lambda self, value: value or (_ for _ in ()).throw(KeyboardInterrupt))
mixed = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization(), Stubborn()])
try:
    freeze(mixed)
except KeyboardInterrupt:
    assert mixed.layers[0].trainable is True
else:
    raise AssertionError
print("done")
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "torch"])
def test_keras(backend: str) -> None:
    pytest.importorskip("keras")
    pytest.importorskip(backend)
    done = subprocess.run(
        [sys.executable, "-c", KERAS],
        env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip().endswith("done"), done.stderr


def test_reports_are_frozen_records() -> None:
    report = FreezeReport((Frozen("", "BatchNorm1d", "FrozenBatchNorm"),), "Go on.")
    assert str(report).splitlines() == [
        "1 of 1 batch norms changed",
        "(model)  BatchNorm1d -> FrozenBatchNorm",
        "Go on.",
    ]
    assert report.changed == report.norms
