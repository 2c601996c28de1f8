"""Batch normalization on the compiled CPU loops: unweighted, this process alone, dense memory.

The activation and the residual are fused into both passes. Beyond x only channels are kept for the
backward, which computes the sign of an output again; with a residual and an activation also y.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from homeostat.moments import Moments
from homeostat.ops.torch.elements import (
    Call,
    Tensor,
    as_asked,
    behind_activation,
    statistics,
)
from homeostat.ops.torch.memory import Memory
from homeostat.ops.torch.moving import Moving
from homeostat.ops.torch.plain import differentiable_gradients


def on_loops(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    residual: Tensor | None,
    batch: Moments | None,
    moving: Moving | None,
    memory: Memory,
    call: Call,
) -> tuple[Tensor, Moments | None]:
    """Normalize with the batch's moments, given or computed, on the compiled loops.

    Returns:
        y, and the moments; None in their place where the moving statistics followed them.
    """
    loops = memory.batch(call.epsilon, call.slope)
    following = None if moving is None or batch is not None else moving.on_loops(memory)
    if batch is not None:
        _fill(loops, batch, x)
        forward = loops.normalize
    elif following is not None:
        forward = functools.partial(loops.train, moving=following)
    else:
        batch = _room(x, memory)
        mean, variance = batch.mean.data_ptr(), batch.variance.data_ptr()
        forward = functools.partial(loops.train, mean=mean, variance=variance)
    y = Compiled.apply(x, gamma, beta, residual, forward, loops, memory, call)
    if following is not None and not loops.moved:
        batch = _moments(loops, x, memory)
    return y, batch


class Compiled(torch.autograd.Function):
    """Keeps x for the backward, and y where there are activation and residual."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        residual: Tensor | None,
        forward: Callable[..., None],
        loops: Any,
        memory: Memory,
        call: Call,
    ) -> Tensor:
        """Return y, by a forward pass of the loops, which keep what the backward needs."""
        y = _normalized(forward, x, gamma, beta, residual, memory)
        both = call.slope is not None and residual is not None
        ctx.save_for_backward(x, gamma, y if both else None)
        ctx.loops, ctx.memory, ctx.call = loops, memory, call
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        """Return the gradients by the equations of `normalize_batch`."""
        x, gamma, y = ctx.saved_tensors
        if torch.is_grad_enabled():
            if y is None and ctx.call.slope is not None:
                y = _again(ctx.loops, x, ctx.memory)
            g = behind_activation(dy, y, ctx.call.slope)
            needs = ctx.needs_input_grad
            found = differentiable_gradients(x, gamma, g, None, needs, ctx.call)
            gradients = as_asked(ctx, found, g, x.shape)
        else:
            found = _gradients(ctx.loops, x, dy, y, ctx.memory)
            gradients = map(_in_dtype, found, ctx.call.dtypes)
        return *gradients, None, None, None, None


def loop_moments(x: Tensor, memory: Memory) -> Moments:
    """Return x's moments."""
    dense, found = memory.dense(x), _room(x, memory)
    loops = memory.batch()
    loops.find_moments(*map(_address, (dense, *found[1:])), torch.get_num_threads())
    return found


def loop_normalize(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    residual: Tensor | None,
    memory: Memory,
    call: Call,
) -> Tensor:
    """Return y, with given moments and without gradients."""
    loops = memory.batch(call.epsilon, call.slope)
    _fill(loops, Moments(call.layout.count, mean, variance), x)
    return _normalized(loops.normalize, x, gamma, beta, residual, memory)


def _room(x: Tensor, memory: Memory) -> Moments:
    """Return room for moments."""
    outer, _, inner = memory.shape
    return Moments(outer * inner, *_two(x, memory))


def _two(x: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
    shape, dtype = memory.channels, statistics(x)
    return torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype)


def _fill(loops: Any, batch: Moments, x: Tensor) -> None:
    """Have the loops normalize by given moments of x."""
    given = torch.stack([batch.mean.detach(), batch.variance.detach()])
    loops.moments[...] = given.to(statistics(x)).view(2, -1).numpy()


def _moments(loops: Any, x: Tensor, memory: Memory) -> Moments:
    """Return the moments that the loops found, as they write them where there is room."""
    found = _room(x, memory)
    for part, values in zip(found[1:], loops.moments, strict=True):
        part.copy_(torch.from_numpy(values).view(memory.channels))
    return found


def _normalized(
    forward: Callable[..., None],
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    residual: Tensor | None,
    memory: Memory,
) -> Tensor:
    """Return y, by a forward pass of the loops."""
    dtype, y = statistics(x), memory.empty(x)
    # Bound until the loops are done: some are copies.
    held = (
        memory.dense(x), None if residual is None else memory.dense(residual), y,
        _values(gamma, dtype), _values(beta, dtype),
    )  # fmt: skip
    forward(*map(_address, held), torch.get_num_threads())
    return y


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _values(channels: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if channels is None or (channels.dtype == dtype and channels.is_contiguous()):
        return channels
    return channels.to(dtype).contiguous()


def _again(loops: Any, x: Tensor, memory: Memory) -> Tensor:
    """Return y of a forward pass without a residual, as it was."""
    y, dense = memory.empty(x), memory.dense(x)
    loops.apply(dense.data_ptr(), y.data_ptr(), torch.get_num_threads())
    return y


def _gradients(
    loops: Any, x: Tensor, dy: Tensor, y: Tensor | None, memory: Memory
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return dx, dgamma and dbeta, and the gradient behind the activation where it is needed."""
    dx, g = memory.empty(x), None if y is None else memory.empty(x)
    dgamma, dbeta = _two(x, memory)
    held = memory.dense(x), memory.dense(dy), None if y is None else memory.dense(y)
    loops.gradients(*map(_address, (*held, dx, g, dgamma, dbeta)), torch.get_num_threads())
    # Without an activation the gradient behind it is dy; without a residual nobody asks for it.
    return dx, dgamma, dbeta, dy if g is None else g


def _in_dtype(gradient: Tensor, dtype: torch.dtype | None) -> Tensor | None:
    """Return a gradient in the dtype of what it belongs to, or None where there was nothing."""
    if dtype is None or gradient.dtype == dtype:
        return None if dtype is None else gradient
    return gradient.to(dtype)
