"""Folding PyTorch models: every kind of layer, what forbids it, and whole networks."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812
from torch.nn.modules.batchnorm import _BatchNorm  # noqa: E402
from torch.nn.utils import parametrizations, prune  # noqa: E402

import homeostat.torch as ours  # noqa: E402
from homeostat.errors import DataError, DisagreementError, UnsupportedError  # noqa: E402
from homeostat.fold import Folded, fold  # noqa: E402
from tests.torch import networks  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def shaken(model: Any) -> Any:
    """Give a model's norms statistics and parameters with which folding matters; in eval mode."""
    for part in model.modules():
        if isinstance(part, _BatchNorm):
            if part.running_mean is not None:
                nn.init.normal_(part.running_mean, std=0.5)
                nn.init.uniform_(part.running_var, 0.5, 2)
            if part.weight is not None:
                nn.init.uniform_(part.weight, 0.5, 1.5)
            if part.bias is not None:
                nn.init.normal_(part.bias, std=0.5)
    return model.eval()


def folded(model: Any, inputs: Any = None, **options: Any) -> Folded:
    """Fold, and hold the new model to the old one, and the old one to what it was."""
    before = copy.deepcopy(model)
    result = fold(model, inputs, rounds=0, **options)
    assert result.report.error < 1e-5
    assert result.report.precision == "float64"
    assert repr(model) == repr(before)
    assert all(map(torch.equal, model.state_dict().values(), before.state_dict().values()))
    if isinstance(inputs, torch.Tensor):
        with torch.no_grad():
            expected, actual = model(inputs), result.model(inputs)
        if isinstance(expected, torch.Tensor):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    return result


def told(result: Folded) -> list[str]:
    return [
        f"{norm.side} {norm.into}" if norm.into else norm.reason for norm in result.report.norms
    ]


def norms_of(model: Any) -> list[str]:
    return [name for name, part in model.named_modules() if isinstance(part, _BatchNorm)]


KINDS: dict[str, tuple[Any, Any, tuple[int, ...]]] = {
    "linear": (lambda **o: nn.Linear(4, 6, **o), nn.BatchNorm1d, (3, 4)),
    "conv1d": (lambda **o: nn.Conv1d(4, 6, 3, **o), nn.BatchNorm1d, (3, 4, 8)),
    "conv2d": (lambda **o: nn.Conv2d(4, 6, 3, stride=2, **o), nn.BatchNorm2d, (3, 4, 8, 8)),
    "conv3d": (lambda **o: nn.Conv3d(4, 6, 2, **o), nn.BatchNorm3d, (3, 4, 4, 4, 4)),
    "grouped": (lambda **o: nn.Conv2d(4, 6, 3, groups=2, **o), nn.BatchNorm2d, (3, 4, 8, 8)),
    "depthwise": (lambda **o: nn.Conv2d(4, 8, 3, groups=4, **o), nn.BatchNorm2d, (3, 4, 8, 8)),
    "dilated": (lambda **o: nn.Conv2d(4, 6, 3, dilation=2, **o), nn.BatchNorm2d, (3, 4, 8, 8)),
    "transpose1d": (lambda **o: nn.ConvTranspose1d(4, 6, 3, **o), nn.BatchNorm1d, (3, 4, 8)),
    "transpose2d": (
        lambda **o: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, **o),
        nn.BatchNorm2d,
        (3, 4, 5, 5),
    ),
    "transpose3d": (
        lambda **o: nn.ConvTranspose3d(4, 6, 2, **o), nn.BatchNorm3d, (3, 4, 3, 3, 3)
    ),
}  # fmt: skip


def channels_of(module: Any) -> tuple[int, int]:
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    return module.in_channels, module.out_channels


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_takes_in_the_norm_behind_it(kind: str, bias: bool) -> None:
    make, norm, shape = KINDS[kind]
    layer = make(bias=bias)
    model = shaken(nn.Sequential(layer, norm(channels_of(layer)[1]), nn.ReLU()))
    result = folded(model, torch.randn(shape))
    assert told(result) == ["before 0"]
    assert type(result.model[1]) is nn.Identity
    assert result.model[0].bias is not None
    # Nothing but the inputs' shape was needed of them.
    assert told(folded(model)) == ["before 0"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("transpose")])
def test_every_layer_takes_in_the_norm_before_it(kind: str) -> None:
    make, norm, shape = KINDS[kind]
    layer = make()
    model = shaken(nn.Sequential(norm(channels_of(layer)[0]), layer, nn.ReLU()))
    result = folded(model, torch.randn(shape))
    assert told(result) == ["after 1"]
    assert norms_of(result.model) == []
    assert norms_of(folded(model, torch.randn(shape), forward=False).model) == ["0"]


def test_padding() -> None:
    x = torch.randn(2, 4, 6, 6)
    for layer in (
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, 3, padding="same"),
        nn.Conv2d(4, 6, 1, padding=1),
        nn.ConvTranspose2d(4, 6, 2, stride=2),
    ):
        model = shaken(nn.Sequential(nn.BatchNorm2d(4), layer))
        assert "'1' after it sees zeros around its input" in told(folded(model, x))[0]
        nn.init.zeros_(model[0].bias)
        nn.init.zeros_(model[0].running_mean)
        assert told(folded(model, x)) == ["after 1"]
    for layer in (
        nn.Conv2d(4, 6, 1, padding="same"),
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular"),
    ):
        assert told(folded(shaken(nn.Sequential(nn.BatchNorm2d(4), layer)), x)) == ["after 1"]
    model = shaken(nn.Sequential(nn.Conv2d(4, 4, 3), nn.ZeroPad2d(1), nn.BatchNorm2d(4)))
    assert "ZeroPad2d '1' puts zeros around" in told(folded(model, x))[0]


def test_what_does_nothing_in_inference_lies_between() -> None:
    layers = [nn.Linear(4, 5), nn.Dropout(), nn.Identity(), nn.BatchNorm1d(5), nn.BatchNorm1d(5)]
    result = folded(shaken(nn.Sequential(*layers)), torch.randn(3, 4))
    assert told(result) == ["before 0", "before 0"]
    layers[1].train()
    reason = "Dropout '1' is before it"
    report = fold(nn.Sequential(*layers), torch.randn(3, 4), rounds=0).report
    assert report["3"].reason.startswith(reason)


def test_a_linear_layer_has_its_channels_last() -> None:
    """A norm of (N, C, L) behind a linear layer normalizes what is not the layer's channels."""
    model = shaken(nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5)))
    assert told(folded(model, torch.randn(3, 5))) == ["before 0"]
    reason = "its channels are on axis 1, those of Linear '0' on axis 2"
    assert reason in told(folded(model, torch.randn(3, 5, 5)))[0]
    model = shaken(nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 5)))
    assert reason.replace("0", "1") in told(folded(model, torch.randn(3, 5, 5)))[0]


def test_options_of_the_norm() -> None:
    model = nn.Sequential(
        *(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False), nn.ReLU()),
        *(nn.Linear(4, 4), nn.BatchNorm1d(4, eps=0.1), nn.ReLU()),
        *(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.ReLU()),
        *(nn.Linear(4, 4), nn.SyncBatchNorm(4)),
    )
    assert told(folded(shaken(model), torch.randn(5, 4))) == [
        "before 0",
        "before 3",
        "it has no moving statistics, so that inference takes the batch's",
        "before 9",
    ]


def test_training_mode() -> None:
    model = shaken(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)))
    result = fold(model.train(), torch.randn(5, 3))
    assert "it is in training mode" in told(result)[0]
    assert result.report.folded == ()
    assert model.training
    frozen = shaken(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))).train()
    frozen[1].eval()
    result = folded(frozen)
    assert told(result) == ["before 0"]
    assert (result.model.training, result.model[0].training) == (True, True)
    inference = ours.BatchNorm1d(4, inference_mode=True)
    model = shaken(nn.Sequential(nn.Linear(3, 4), inference)).train()
    assert told(folded(model, torch.randn(5, 3))) == ["before 0"]


class Around(nn.Module):
    """A convolution, a norm and a forward of the test's own."""

    def __init__(self, forward: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3)
        self.steps = forward

    def forward(self, x: torch.Tensor) -> Any:
        return self.steps(self, x)


def _added(self: Any, x: Any) -> Any:
    y = self.conv(x)
    return self.bn(y) + y


def _both(self: Any, x: Any) -> Any:
    y = self.conv(x)
    return self.bn(y), y


def _twice(self: Any, x: Any) -> Any:
    return self.bn(self.conv(self.bn(self.conv(x))))


def _norm_twice(self: Any, x: Any) -> Any:
    return self.bn(self.conv(x)) + self.bn(x)


def _weight(self: Any, x: Any) -> Any:
    return self.bn(self.conv(x)) + self.conv.weight.sum()


def _statistics(self: Any, x: Any) -> Any:
    return self.bn(self.conv(x)) + self.bn.running_mean.sum()


def _decides(self: Any, x: Any) -> Any:
    return self.bn(self.conv(x)) if x.sum() > 0 else self.conv(x)


def _functions(self: Any, x: Any) -> Any:
    y = self.bn(F.conv2d(x, self.conv.weight, self.conv.bias, padding=1))
    return F.batch_norm(y, self.conv.bias, self.conv.bias.abs())


def _activation(self: Any, x: Any) -> Any:
    return torch.relu(self.bn(F.relu(self.conv(x))))


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        (_added, "function add 'add' takes the result of Conv2d 'conv' too"),
        (_both, "the result of Conv2d 'conv' is an output"),
        (_twice, "it is called 2 times"),
        (_norm_twice, "it is called 2 times"),
        (_weight, "Conv2d 'conv' has parameters that are used by themselves too"),
        (_statistics, "it has parameters that are used by themselves too"),
        (_decides, "no graph of Around: torch.fx cannot trace it"),
        (_functions, "function conv2d 'conv2d' is before it"),
        (_activation, "function relu 'relu' is before it; function relu 'relu_1' is after it"),
    ],
    ids=lambda value: getattr(value, "__name__", "").strip("_"),
)
def test_what_a_forward_does_stops_it(steps: Any, reason: str) -> None:
    model = shaken(Around(steps))
    result = fold(model, torch.randn(2, 3, 5, 5), rounds=0)
    norms = {norm.name: norm for norm in result.report.norms}
    if steps is not _statistics:
        assert reason in norms["bn"].reason
        assert result.report.folded == ()
    if steps is _functions:
        assert norms["batch_norm"].reason.startswith("it is a call of a function")
    if steps is _statistics:
        assert norms["bn"].reason == reason


def test_one_module_under_two_names() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU())
    model.append(model[0])
    assert "Linear '0' is called 2 times" in told(folded(shaken(model), torch.randn(2, 3)))[0]
    two = nn.ModuleDict({"norm": nn.BatchNorm1d(3), "linear": nn.Linear(3, 3)})

    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = two["linear"], two["norm"]
            self.parts = two

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.parts["norm"](self.linear(x)).relu()

    result = folded(shaken(Twins()), torch.randn(2, 3))
    assert told(result) == ["before linear"]
    assert norms_of(result.model) == []
    assert result.model.norm is result.model.parts["norm"]


def test_shared_parameters() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 3))
    model[3].weight = model[0].weight
    result = folded(shaken(model), torch.randn(2, 3))
    assert "Linear '0' shares its parameters" in told(result)[0]


def test_hooks_parametrizations_and_own_forwards() -> None:
    class Own(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
            return super().forward(input) + 1

    class OwnNorm(nn.BatchNorm1d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
            return super().forward(input) + 1

    class Named(nn.Linear):
        """Adds nothing but a name."""

    def reason(linear: Any, norm: Any | None = None) -> str:
        model = nn.Sequential(linear, norm or nn.BatchNorm1d(3), nn.ReLU())
        return told(folded(shaken(model), torch.randn(2, 3)))[0]

    assert "Own '0' has its own forward" in reason(Own(3, 3))
    assert reason(nn.Linear(3, 3), OwnNorm(3)) == "what the forward of OwnNorm does is not known"
    assert reason(Named(3, 3)) == "before 0"
    assert "is parametrized" in reason(parametrizations.weight_norm(nn.Linear(3, 3)))
    with torch.no_grad():
        pruned = prune.l1_unstructured(nn.Linear(3, 3), "weight", 0.5)
    assert "has hooks" in reason(pruned)
    hooked = nn.BatchNorm1d(3)
    hooked.register_forward_hook(lambda *_: None)
    assert reason(nn.Linear(3, 3), hooked) == "it has hooks"
    hooked = nn.Linear(3, 3)
    hooked.register_forward_hook(lambda *_: None)
    assert "Linear '0' has hooks" in reason(hooked)


def test_lazy_modules_are_refused() -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.BatchNorm1d(3)).eval()
    with pytest.raises(UnsupportedError, match="no values yet: expected it initialized"):
        fold(model, torch.randn(2, 3))
    model(torch.randn(2, 3))
    assert told(folded(shaken(model), torch.randn(2, 3))) == ["before 0"]


def test_a_part_that_is_not_reached_stays() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU())
            self.other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.main(x) if x.sum() < 1e9 else self.other(x)

    report = folded(shaken(Heads()), torch.randn(2, 3)).report
    assert report["main.1"].into == "main.0"
    assert report["other.1"].reason.startswith("the inputs do not come to it")


def test_a_part_without_a_graph_may_reach_into_another() -> None:
    class Reaching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = networks.ConvNormActivation(3, 4)
            self.stem = networks.BasicBlock(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.sum() > 1e9:
                return self.stem.conv1(x)
            return self.stem(self.block(x))

    report = folded(shaken(Reaching()), torch.randn(2, 3, 6, 6)).report
    assert report["block.1"].into == "block.0"
    assert "may be used by Reaching too" in report["stem.bn1"].reason
    assert report["stem.bn2"].into == "stem.conv2"


def test_homeostats_norms_leave_behind_what_was_fused() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in "abc")
            self.bn_a = ours.BatchNorm2d(4, activation="relu")
            self.bn_b = ours.BatchNorm2d(
                4, activation={"name": "leaky_relu", "negative_slope": 0.3}
            )
            self.bn_c = ours.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.bn_a(self.a(x), weights=None)
            z = self.bn_b(self.b(y), residual=y)
            return self.bn_c(self.c(z), z)

    model = shaken(Block())
    x = torch.randn(2, 4, 6, 6)
    result = folded(model, x)
    assert [norm.remains for norm in result.report.norms] == ["relu", "add + leaky_relu", "add"]
    assert norms_of(result.model) == []
    torch.testing.assert_close(result.model(x), model(x), rtol=1e-4, atol=1e-4)
    sequential = nn.Sequential(nn.Linear(4, 4), ours.BatchNorm1d(4, activation="relu"))
    result = folded(shaken(sequential.append(nn.Linear(4, 2))), torch.randn(3, 4))
    assert told(result) == ["before 0"]


@pytest.mark.parametrize("network", [networks.ResNet, networks.MobileNet, networks.DenseNet])
@pytest.mark.parametrize("converted", [False, True])
def test_networks(network: Any, converted: bool) -> None:
    model = shaken(network())
    if converted:
        model = ours.convert(model).model
    x = torch.randn(2, 3, 12, 12)
    result = folded(model, x)
    left = {norm.name for norm in result.report.left}
    expected = {f"features.3.layer{i}.norm1" for i in range(3)} | {"norm5"}
    assert left == (expected if network is networks.DenseNet else set())
    assert set(norms_of(result.model)) == left
    if network is networks.ResNet:
        # Its class, its methods and its code are the user's.
        assert type(result.model) is networks.ResNet
        assert result.model.describe() == "a small ResNet"
        assert [type(part) for part in result.model.layer1] == [networks.BasicBlock] * 2
    again = network()
    again = fold(again.eval(), x, rounds=0).model
    again.load_state_dict(result.model.state_dict())
    torch.testing.assert_close(again(x), result.model(x))


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_resnet_of_transformers(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[2, 1], layer_type=kind, num_labels=4
    )
    model = shaken(transformers.ResNetForImageClassification(config))
    result = folded(model, {"pixel_values": torch.randn(2, 3, 32, 32)})
    assert result.report.left == ()
    assert norms_of(result.model) == []
    assert type(result.model) is type(model)


@pytest.mark.slow
@pytest.mark.parametrize("padding", [False, True])
def test_mobilenet_of_transformers(padding: bool) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.MobileNetV2Config(
        depth_multiplier=0.25, image_size=32, num_labels=4, tf_padding=padding
    )
    model = shaken(transformers.MobileNetV2ForImageClassification(config))
    result = folded(model, torch.randn(2, 3, 32, 32))
    assert len(result.report.folded) == len(result.report.norms) == 52
    # How much TensorFlow pads depends on the input's size.
    assert len(result.report.notes) == padding
    assert all("MobileNetV2ConvLayer" in note for note in result.report.notes)


def test_several_inputs_and_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(9, 3)
            self.line = nn.Linear(3, 4, bias=False)
            self.norm = nn.BatchNorm1d(4)

        def forward(self, ids: Any, x: Any, scale: float = 1.0) -> Any:
            y = self.norm(self.line(x + self.embed(ids)))
            return {"y": (y * scale, [y.relu()]), "none": None}

    model = shaken(Two())
    ids, x = torch.full((2,), 8), np.ones((2, 3), "float32")
    for inputs in ((ids, x), [ids, x], {"x": x, "ids": ids}):
        assert told(folded(model, inputs)) == ["before line"]
    with pytest.raises(UnsupportedError, match="Give a batch as inputs"):
        fold(model)
    with pytest.raises(DataError, match="the model fails on the inputs"):
        fold(model, torch.randn(3, 4))


def test_a_graph_module() -> None:
    graph = torch.fx.symbolic_trace(shaken(networks.BasicBlock(3, 4)))
    x = torch.randn(2, 3, 6, 6)
    result = fold(graph, x, rounds=0)
    assert result.report.left == ()
    assert norms_of(result.model) == []
    torch.testing.assert_close(result.model(x), graph(x), rtol=1e-4, atol=1e-4)


def test_a_norm_alone_and_a_hidden_one() -> None:
    result = folded(shaken(nn.BatchNorm1d(3)), torch.randn(2, 3))
    assert told(result) == ["nothing in the model's graph calls it in eval mode"]
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    model[1].extra = nn.BatchNorm1d(3)
    result = folded(shaken(model), torch.randn(2, 3))
    assert result.report["1.extra"].reason == "nothing in the model's graph calls it in eval mode"


def test_sixteen_bits() -> None:
    model = shaken(nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))).bfloat16()
    with pytest.raises(DisagreementError, match="expected at most 1e-05"):
        fold(model, rounds=0)
    result = fold(model, rounds=0, tolerance=0.05)
    assert result.model[0].weight.dtype == torch.bfloat16
    half = shaken(nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))).half()
    half[1].weight.data.fill_(6e4)
    half[1].running_var.fill_(1e-4)
    report = fold(half, torch.ones(2, 8).half(), rounds=0, tolerance=1).report
    assert "the folded parameters of Linear '0' would overflow" in report["1"].reason


def test_broken_statistics_stay() -> None:
    model = shaken(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))
    model[1].running_var[0] = float("nan")
    assert fold(model, rounds=0).report["1"].reason == "not finite: moving_variance"


def test_a_model_that_knows_float32_alone() -> None:
    class Strict(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.dtype != torch.float32:
                raise TypeError("float32 alone")
            return x

    pair = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    model = shaken(nn.Sequential(pair, Strict()))
    report = fold(model, torch.randn(2, 3), rounds=0).report
    assert report.precision == "the model's own precision"
    assert "not computed in float64" in report.notes[0]
    assert report.error < 1e-5


def test_gradients_and_trainability_stay() -> None:
    model = shaken(nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 2)))
    model[0].weight.requires_grad = False
    result = folded(model).model
    assert [p.requires_grad for p in result.parameters()] == [False, False, True, True]
    assert isinstance(result[0].bias, nn.Parameter)


def test_savings_and_times() -> None:
    model = shaken(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()))
    report = fold(model, torch.randn(5, 3, 8, 8), rounds=2).report
    assert (report.parameters_before, report.parameters_after) == (108 + 16, 108 + 4)
    assert report.operations == 36 * 4
    assert report.examples == 5
    assert report.seconds_after is not None
    assert 0 < report.seconds_after < 5


def test_wrapped_models_are_refused() -> None:
    model = shaken(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    with pytest.raises(UnsupportedError, match="cannot fold a ScriptModule"):
        fold(torch.jit.script(model))
    broken = shaken(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    broken.cache = broken[0](torch.ones(1, 3))
    with pytest.raises(UnsupportedError, match="the model cannot be copied"):
        fold(broken)
