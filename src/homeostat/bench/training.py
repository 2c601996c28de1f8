"""Whole training steps in PyTorch, held to the same step in float64 before they are timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from homeostat.bench.networks import NETWORKS
from homeostat.bench.torch_saved import saved_bytes
from homeostat.torch import convert

# Through a deep network rounding grows, and flips a ReLU here and there.
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-3, 3e-2


def _as_it_is(model: nn.Module) -> nn.Module:
    return model


def _converted(model: nn.Module) -> nn.Module:
    return convert(model).model


CHANGES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "torch": _as_it_is,
    "homeostat.torch": _converted,
}
"""What each column does to a network before it trains it."""


class TrainingStep:
    """One network, images, labels and gradient descent.

    Every column's network starts from the same weights and sees the same images.

    Args:
        network: a name of `NETWORKS`.
        column: a name of `CHANGES`.
        layout: ``"NHWC"`` or ``"NCHW"``, how images and activations lie in memory.
        batch: images in a step.
    """

    def __init__(self, network: str, column: str, layout: str, batch: int) -> None:
        self._network, self._layout, self._batch = network, layout, batch
        self._model = self._build(CHANGES[column])
        self._images, self._labels = self._data()
        self._optimizer = torch.optim.SGD(self._model.parameters(), 0.01)

    def run(self) -> float:
        """Take one training step and return its loss."""
        self._optimizer.zero_grad()
        loss = self._loss(self._model, self._images)
        loss.backward()
        self._optimizer.step()
        return loss.item()

    def saved(self) -> int:
        """Return the bytes that a step keeps for its backward, weights apart."""
        weights = [*self._model.parameters()]
        return saved_bytes(lambda: self._loss(self._model, self._images), weights)

    def fault(self) -> str | None:
        """Return what is wrong with the first step's loss or gradients, or None."""
        exact = self._build(_as_it_is).double()
        wanted = self._gradients(exact, self._images.double())
        found = self._gradients(self._model, self._images)
        if not abs(found[0] - wanted[0]) <= LOSS_TOLERANCE * abs(wanted[0]):
            return f"loss {found[0]:.6g} instead of {wanted[0]:.6g}"
        off = torch.linalg.vector_norm(found[1] - wanted[1]) / torch.linalg.vector_norm(wanted[1])
        return None if off <= GRADIENT_TOLERANCE else f"error {float(off):.1e} in the gradients"

    def _build(self, change: Callable[[nn.Module], nn.Module]) -> nn.Module:
        torch.manual_seed(0)
        model = NETWORKS[self._network].build()
        return change(model.to(memory_format=self._format))

    @property
    def _format(self) -> Any:
        return torch.channels_last if self._layout == "NHWC" else torch.contiguous_format

    def _data(self) -> tuple[torch.Tensor, torch.Tensor]:
        draw = torch.Generator().manual_seed(1)
        shape = (self._batch, *NETWORKS[self._network].image)
        images = torch.randn(shape, generator=draw).to(memory_format=self._format)
        return images, torch.randint(0, 10, (self._batch,), generator=draw)

    def _loss(self, model: nn.Module, images: torch.Tensor) -> Any:
        return nn.functional.cross_entropy(model(images), self._labels)

    def _gradients(self, model: nn.Module, images: torch.Tensor) -> tuple[float, torch.Tensor]:
        loss = self._loss(model, images)
        gradients = torch.autograd.grad(loss, [*model.parameters()])
        return loss.item(), torch.cat([gradient.double().flatten() for gradient in gradients])
