"""Batch normalization by the kernels for GPUs: unweighted, dense memory, this process or replicas.

The activation and the residual are fused into both passes. Beyond x only channels are kept for the
backward, which computes the sign of an output again; with a residual and an activation also y.
"""

from __future__ import annotations

from typing import Any

import torch

from homeostat.moments import Moments
from homeostat.ops.torch.elements import (
    AllReduce,
    Call,
    Tensor,
    as_asked,
    behind_activation,
    statistics,
)
from homeostat.ops.torch.memory import Memory
from homeostat.ops.torch.moving import Moving
from homeostat.ops.torch.plain import differentiable_gradients, over_replicas


def _kernels() -> Any:
    """Return the module of the kernels, which needs triton."""
    # Not `from homeostat.kernels import gpu`: PyTorch 2.11 traces no module that can be called.
    import homeostat.kernels.gpu as kernels

    return kernels


def launched_moments(x: Tensor, memory: Memory, all_reduce: AllReduce | None) -> Moments:
    """Return x's moments, over all replicas where there is an all_reduce."""
    return _narrowed(_found(x, memory, all_reduce), x)


def _found(x: Tensor, memory: Memory, all_reduce: AllReduce | None) -> Moments:
    """Return what `launched_moments` does, mean and variance in float64."""
    found = _kernels().moments(memory.dense(x), _shape(memory))
    return over_replicas(_moments(found, memory), all_reduce)


def _moments(found: Tensor, memory: Memory) -> Moments:
    outer, _, inner = memory.shape
    return Moments(outer * inner, *found.view(2, *memory.channels).unbind())


def _narrowed(batch: Moments, x: Tensor) -> Moments:
    """Return moments in the dtype of x's statistics."""
    dtype = statistics(x)
    count = batch.count.to(dtype) if isinstance(batch.count, Tensor) else batch.count
    return Moments(count, batch.mean.to(dtype), batch.variance.to(dtype))


def launched_normalize(
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
    given = torch.stack([mean, variance])
    return _normalized(x, given, None, gamma, beta, residual, memory, call)[0]


def on_gpu(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    residual: Tensor | None,
    batch: Moments | None,
    moving: Moving | None,
    memory: Memory,
    call: Call,
) -> tuple[Tensor, Moments | None]:
    """Normalize with the batch's moments, given or computed.

    Returns:
        y, and the moments; None in their place where the moving statistics followed them.
    """
    known = batch
    if batch is None and call.all_reduce is not None:
        known = _found(x, memory, call.all_reduce)
    given, following, count = None, None, call.layout.count
    if known is not None:
        given, count = torch.stack([known.mean.detach(), known.variance.detach()]), known.count
    elif moving is not None:
        following = moving.on_gpu(memory, x)
    y, found = Launched.apply(x, gamma, beta, residual, given, following, count, memory, call)
    if following is not None:
        return y, None
    if batch is None:
        batch = _narrowed(_moments(found, memory) if known is None else known, x)
    return y, batch


class Launched(torch.autograd.Function):
    """Keeps x for the backward, and y where there are activation and residual."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        residual: Tensor | None,
        given: Tensor | None,
        following: Any,
        count: int | Tensor,
        memory: Memory,
        call: Call,
    ) -> tuple[Tensor, Tensor]:
        """Return y, and mean and variance, those that are given or those of x."""
        y, found, kept = _normalized(x, given, following, gamma, beta, residual, memory, call)
        both = call.slope is not None and residual is not None
        many = count if isinstance(count, Tensor) else None
        ctx.save_for_backward(x, gamma, kept, many, y if both else None)
        ctx.memory, ctx.call, ctx.count = memory, call, None if many is not None else count
        ctx.mark_non_differentiable(found)
        ctx.set_materialize_grads(False)
        return y, found

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, _: None) -> tuple[Any, ...]:
        """Return the gradients by the equations of `normalize_batch`."""
        if dy is None:
            return (None,) * 9
        x, gamma, kept, many, y = ctx.saved_tensors
        call, memory = ctx.call, ctx.memory
        if torch.is_grad_enabled():
            if y is None and call.slope is not None:
                y = _kernels().again(memory.dense(x), kept, _shape(memory), call.slope)
            g = behind_activation(dy, y, call.slope)
            found = differentiable_gradients(x, gamma, g, None, ctx.needs_input_grad, call)
        else:
            count = ctx.count if many is None else many
            found, g = _gradients(x, dy, y, kept, count, memory, call)
        return *as_asked(ctx, found, g, x.shape), None, None, None, None, None


def _shape(memory: Memory) -> Any:
    return _kernels().Shape(*memory.shape)


def _normalized(
    x: Tensor,
    given: Tensor | None,
    following: Any,
    gamma: Tensor | None,
    beta: Tensor | None,
    residual: Tensor | None,
    memory: Memory,
    call: Call,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, mean and variance, and what the backward needs of the channels."""
    kernels = _kernels()
    others = (
        None if gamma is None else gamma.contiguous(),
        None if beta is None else beta.contiguous(),
        None if residual is None else memory.dense(residual),
        _shape(memory), call.epsilon, call.slope,
    )  # fmt: skip
    if given is None:
        return kernels.train(memory.dense(x), *others, following)
    y, kept = kernels.normalize(memory.dense(x), given.view(2, -1), *others)
    return y, given, kept


def _gradients(
    x: Tensor,
    dy: Tensor,
    y: Tensor | None,
    kept: Tensor,
    count: int | Tensor,
    memory: Memory,
    call: Call,
) -> tuple[Any, Tensor | None]:
    """Return dx, dgamma and dbeta, and the gradient behind the activation where it is needed."""
    kernels, shape = _kernels(), _shape(memory)
    x, dy = memory.dense(x), memory.dense(dy)
    if call.all_reduce is None:
        *found, g = kernels.backward(x, dy, y, kept, shape, call.slope, count)
    else:
        sums, g = kernels.gradient_sums(x, dy, y, kept, shape, call.slope)
        # A replica's gradients of gamma and beta are its own; those of x go through all.
        dgamma, dbeta = sums.clone().unbind()
        total = call.all_reduce(sums)
        dx = kernels.input_gradient(x, dy, g, kept, total, count, shape, call.slope)
        found = [dx, dgamma, dbeta]
    # Without an activation the gradient behind it is dy; without a residual nobody asks for it.
    return tuple(found), dy if g is None else g
