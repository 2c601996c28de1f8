"""Small networks of the kinds that people convert, and what torch.fx follows badly."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint


class BasicBlock(nn.Module):
    """A residual block as torchvision writes it: one ReLU used twice, += and a shortcut."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample = None
        if channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1), nn.BatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.layer1 = nn.Sequential(BasicBlock(6, 6), BasicBlock(6, 8))
        self.fc = nn.Linear(8, 5)

    def _forward_impl(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer1(F.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._forward_impl(x)

    def describe(self) -> str:
        return "a small ResNet"


class ConvNormActivation(nn.Sequential):
    def __init__(self, channels: int, out: int, groups: int = 1) -> None:
        super().__init__(
            nn.Conv2d(channels, out, 3, padding=1, groups=groups, bias=False),
            nn.BatchNorm2d(out, momentum=0.01, eps=1e-3),
            nn.ReLU6(inplace=True),
        )


class InvertedResidual(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.use_shortcut = channels == out
        self.conv = nn.Sequential(
            ConvNormActivation(channels, channels * 2),
            ConvNormActivation(channels * 2, channels * 2, groups=channels * 2),
            nn.Conv2d(channels * 2, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.use_shortcut:
            return x + self.conv(x)
        return self.conv(x)


class MobileNet(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            ConvNormActivation(3, 4),
            InvertedResidual(4, 4),
            InvertedResidual(4, 6),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 5),
        )


class DenseLayer(nn.Module):
    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(channels, 8, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(8, growth, 3, padding=1, bias=False)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        x = torch.cat(features, 1)
        x = self.conv1(self.relu1(self.norm1(x)))
        return self.conv2(self.relu2(self.norm2(x)))


class DenseBlock(nn.ModuleDict):
    def __init__(self) -> None:
        super().__init__({f"layer{i}": DenseLayer(4 + 3 * i, 3) for i in range(3)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = [x]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True), DenseBlock()
        )
        self.norm5 = nn.BatchNorm2d(13)
        self.classifier = nn.Linear(13, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm5(self.features(x)), inplace=True)
        return self.classifier(F.adaptive_avg_pool2d(x, (1, 1)).flatten(1))


class BasicConv(nn.Module):
    def __init__(self, channels: int, out: int, size: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, size, padding=size // 2, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(self.bn(self.conv(x)), 0.1, inplace=True)


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = BasicConv(3, 6, 3)
        self.branch1 = BasicConv(6, 4)
        self.branch3 = nn.Sequential(BasicConv(6, 4), BasicConv(4, 4, 3))
        self.pool = BasicConv(6, 2)
        self.fc = nn.Linear(10, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        pooled = F.max_pool2d(x, 3, stride=1, padding=1)
        x = torch.cat([self.branch1(x), self.branch3(x), self.pool(pooled)], 1)
        return self.fc(x.mean((2, 3)))


class Around(nn.Module):
    """One norm, and a forward that calls it; the subclasses are the cases."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.bn2 = nn.BatchNorm2d(4)
        self.other = nn.Conv2d(4, 4, 1)
        self.act = nn.ReLU()
        self.drop = nn.Identity()

    def forward(self, x: torch.Tensor) -> Any:
        raise NotImplementedError


def around(call: Any) -> type[Around]:
    """Return a class whose forward is a function of the module and its input."""
    return type(call.__name__, (Around,), {"forward": call, "__module__": __name__})


# Each has what should have moved into `bn`: (activation, residual).
RELU = ("relu", False)
BOTH = ("relu", True)
ADD = (None, True)
NOTHING = (None, False)
CASES: dict[str, tuple[Any, tuple[Any, bool]]] = {
    "module": (lambda self, x: self.act(self.bn(x)), RELU),
    "functional": (lambda self, x: F.relu(self.bn(x)), RELU),
    "functional in place": (lambda self, x: F.relu(self.bn(x), inplace=True), RELU),
    "functional relu_": (lambda self, x: F.relu_(self.bn(x)), RELU),
    "torch.relu": (lambda self, x: torch.relu(self.bn(x)), RELU),
    "torch.relu_": (lambda self, x: torch.relu_(self.bn(x)), RELU),
    "method": (lambda self, x: self.bn(x).relu(), RELU),
    "method in place": (lambda self, x: self.bn(x).relu_(), RELU),
    "plus": (lambda self, x: self.bn(self.conv(x)) + x, ADD),
    "plus from the left": (lambda self, x: x + self.bn(self.conv(x)), ADD),
    "torch.add": (lambda self, x: torch.add(self.bn(self.conv(x)), x), ADD),
    "torch.add by name": (lambda self, x: torch.add(input=self.bn(self.conv(x)), other=x), ADD),
    "alpha one": (lambda self, x: torch.add(self.bn(self.conv(x)), x, alpha=1), ADD),
    "add": (lambda self, x: self.bn(self.conv(x)).add(x), ADD),
    "add_": (lambda self, x: self.bn(self.conv(x)).add_(x), ADD),
    "both": (lambda self, x: F.relu(self.bn(self.conv(x)) + x), BOTH),
    "later residual": (lambda self, x: F.relu(self.bn(self.conv(x)) + self.other(x)), BOTH),
    "two norms": (lambda self, x: F.relu(self.bn(self.conv(x)) + self.bn2(x)), BOTH),
    "relu, then plus": (lambda self, x: F.relu(self.bn(self.conv(x))) + x, RELU),
    "nothing between": (lambda self, x: self.act(self.drop(self.drop(self.bn(x)))), RELU),
    "nothing on both sides": (
        lambda self, x: F.relu(self.drop(x) + self.drop(self.bn(self.conv(x)))),
        BOTH,
    ),
    "two additions": (lambda self, x: self.bn(self.conv(x)) + x + x, ADD),
    "broadcast": (lambda self, x: F.relu(self.bn(x) + x.mean((2, 3), keepdim=True)), BOTH),
    "broadcast norm": (
        lambda self, x: F.relu(self.bn(x) + x.unsqueeze(0).repeat(2, 1, 1, 1, 1)),
        BOTH,
    ),
    "double residual": (lambda self, x: F.relu(self.bn(x) + x.double()), BOTH),
    "double in place": (lambda self, x: F.relu(self.bn(x).add_(x.double())), BOTH),
    "alpha two": (lambda self, x: torch.add(self.bn(self.conv(x)), x, alpha=2), NOTHING),
    "number": (lambda self, x: F.relu(self.bn(x) + 1.0), NOTHING),
    "itself": (lambda self, x: F.relu(self._twice(self.bn(x))), NOTHING),
    "two users": (lambda self, x: self._two(self.bn(x)), NOTHING),
    "into the other": (lambda self, x: self.conv(x).add_(self.bn(x)), NOTHING),
    "relu6": (lambda self, x: F.relu6(self.bn(x)), NOTHING),
    "hardswish": (lambda self, x: F.hardswish(self.bn(x)), NOTHING),
    "steep": (lambda self, x: F.leaky_relu(self.bn(x), 1.5), NOTHING),
    "shared": (lambda self, x: F.relu(self.bn(F.relu(self.bn(x)))), NOTHING),
    "into itself": (lambda self, x: self._into(self.bn(self.conv(x)), x), BOTH),
    "into the input": (lambda self, x: self._into(x * 1, self.bn(self.conv(x))), NOTHING),
    "an alias of what changes": (lambda self, x: self._alias(self.bn(self.conv(x)), x), RELU),
    "dropout": (lambda self, x: F.relu(self.bn(F.dropout(x, 0.0, self.training))), NOTHING),
    "training": (lambda self, x: self._training(x), NOTHING),
    "shape": (lambda self, x: F.relu(self.bn(x)) if x.shape[0] > 1 else x, NOTHING),
    "none": (lambda self, x: self._none(x), NOTHING),
    "kind": (lambda self, x: F.relu(self.bn(x)) if isinstance(x, torch.Tensor) else x, NOTHING),
    "random": (lambda self, x: F.relu(self.bn(x)) if random.random() < 2 else x, NOTHING),
    "no_grad": (lambda self, x: self._no_grad(x), NOTHING),
    "counts": (lambda self, x: self._counts(x), NOTHING),
    "checkpoint": (
        lambda self, x: checkpoint(F.relu, self.bn(x), use_reentrant=False),
        NOTHING,
    ),
    "buffer": (lambda self, x: F.relu(self.bn(x)) + self.bn2.running_mean.sum(), RELU),
    "parameter": (lambda self, x: F.relu(self.bn(x * self.conv.bias.view(1, -1, 1, 1))), RELU),
    "two outputs": (lambda self, x: {"y": F.relu(self.bn(x)), "z": x.max(1)[0]}, RELU),
    "item assignment": (lambda self, x: self._assigned(x), NOTHING),
    "new tensor": (lambda self, x: F.relu(self.bn(x)) * torch.ones(()), NOTHING),
    "number of a parameter": (
        lambda self, x: F.relu(self.bn(x)) * float(self.bn.weight.detach().sum()),
        NOTHING,
    ),
}


def _twice(self: Any, y: torch.Tensor) -> torch.Tensor:
    return y + y


def _two(self: Any, y: torch.Tensor) -> torch.Tensor:
    return F.relu(y) + torch.tanh(y)


def _into(self: Any, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    y += z
    return F.relu(y)


def _alias(self: Any, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    y = torch.relu(y)
    total = self.conv(x)
    before = total
    total += y
    return before * 2


def _assigned(self: Any, x: torch.Tensor) -> torch.Tensor:
    x = x.clone()
    x[:, 0] = 0
    return F.relu(self.bn(x))


def _training(self: Any, x: torch.Tensor) -> torch.Tensor:
    y = self.bn(x)
    return F.relu(y) if self.training else y


def _none(self: Any, x: torch.Tensor) -> torch.Tensor:
    if x is not None:
        return F.relu(self.bn(x))
    return torch.zeros(())


def _no_grad(self: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad() if x is x else contextlib.nullcontext():
        y = F.relu(self.bn(x))
    return self.conv(y)


def _counts(self: Any, x: torch.Tensor) -> torch.Tensor:
    self.count = getattr(self, "count", 0) + 1
    return F.relu(self.bn(x))


for _helper in (_twice, _two, _into, _alias, _assigned, _training, _none, _no_grad, _counts):
    setattr(Around, _helper.__name__, _helper)
