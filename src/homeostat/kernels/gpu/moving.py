"""Statistics that follow those of batches, moved by the program that merged a batch's."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from homeostat.kernels.gpu.tiles import channels_of


class Moving(NamedTuple):
    """Statistics in a device's memory: old * momentum + the batch's * (1 - momentum).

    Args:
        mean: (channels,), float32 or float64.
        variance: like mean.
        skipped: int64, (channels,): of a channel whose batch is not finite the statistics stay and
            1 is added here.
        updates: int64, a scalar: the number of batches.
        momentum: weight of the old value.
        sample: whether of a batch of n elements the sample variance is taken, the population
            variance * n / (n - 1).
    """

    mean: torch.Tensor
    variance: torch.Tensor
    skipped: torch.Tensor
    updates: torch.Tensor
    momentum: float
    sample: bool


def arguments_of(moving: Moving | None) -> dict[str, Any]:
    """Return what a kernel that calls `move` takes."""
    names = ("moving_mean", "moving_variance", "skipped", "updates", "MOMENTUM", "SAMPLE")
    given = (None, None, None, None, 0.0, False) if moving is None else moving
    return dict(zip(names, given, strict=True))


@triton.jit
def move(
    moving_mean, moving_variance, skipped, updates, block, channels, mean, variance, count,
    MOMENTUM: tl.constexpr, SAMPLE: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Move the statistics of a block of channels towards a batch's, as `Moving` says.

    In float64, and rounded once. One program of each block calls it.
    """
    c, there = channels_of(block, channels, BLOCK_C)
    kind = moving_mean.dtype.element_ty
    # Of one element the variance is 0 either way.
    taken = variance * (count / tl.maximum(count - 1.0, 1.0)) if SAMPLE else variance
    # What overflows the statistics' dtype is not finite there. NaN is below nothing.
    finite = (tl.abs(mean.to(kind)) < float("inf")) & (tl.abs(taken.to(kind)) < float("inf"))
    moves, stays = there & finite, there & (finite == 0)
    tl.store(skipped + c, tl.load(skipped + c, mask=stays, other=0) + 1, mask=stays)
    old_mean = tl.load(moving_mean + c, mask=there, other=0.0).to(tl.float64)
    old_variance = tl.load(moving_variance + c, mask=there, other=0.0).to(tl.float64)
    new_mean = old_mean * MOMENTUM + mean * (1.0 - MOMENTUM)
    new_variance = old_variance * MOMENTUM + taken * (1.0 - MOMENTUM)
    tl.store(moving_mean + c, new_mean.to(kind), mask=moves)
    tl.store(moving_variance + c, new_variance.to(kind), mask=moves)
    if block == 0:
        tl.store(updates, tl.load(updates) + 1)
