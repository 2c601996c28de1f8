"""Normalization by a batch's own moments: which path takes a call, and what may move on the way."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from homeostat.moments import Moments
from homeostat.ops.torch.compiled import on_loops
from homeostat.ops.torch.elements import Call, Tensor, call_of, transformed
from homeostat.ops.torch.launched import on_gpu
from homeostat.ops.torch.memory import Memory
from homeostat.ops.torch.moving import Moving
from homeostat.ops.torch.native import Native, View
from homeostat.ops.torch.plain import Plain, differentiable, plain_moments


def normalize_and_move(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    moving: Moving,
    *,
    axis: int | Iterable[int] = -1,
    epsilon: float = 1e-3,
    activation: Any = None,
    residual: Tensor | None = None,
) -> tuple[Tensor, Moments | None]:
    """Normalize as `normalize_batch` does, and move statistics where that is done in passing.

    The compiled loops do, where the moments of all channels are finite; the kernels for GPUs do
    where they count what they skip.

    Args:
        x: see `normalize_batch`, like gamma, beta and all behind the star.
        gamma: see there.
        beta: see there.
        moving: the statistics.
        axis: see there.
        epsilon: see there.
        activation: see there.
        residual: see there.

    Returns:
        y, and the batch's `Moments` where the statistics have yet to follow them; None in their
        place where they have.

    Raises:
        ShapeError: a shape does not fit.
        DTypeError: a tensor is not floating.
        SpecError: epsilon or the activation is not valid.

    Example:
        >>> mean, variance, updates = torch.zeros(1), torch.ones(1), torch.tensor(0)
        >>> moving = Moving(mean, variance, updates, momentum=0.5, sample=True)
        >>> y, batch = normalize_and_move(torch.tensor([[1.0], [3.0]]), None, None, moving)
        >>> batch is None or batch.mean.tolist() == [2.0]
        True
    """
    call = call_of(x, axis, epsilon, activation, gamma, beta, residual)
    return by_batch(x, gamma, beta, None, residual, None, moving, call)


def by_batch(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    weights: Tensor | None,
    residual: Tensor | None,
    batch: Moments | None,
    moving: Moving | None,
    call: Call,
) -> tuple[Tensor, Any]:
    """Return y and the batch's moments, as `normalize_and_move` does.

    Args:
        x: the input.
        gamma: or None for 1.
        beta: or None for 0.
        weights: of the statistics, or None.
        residual: added before the activation, or None.
        batch: the moments, where they are known already, or None.
        moving: statistics that may follow them, or None.
        call: what is asked for.
    """
    memory, all_reduce = call.memory, call.all_reduce
    alone = weights is None and all_reduce is None
    # First of all: most steps, which feel each call, go this way.
    if alone and memory is not None and memory.prefers_loops(x, "train", residual, call.slope):
        return on_loops(x, gamma, beta, residual, batch, moving, memory, call)
    compiling = torch.compiler.is_compiling()
    functional, tracing = not compiling and transformed(), torch.jit.is_tracing()
    if weights is None and not (functional or tracing):
        memory = Memory.of(x, call.layout.channel_axes) if compiling else memory
        if memory is not None and memory.prefers_gpu(x, "train", residual, call.slope):
            return on_gpu(x, gamma, beta, residual, batch, moving, memory, call)
    # The compiler may take the formula apart too, and fuses it; over replicas it cannot.
    if functional or (compiling and all_reduce is None):
        y, found = differentiable(x, gamma, beta, residual, weights, call)
        return y, found if batch is None else batch
    view = View.of(x, call.layout) if alone and not tracing else None
    if view is not None:
        y, mean, variance = Native.apply(x, gamma, beta, residual, batch, view, call)
        return y, Moments(call.layout.count, mean, variance) if batch is None else batch
    if batch is None:
        batch = plain_moments(x, weights, call.layout, all_reduce)
    return Plain.apply(x, gamma, beta, residual, weights, batch, call), batch
