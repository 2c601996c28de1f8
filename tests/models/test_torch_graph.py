from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812
from torch.utils.checkpoint import checkpoint  # noqa: E402

import homeostat.torch as ours  # noqa: E402
from homeostat.models.graph import KINDS  # noqa: E402
from homeostat.models.torch import TorchModel  # noqa: E402
from homeostat.models.torch.graph import read_graph  # noqa: E402
from tests.torch.networks import DenseNet, Inception, MobileNet, ResNet  # noqa: E402


def kinds(graph: Any) -> list[str]:
    return [operation.kind for operation in graph.operations]


def calls_of(model: nn.Module, x: torch.Tensor) -> list[str]:
    """Return the modules that do something, as a forward calls them."""
    called: list[str] = []
    handles = [
        part.register_forward_pre_hook(lambda *_, name=name: called.append(name))
        for name, part in model.named_modules()
        if not list(part.children())
    ]
    model.eval()(x)
    for handle in handles:
        handle.remove()
    return called


@pytest.mark.parametrize("network", [ResNet, MobileNet, DenseNet, Inception])
def test_the_graph_has_every_call_in_order(network: Any) -> None:
    model = network()
    graph = read_graph(model)
    modules = dict(model.named_modules())
    layers = [operation.layer for operation in graph.operations if operation.layer in modules]
    assert layers == calls_of(model, torch.randn(2, 3, 16, 16))
    assert "other" not in kinds(graph)
    parameters = {
        operation.layer: operation.parameters
        for operation in graph.operations
        if operation.layer in modules
    }
    assert sum(parameters.values()) == sum(p.numel() for p in model.parameters())


def test_a_residual_network() -> None:
    graph = read_graph(ResNet())
    first = graph.operations[0]
    assert (first.name, first.kind) == ("x", "input")
    assert graph.outputs == ("fc",)
    assert graph["layer1.0.iadd"].inputs == ("layer1.0.bn2", "relu")
    assert graph["layer1.1.iadd"].inputs == ("layer1.1.bn2", "layer1.1.downsample.1")
    # One ReLU module that is called twice is two operations of one layer.
    twice = [o.name for o in graph.operations if o.layer == "layer1.0.relu"]
    assert twice == ["layer1.0.relu", "layer1.0.relu#2"]
    assert {o.name for o in graph.consumers("relu")} == {"layer1.0.conv1", "layer1.0.iadd"}
    assert graph.producer("layer1.0.bn1") == graph["layer1.0.conv1"]
    conv, shortcut = graph["layer1.0.conv1"], graph["layer1.1.downsample.0"]
    assert (conv.bias, conv.padded, conv.type) == (False, True, "Conv2d")
    assert (shortcut.bias, shortcut.padded, shortcut.parameters) == (True, False, 56)


def test_the_end_of_a_graph_in_lists() -> None:
    graph = read_graph(DenseNet())
    last = [operation for operation in graph.operations if operation.kind == "concatenate"][-1]
    assert len(last.inputs) == 4


@pytest.mark.parametrize(
    "name",
    ["ResNet", "RegNet", "EfficientNet", "Levit"],
)
def test_networks_of_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    if name == "Levit":
        config = transformers.LevitConfig(image_size=32, hidden_sizes=[16, 16, 16],
            num_attention_heads=[2, 2, 2], depths=[1, 1, 1], key_dim=[4, 4, 4])  # fmt: skip
        model: Any = transformers.LevitForImageClassification(config)
    elif name == "EfficientNet":
        config = transformers.EfficientNetConfig(
            width_coefficient=0.1, depth_coefficient=0.1, hidden_dim=128
        )
        model = transformers.EfficientNetForImageClassification(config)
    else:
        small = {
            "ResNet": {"hidden_sizes": [16, 32], "depths": [1, 2], "embedding_size": 8},
            "RegNet": {"hidden_sizes": [16, 32], "depths": [1, 1], "groups_width": 8},
        }[name]
        config = getattr(transformers, f"{name}Config")(**small)
        model = getattr(transformers, f"{name}ForImageClassification")(config)
    adapter = TorchModel(model.eval())
    record = adapter.record()
    assert record.graph is not None, record.why_no_graph
    norms = [o for o in record.graph.operations if o.kind == "batch_norm"]
    size = 32 if name == "Levit" else 64
    found = adapter.observe(torch.randn(2, 3, size, size))
    assert [norm.layer for norm in norms] == [norm.name for norm in record.norms] == list(found)
    assert len(record.graph.outputs) >= 1


class Words(nn.Module):
    """Functions and methods of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4, 3))
        self.scale = nn.Parameter(torch.ones(4, 1))
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Any, *, y: Any, factor: Any = None) -> Any:
        assert x.shape[1] == 4
        if factor is not None:
            x = x * factor
        x = F.conv1d(x, self.weight, padding=1)
        x = F.dropout(x, 0.25, self.training) * self.scale
        x = torch.cat([x, y], 2).contiguous()
        z = F.avg_pool1d(x, 2)
        z = F.layer_norm(z, (z.size(-1),))
        z = self.norm(F.pad(z, (0, 6 - z.shape[2]))) + self.scale
        return {"a": [z.view(z.shape[0], -1).sigmoid()], "b": x.unsqueeze(1), "c": 3}


def test_functions_and_methods() -> None:
    graph = read_graph(Words())
    told = [(o.type or o.name, o.kind) for o in graph.operations]
    assert told == [
        ("x", "input"),
        ("y", "input"),
        ("conv1d", "conv"),
        ("dropout", "dropout"),
        ("mul", "other"),
        ("cat", "concatenate"),
        ("contiguous", "identity"),
        ("avg_pool1d", "pool"),
        ("layer_norm", "other_norm"),
        ("pad", "pad"),
        ("LayerNorm", "other_norm"),
        ("add", "other"),
        ("view", "reshape"),
        ("sigmoid", "activation"),
        ("unsqueeze", "reshape"),
    ]
    assert graph["dropout"].rate == 0.25
    assert (graph["conv1d"].padded, graph["conv1d"].bias) == (True, False)
    assert graph["view"].inputs == ("add",)
    assert graph.outputs == ("sigmoid", "unsqueeze")
    assert set(kinds(graph)) <= set(KINDS)


MODULES: list[tuple[Any, str, Any]] = [
    (lambda: nn.Conv2d(4, 8, 3, groups=4), "depthwise_conv", (True, False)),
    (lambda: nn.Conv2d(4, 8, 3, groups=2, padding="same"), "conv", (True, True)),
    (lambda: nn.Conv2d(4, 8, 1, padding="same", bias=False), "conv", (False, False)),
    (lambda: nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect"), "conv", (True, False)),
    (lambda: nn.ConvTranspose1d(4, 8, 3), "conv_transpose", (True, None)),
    (lambda: nn.Linear(4, 4, bias=False), "dense", (False, None)),
    (lambda: nn.GELU(), "activation", (None, None)),
    (lambda: nn.MaxPool2d(2), "pool", (None, None)),
    (lambda: nn.ZeroPad2d(1), "pad", (None, None)),
    (lambda: nn.Dropout2d(0.5), "dropout", (None, None)),
    (lambda: nn.Flatten(), "reshape", (None, None)),
    (lambda: nn.Identity(), "identity", (None, None)),
    (lambda: nn.GroupNorm(2, 4), "other_norm", (None, None)),
    (lambda: nn.InstanceNorm2d(4), "other_norm", (None, None)),
    (lambda: nn.GRU(4, 4), "recurrent", (None, None)),
    (lambda: nn.Upsample(scale_factor=2), "other", (None, None)),
    (lambda: nn.SyncBatchNorm(4), "batch_norm", (None, None)),
    (lambda: ours.BatchNorm2d(4), "batch_norm", (None, None)),
    (lambda: ours.FrozenBatchNorm(4), "batch_norm", (None, None)),
]


@pytest.mark.parametrize(("make", "kind", "facts"), MODULES)
def test_modules(make: Any, kind: str, facts: Any) -> None:
    module = make()
    for graph in (read_graph(nn.Sequential(module)), read_graph(module)):
        operation = graph.operations[1]
        assert (operation.kind, operation.type) == (kind, type(module).__name__)
        assert (operation.bias, operation.padded) == facts
        assert operation.parameters == sum(p.numel() for p in module.parameters())
    assert graph.operations[1].layer == ""
    assert read_graph(nn.Sequential(nn.Sequential(module))).operations[1].layer == "0.0"


def test_dropout_has_its_rate() -> None:
    assert read_graph(nn.Sequential(nn.Dropout(0.3)))["0"].rate == 0.3


def test_fused_norms_have_their_residual() -> None:
    model = ours.convert(ResNet()).model
    graph = read_graph(model)
    assert graph["layer1.0.bn2"].inputs == ("layer1.0.conv2", "bn1")
    norm = {norm.name: norm for norm in TorchModel(model).record().norms}["layer1.0.bn2"]
    assert norm.activation == "relu"


class Around(nn.Module):
    def __init__(self, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(4)
        self.inner = inner


class Branches(Around):
    def forward(self, x: Any) -> Any:
        return self.bn(x) if x.sum() > 0 else x


class Asks(Around):
    def forward(self, x: Any) -> Any:
        return self.bn(x) if isinstance(x, torch.Tensor) else x


class Loops(nn.Module):
    """No batch norm inside: one operation is enough."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Any) -> Any:
        for _ in range(int(x.sum())):
            x = self.linear(x)
        return x


class Inner(Around):
    def forward(self, x: Any) -> Any:
        return self.inner(self.bn(x))  # type: ignore[misc]


class Checkpointed(Around):
    def forward(self, x: Any) -> Any:
        return checkpoint(self.bn, x, use_reentrant=False)


class Inverted(Around):
    """A check whose answer is kept is a branch like any other."""

    def forward(self, x: Any) -> Any:
        wrong = not x.sum() > 0
        if wrong:
            raise ValueError(x)
        return self.bn(x)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (Branches(), "no graph of Branches: torch.fx cannot trace it: symbolically traced"),
        (nn.Sequential(nn.Identity(), Branches()), "no graph of Branches '1': torch.fx"),
        (Inner(Branches()), "no graph of Branches 'inner': torch.fx"),
        (Asks(), "Asks.forward in the model's code asks what kind of thing x is"),
        (Checkpointed(), "its forward uses torch.utils.checkpoint"),
        (Inverted(), "no graph of Inverted: torch.fx cannot trace it: symbolically traced"),
    ],
)
def test_why_there_is_no_graph(model: nn.Module, why: str) -> None:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    record = TorchModel(model).record()
    assert record.graph is None
    assert why in record.why_no_graph
    assert record.norms
    assert all(norm.operations == () for norm in record.norms)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(part.training for part in model.modules())


def test_what_cannot_be_followed_and_holds_no_norm_is_one_operation() -> None:
    graph = read_graph(Inner(Loops()))
    operation = graph["inner"]
    assert (operation.kind, operation.type, operation.parameters) == ("other", "Loops", 20)
    assert graph.outputs == ("inner",)


class Checks(Around):
    def forward(self, x: Any) -> Any:
        if x.dim() != 2 or x.shape[1] != 4:
            raise ValueError(f"expected 4 columns, got {x.shape}")
        assert x.shape[0] > 1, "too few"
        return self.bn(x)


def test_checks_of_the_input_are_passed() -> None:
    assert kinds(read_graph(Checks())) == ["input", "batch_norm"]


def test_inference_is_followed_not_training() -> None:
    class Both(Around):
        def forward(self, x: Any) -> Any:
            x = self.bn(x)
            return F.dropout(x) if self.training else torch.relu(x)

    model = Both().train()
    assert kinds(read_graph(model)) == ["input", "batch_norm", "activation"]
    assert model.training
