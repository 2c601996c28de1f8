"""`SyncBatchNorm`: the module for inputs of any rank whose statistics are those of all replicas."""

from __future__ import annotations

from typing import Any

import torch

from homeostat.torch.modules import Complete
from homeostat.torch.state import TORCH

Tensor = torch.Tensor


class SyncBatchNorm(Complete):
    """Complete batch norm over (N, C, ...), synchronized; see `BatchNorm2d`.

    It takes the arguments of `torch.nn.SyncBatchNorm`, and those of `BatchNorm2d` by name. Without
    `torch.distributed` it is an ordinary batch norm, on CPU as well.

    Example:
        >>> SyncBatchNorm(4)(torch.randn(8, 4, 3)).shape
        torch.Size([8, 4, 3])
    """

    def __init__(
        self,
        num_features: int,
        eps: float = TORCH.epsilon,
        momentum: float | None = TORCH.momentum,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        options = {"synchronized": True, "process_group": process_group, **options}
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, **options
        )

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002
        if input.dim() < 2:
            raise ValueError(
                f"a batch norm got an input with {input.dim()} dimensions: expected (N, C, ...). "
                "Add the batch dimension with unsqueeze(0)."
            )
