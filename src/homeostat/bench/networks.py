"""Whole PyTorch networks, as one would write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn


class Block(nn.Module):
    """A basic block (He et al. 2015): two 3x3 convolutions around a shortcut.

    Args:
        before: channels in.
        channels: channels out.
        stride: of the first convolution.
    """

    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, channels, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride > 1 or before != channels:
            convolution = nn.Conv2d(before, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(channels))

    def forward(self, x: Any) -> Any:
        """Return relu(F(x) + shortcut(x))."""
        y = torch.relu(self.first_norm(self.first(x)))
        y = self.second_norm(self.second(y))
        return torch.relu(y + self.shortcut(x))


def resnet18() -> nn.Module:
    """Return ResNet-18 (He et al. 2015), whose stem divides height and width by four."""
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    return _residual(*stem, nn.MaxPool2d(3, 2, 1))


def resnet18_for_small_images() -> nn.Module:
    """Return ResNet-18 with the stem of He et al.'s networks for CIFAR-10, at full resolution."""
    return _residual(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU())


def _residual(*stem: nn.Module) -> nn.Module:
    blocks, before = [], 64
    for channels in (64, 128, 256, 512):
        stride = 1 if channels == 64 else 2
        blocks += [Block(before, channels, stride), Block(channels, channels, 1)]
        before = channels
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def convolutions19() -> nn.Module:
    """Return the 19 convolutions of the MNIST lesson: 4 i maps, every third with stride 2."""
    layers: list[nn.Module] = []
    before = 1
    for i in range(1, 20):
        convolution = nn.Conv2d(before, 4 * i, 3, 2 if i % 3 == 0 else 1, 1, bias=False)
        layers += [convolution, nn.BatchNorm2d(4 * i), nn.ReLU()]
        before = 4 * i
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


class Network(NamedTuple):
    """A network and the images that it takes.

    Args:
        build: makes it.
        image: (channels, height, width).
    """

    build: Callable[[], nn.Module]
    image: tuple[int, int, int]


NETWORKS = {
    "ResNet-18, 64x64": Network(resnet18, (3, 64, 64)),
    "ResNet-18 for small images, 64x64": Network(resnet18_for_small_images, (3, 64, 64)),
    "19 convolutions, 28x28": Network(convolutions19, (1, 28, 28)),
}
