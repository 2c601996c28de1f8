"""Sums over the replicas of torch.distributed, for synchronized statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import distributed

Tensor = torch.Tensor


def replica_sum(group: Any) -> Callable[[Tensor], Tensor] | None:
    """Return what sums a tensor over the replicas, or None where there is but one.

    Args:
        group: a process group, or None for all processes.
    """
    if not distributed.is_available() or not distributed.is_initialized():
        return None
    if distributed.get_world_size(group) < 2:
        return None

    def summed(tensor: Tensor) -> Tensor:
        total = tensor.clone()
        distributed.all_reduce(total, group=group)
        return total

    return summed
