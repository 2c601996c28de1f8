"""PyTorch networks whose norms have statistics of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Block(nn.Module):
    """Two convolutions with norms and a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.bn2 = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.25, affine=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn1(self.conv1(x)).relu()
        return (self.bn2(self.conv2(y)) + x).relu()


class Network(nn.Module):
    """A stem, eleven blocks so that the names' numbers have two digits, and a head."""

    def __init__(self, blocks: int = 11, channels: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3)
        self.norm = nn.BatchNorm2d(channels)
        self.layers = nn.Sequential(*(Block(channels) for _ in range(blocks)))
        self.up = nn.ConvTranspose2d(channels, channels, 2)
        self.head = nn.Linear(channels, 5)
        self.last = nn.BatchNorm1d(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.up(self.layers(self.norm(self.stem(x))))
        return self.last(self.head(nn.functional.dropout(y.mean((2, 3)), 0.25, self.training)))


def trained(network: Any, steps: int = 3) -> Any:
    """A network whose every parameter and statistic is something else than at its start."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.uniform_(0.5, 1.5, generator=generator)
        network.train()
        for _ in range(steps):
            network(torch.randn(8, 3, 8, 8, generator=generator))
    return network.eval()


def norms_of(network: nn.Module) -> dict[str, Any]:
    kinds = (nn.modules.batchnorm._NormBase,)
    return {name: part for name, part in network.named_modules() if isinstance(part, kinds)}
