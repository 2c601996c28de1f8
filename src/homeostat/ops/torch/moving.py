"""Running statistics that a step on kernels of our own moves in passing."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from homeostat.ops.torch.memory import PLAIN, Memory, loops

Tensor = torch.Tensor
_CPU = torch.device("cpu")


class Moving(NamedTuple):
    """Running statistics: old * momentum + the batch's * (1 - momentum), changed in place.

    Args:
        mean: of the channel shape.
        variance: like mean.
        updates: integer scalar, the number of batches that they followed, or None.
        momentum: weight of the old value.
        sample: whether of a batch of n elements the sample variance is taken, the population
            variance * n / (n - 1).
        skipped: of the channel shape, integers that count what the channels' batches that are not
            finite cost, or None.
    """

    mean: Tensor
    variance: Tensor
    updates: Tensor | None
    momentum: float
    sample: bool
    skipped: Tensor | None = None

    def on_loops(self, memory: Memory) -> Any:
        """Return this as the loops take it, for a batch that lies so, or None where they cannot.

        Autograd does not see what the loops write, so it is told here, before they do: a graph that
        kept the statistics must know that they are no longer what they were.
        """
        mean, variance, updates, momentum, sample, _ = self
        count = memory.shape[0] * memory.shape[2]
        if count < 2 or not self._fits(memory, _CPU):
            return None
        _tell_of_change(mean, variance, updates)
        counter = 0 if updates is None else updates.data_ptr()
        new = 1.0 - momentum
        weights = momentum, new, new * (count / (count - 1)) if sample else new
        return loops().Moving(mean.data_ptr(), variance.data_ptr(), counter, weights)

    def on_gpu(self, memory: Memory, x: Tensor) -> Any:
        """Return this as the kernels for GPUs take it, for a batch x, or None where they cannot.

        They guard and count themselves what they move, and move nothing while something traces.
        """
        if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
            return None
        mean, variance, updates, momentum, sample, skipped = self
        if updates is None or skipped is None or not self._fits(memory, x.device):
            return None
        if not _is_plain(skipped, torch.int64, memory.channels, x.device):
            return None
        from homeostat.kernels import gpu

        _tell_of_change(mean, variance, updates, skipped)
        return gpu.Moving(mean, variance, skipped, updates, momentum, sample)

    def _fits(self, memory: Memory, device: torch.device) -> bool:
        """Return whether statistics and count are what kernels can move for a batch."""
        dtype = torch.float64 if memory.dtype == torch.float64 else torch.float32
        mean, variance, updates, channels = self.mean, self.variance, self.updates, memory.channels
        if not _is_plain(mean, dtype, channels, device):
            return False
        if not _is_plain(variance, dtype, channels, device):
            return False
        return updates is None or _is_plain(updates, torch.int64, (), device)


def _is_plain(t: Tensor, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device) -> bool:
    """Return whether a tensor is nothing but values, one after the other, that may change."""
    if type(t) not in PLAIN or t.dtype != dtype or t.shape != shape or t.device != device:
        return False
    return t.is_contiguous() and not (t.requires_grad or t.is_inference())


def _tell_of_change(*tensors: Tensor | None) -> None:
    torch.autograd.graph.increment_version([t for t in tensors if t is not None])
