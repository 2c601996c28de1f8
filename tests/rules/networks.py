"""Small networks of real frameworks, trained on the digits that scikit-learn ships."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

BATCH = 64


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return 1,797 images (examples, 1, 8, 8) between 0 and 1, shuffled, and their classes."""
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    images = (found.images[order] / 16).astype(np.float32)[:, None]
    return images, found.target[order]


def batches(size: int = BATCH, scale: float = 1.0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    images, classes = digits()
    for start in range(0, 1600, size):
        part = slice(start, min(start + size, 1600))
        yield torch.from_numpy(images[part] * np.float32(scale)), torch.from_numpy(classes[part])


def convolutional(momentum: float = 0.1, dropout: float = 0.0, **options: Any) -> nn.Sequential:
    """Return a network of two convolutions; momentum is PyTorch's, the weight of the new value."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16, momentum=momentum, **options),
        nn.ReLU(),
        *([nn.Dropout(dropout)] if dropout else []),
        nn.Conv2d(16, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32, momentum=momentum, **options),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def train(network: nn.Module, epochs: int = 8, *, updates: bool = True) -> nn.Module:
    """Train a network; without updates the moving statistics stay as they are."""
    # Threads that wait for each other on busy cores take longer than one that works.
    torch.set_num_threads(1)
    torch.manual_seed(1)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    network.train()
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - epoch / epochs)
        for images, classes in batches():
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images), classes).backward()
            optimizer.step()
    if not updates:
        for norm, buffers in zip(norms, before, strict=True):
            for name, buffer in buffers.items():
                getattr(norm, name).copy_(buffer)
    return network.eval()
