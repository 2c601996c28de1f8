"""Whole PyTorch networks, the batch norm a parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

Norm = Callable[[int, str | None], nn.Module]
"""(channels, activation) -> a module called as module(x) or module(x, residual)."""


class Native(nn.Module):
    """PyTorch's batch norm, with the addition and the ReLU behind it as one would write them.

    Args:
        channels: how many.
        activation: None or ``"relu"``.
    """

    def __init__(self, channels: int, activation: str | None) -> None:
        super().__init__()
        self.norm, self.relu = nn.BatchNorm2d(channels), activation == "relu"

    def forward(self, x: Any, residual: Any = None) -> Any:
        """Return relu(batch_norm(x) + residual)."""
        y = self.norm(x)
        y = y if residual is None else y + residual
        return torch.relu(y) if self.relu else y


class Block(nn.Module):
    """A basic block (He et al. 2015): two 3x3 convolutions around a shortcut.

    Args:
        norm: what normalizes.
        before: channels in.
        channels: channels out.
        stride: of the first convolution.
    """

    def __init__(self, norm: Norm, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, channels, 3, stride, 1, bias=False)
        self.first_norm = norm(channels, "relu")
        self.second = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.second_norm = norm(channels, "relu")
        self.shortcut = nn.Sequential()
        if stride > 1 or before != channels:
            convolution = nn.Conv2d(before, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, norm(channels, None))

    def forward(self, x: Any) -> Any:
        """Return relu(F(x) + shortcut(x))."""
        y = self.first_norm(self.first(x))
        return self.second_norm(self.second(y), self.shortcut(x))


def resnet18(norm: Norm) -> nn.Module:
    """Return ResNet-18 (He et al. 2015)."""
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), norm(64, "relu"), nn.MaxPool2d(3, 2, 1)]
    blocks, before = [], 64
    for channels in (64, 128, 256, 512):
        stride = 1 if channels == 64 else 2
        blocks += [Block(norm, before, channels, stride), Block(norm, channels, channels, 1)]
        before = channels
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def convolutions19(norm: Norm) -> nn.Module:
    """Return the 19 convolutions of the MNIST lesson: 4 i maps, every third with stride 2."""
    layers: list[nn.Module] = []
    before = 1
    for i in range(1, 20):
        convolution = nn.Conv2d(before, 4 * i, 3, 2 if i % 3 == 0 else 1, 1, bias=False)
        layers += [convolution, norm(4 * i, "relu")]
        before = 4 * i
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


class Network(NamedTuple):
    """A network and the images that it takes.

    Args:
        build: makes it with a norm.
        image: (channels, height, width).
    """

    build: Callable[[Norm], nn.Module]
    image: tuple[int, int, int]


NETWORKS = {
    "ResNet-18, 64x64": Network(resnet18, (3, 64, 64)),
    "19 convolutions, 28x28": Network(convolutions19, (1, 28, 28)),
}
