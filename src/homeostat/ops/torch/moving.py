"""Running statistics that a step on the compiled loops moves in passing."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from homeostat.ops.torch.memory import PLAIN, Memory, loops

Tensor = torch.Tensor


class Moving(NamedTuple):
    """Running statistics: old * momentum + the batch's * (1 - momentum), changed in place.

    Args:
        mean: of the channel shape.
        variance: like mean.
        updates: integer scalar, the number of batches that they followed, or None.
        momentum: weight of the old value.
        sample: whether of a batch of n elements the sample variance is taken, the population
            variance * n / (n - 1).
    """

    mean: Tensor
    variance: Tensor
    updates: Tensor | None
    momentum: float
    sample: bool

    def on_loops(self, memory: Memory) -> Any:
        """Return this as the loops take it, for a batch that lies so, or None where they cannot.

        Autograd does not see what the loops write, so it is told here, before they do: a graph that
        kept the statistics must know that they are no longer what they were.
        """
        mean, variance, updates, momentum, sample = self
        dtype = torch.float64 if memory.dtype == torch.float64 else torch.float32
        count = memory.shape[0] * memory.shape[2]
        fit = _fits(mean, dtype, memory.channels) and _fits(variance, dtype, memory.channels)
        fit = fit and (updates is None or _fits(updates, torch.int64, ()))
        if not fit or count < 2:
            return None
        addresses = []
        for statistic in (mean, variance, updates):
            if statistic is not None:
                torch.autograd.graph.increment_version(statistic)
            addresses.append(0 if statistic is None else statistic.data_ptr())
        new = 1.0 - momentum
        weights = momentum, new, new * (count / (count - 1)) if sample else new
        return loops().Moving(*addresses, weights)


def _fits(t: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> bool:
    """Return whether a tensor is nothing but values, one after the other, that may change."""
    if type(t) not in PLAIN or t.dtype != dtype or t.shape != shape:
        return False
    return t.is_cpu and t.is_contiguous() and not (t.requires_grad or t.is_inference())
