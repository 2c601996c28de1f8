"""ResNet-50 as one would write it in PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Bottleneck(nn.Module):
    """A bottleneck block (He et al. 2015), with the stride in the 3x3 convolution.

    Args:
        before: channels in.
        channels: of the 3x3 convolution; four times as many come out.
        stride: of the 3x3 convolution.
    """

    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        after = 4 * channels
        self.reduce = nn.Conv2d(before, channels, 1, bias=False)
        self.reduce_norm = nn.BatchNorm2d(channels)
        self.convolve = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.convolve_norm = nn.BatchNorm2d(channels)
        self.expand = nn.Conv2d(channels, after, 1, bias=False)
        self.expand_norm = nn.BatchNorm2d(after)
        self.shortcut = nn.Sequential()
        if stride > 1 or before != after:
            convolution = nn.Conv2d(before, after, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(after))

    def forward(self, x: Any) -> Any:
        """Return relu(F(x) + shortcut(x))."""
        y = torch.relu(self.reduce_norm(self.reduce(x)))
        y = torch.relu(self.convolve_norm(self.convolve(y)))
        return torch.relu(self.expand_norm(self.expand(y)) + self.shortcut(x))


def resnet50(classes: int = 1000, blocks: tuple[int, ...] = (3, 4, 6, 3)) -> nn.Module:
    """Return ResNet-50 (He et al. 2015), or with other numbers of blocks a smaller one."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)]
    layers += [nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    before = 64
    for stage, number in enumerate(blocks):
        channels = 64 * 2**stage
        for block in range(number):
            layers.append(Bottleneck(before, channels, 2 if stage and not block else 1))
            before = 4 * channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))
