"""Our operations as thin PyTorch modules: batch norm that takes a residual and an activation."""

from __future__ import annotations

from typing import Any

import torch

from homeostat.moments import Moments
from homeostat.ops.torch import normalize, normalize_batch


class BatchNorm2d(torch.nn.Module):
    """Batch norm over axis 1, `torch.nn.BatchNorm2d`'s arguments, buffers and conventions.

    Args:
        num_features: channels.
        eps: added to the variance.
        momentum: weight of the new value.
        activation: None or ``"relu"``.
    """

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, activation: Any = None
    ) -> None:
        super().__init__()
        self.eps, self.momentum, self.activation = eps, momentum, activation
        self.weight = torch.nn.Parameter(torch.ones(num_features))
        self.bias = torch.nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: Any, residual: Any = None) -> Any:
        """Return activation(batch_norm(x) + residual)."""
        options = {
            "axis": 1, "epsilon": self.eps, "activation": self.activation, "residual": residual,
        }  # fmt: skip
        if not self.training:
            return normalize(
                x, self.running_mean, self.running_var, self.weight, self.bias, **options
            )
        y, batch = normalize_batch(x, self.weight, self.bias, **options)
        self._follow(batch)
        return y

    @torch.no_grad()
    def _follow(self, batch: Moments) -> None:
        sample = batch.variance * (batch.count / max(1, batch.count - 1))
        self.running_mean.lerp_(batch.mean, self.momentum)
        self.running_var.lerp_(sample, self.momentum)


BatchNorm1d = BatchNorm3d = BatchNorm2d
