"""Run a model without a trace: everything it was is put back, whatever happened."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from homeostat.models.torch.norms import is_batch_norm
from homeostat.torch.snapshot import Snapshot

Tensor = torch.Tensor


class Kept:
    """What a module was: classes, attributes, modes, hooks, and the values of chosen tensors.

    Args:
        module: the whole model.
        tensors: those whose values are kept; None for those of every batch norm.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> kept = Kept(norm)
        >>> _ = norm(torch.randn(4, 2))
        >>> kept.restore()
        >>> norm.running_mean
        tensor([0., 0.])
    """

    def __init__(self, module: nn.Module, tensors: list[Tensor] | None = None) -> None:
        self._snapshot = Snapshot(module)
        self._hooks = [
            (value, value.copy())
            for part in module.modules()
            for name, value in vars(part).items()
            if "_hooks" in name and isinstance(value, dict)
        ]
        chosen = _tensors_of_norms(module) if tensors is None else tensors
        self._values = [(tensor, tensor.detach().clone()) for tensor in chosen]

    def restore(self) -> None:
        """Put everything back."""
        self._snapshot.restore()
        for now, then in self._hooks:
            now.clear()
            now.update(then)
        with torch.no_grad():
            for tensor, value in self._values:
                # To autograd, which may keep the tensor, a copy is a change; the kernels of batch
                # norm change it without a sign.
                if not torch.equal(tensor, value):
                    tensor.copy_(value)


def _tensors_of_norms(module: nn.Module) -> list[Tensor]:
    return [
        tensor
        for part in module.modules()
        if is_batch_norm(part)
        for tensor in (*part._parameters.values(), *part._buffers.values())
        if tensor is not None and not nn.parameter.is_lazy(tensor) and not tensor.is_meta
    ]


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put a model into inference mode without gradients, and everything back at the end.

    Classes, attributes, modes and hooks of every submodule, statistics and counts of every batch
    norm, and the random numbers of PyTorch, NumPy and Python are as they were, also after an error.

    Args:
        model: any module.
    """
    kept = Kept(model)
    numbers, more = random.getstate(), np.random.get_state()
    try:
        with _same_random_tensors(model), _eagerly(), torch.no_grad():
            for part in model.modules():
                # Not by `eval()`, which some classes override.
                part.__dict__["training"] = False
            yield
    finally:
        kept.restore()
        random.setstate(numbers)
        np.random.set_state(more)
        # Some versions keep the copies of weights that autocast made here, without gradients.
        torch.clear_autocast_cache()


def devices_of(model: nn.Module) -> list[torch.device]:
    """Return the devices that a model lives on, the one of its first tensor first."""
    tensors = (*model.parameters(), *model.buffers())
    return list(dict.fromkeys(tensor.device for tensor in tensors))


@contextlib.contextmanager
def _same_random_tensors(model: nn.Module) -> Iterator[None]:
    kinds = {device.type for device in devices_of(model)} & {"cuda", "xpu"}
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for kind in kinds:
            found = [device for device in devices_of(model) if device.type == kind]
            stack.enter_context(torch.random.fork_rng(devices=found, device_type=kind))
        yield


def _eagerly() -> Any:
    # Compiled code does not see hooks that come later.
    compiler = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if compiler else contextlib.nullcontext()
