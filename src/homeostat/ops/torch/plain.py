"""Batch normalization by tensor operations: any layout, weights, replicas, gradients of gradients.

`differentiable` is the formula that PyTorch's own transforms can take apart; `Plain` is the same
with the backward written by hand, from moments that are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from homeostat.errors import UnsupportedError
from homeostat.layout import Layout
from homeostat.moments import Moments
from homeostat.ops.torch.elements import (
    AllReduce,
    Call,
    Gradients,
    Tensor,
    as_asked,
    behind_activation,
    finish,
    spread,
    statistics,
)


def full_weights(weights: Tensor, layout: Layout, dtype: torch.dtype) -> Tensor:
    """Return weights shaped to broadcast against the input."""
    return weights.detach().to(dtype).reshape(layout.weights_shape(tuple(weights.shape)))


def centre(x: Tensor, weights: Tensor | None, layout: Layout) -> tuple[Moments, Tensor]:
    """Return the moments and x - mean, differentiable, by way of a constant near the mean.

    mean = pivot + offset with offset = mean(x - pivot), and variance = mean((x - pivot)**2) -
    offset**2 (the corrected two-pass rule: Chan, Golub & LeVeque 1983). Since the pivot is the
    mean but for rounding, so small is offset that nothing cancels.
    """
    dtype = statistics(x)
    x = x.to(dtype)
    axes = layout.reduction_axes
    if weights is None:
        w, count = None, layout.count
        divisor = max(count, 1)
    else:
        w = full_weights(weights, layout, dtype)
        averaged = [1 if a in layout.channel_axes else n for a, n in enumerate(layout.shape)]
        count = w.expand(averaged).sum()
        divisor = torch.where(count > 0, count, 1.0)

    def average(values: Tensor) -> Tensor:
        return (values if w is None else values * w).sum(axes) / divisor

    def counted(values: Tensor) -> Tensor:
        return values if w is None else torch.where(w > 0, values, 0.0)

    pivot = average(counted(x.detach()))
    shifted = x - spread(pivot, layout)
    inside = counted(shifted)
    offset = average(inside)
    variance = (average(inside * inside) - offset * offset).clamp_min(0.0)
    return Moments(count, pivot + offset, variance), shifted - spread(offset, layout)


def plain_moments(
    x: Tensor, weights: Tensor | None, layout: Layout, all_reduce: AllReduce | None
) -> Moments:
    """Return x's moments, over all replicas where there is an all_reduce."""
    batch, _ = centre(x.detach(), weights, layout)
    return over_replicas(batch, all_reduce)


def over_replicas(batch: Moments, all_reduce: AllReduce | None) -> Moments:
    """Return the moments of all replicas of those of this one; its own without an all_reduce."""
    if all_reduce is None:
        return batch
    # In float64, which counts exactly and adds no rounding of its own.
    mean, variance = batch.mean.double(), batch.variance.double()
    count = torch.as_tensor(batch.count, dtype=torch.float64, device=mean.device)
    sums = all_reduce(torch.cat([count.reshape(1), (mean * count).flatten()]))
    total = sums[0].clone()
    divisor = torch.where(total > 0, total, 1.0)
    overall = sums[1:].reshape(mean.shape) / divisor
    squares = all_reduce((variance + (mean - overall) ** 2) * count)
    dtype = batch.mean.dtype
    return Moments(total.to(dtype), overall.to(dtype), (squares / divisor).to(dtype))


def differentiable(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    residual: Tensor | None,
    weights: Tensor | None,
    call: Call,
) -> tuple[Tensor, Moments]:
    """Return y and the detached moments by a formula that autograd and torch.func go through."""
    if call.all_reduce is not None:
        raise UnsupportedError(
            "statistics over replicas have no gradients of gradients and no torch.func transforms: "
            "expected all_reduce=None there. Take the statistics of this process alone."
        )
    batch, centred = centre(x, weights, call.layout)
    if weights is not None:
        # What lies under a mask may be NaN. It reaches y, as a residual, but not the gradients.
        masked = full_weights(weights, call.layout, centred.dtype) == 0
        masked = masked & ~torch.isfinite(centred)
        hidden = torch.where(masked, centred.detach(), 0.0)
        residual = hidden if residual is None else residual + hidden
        centred = torch.where(masked, 0.0, centred)
    scale = torch.rsqrt(batch.variance + call.epsilon)
    y = finish(centred, scale, gamma, beta, residual, call).to(x.dtype)
    return y, Moments(batch.count, batch.mean.detach(), batch.variance.detach())


def differentiable_gradients(
    x: Tensor,
    gamma: Tensor | None,
    g: Tensor,
    weights: Tensor | None,
    needs: Sequence[bool],
    call: Call,
) -> Gradients:
    """Return dx, dgamma and dbeta with a graph behind them, for gradients of gradients."""
    x_wide = x.to(statistics(x))
    z, _ = differentiable(x_wide, gamma, None, None, weights, call._replace(slope=None))
    g = g.to(z.dtype)
    wanted = [t for t, need in zip((x, gamma), needs[:2], strict=True) if need]
    found = iter(torch.autograd.grad(z, wanted, g, create_graph=True) if wanted else ())
    dx, dgamma = (next(found) if need else None for need in needs[:2])
    return dx, dgamma, g.sum(call.layout.reduction_axes)


class Plain(torch.autograd.Function):
    """Normalize with given moments, which the backward knows to be functions of x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        residual: Tensor | None,
        weights: Tensor | None,
        batch: Moments,
        call: Call,
    ) -> Tensor:
        """Return y; keep x and the statistics, and y where there is an activation."""
        dtype = statistics(x)
        mean, scale = batch.mean.to(dtype), torch.rsqrt(batch.variance.to(dtype) + call.epsilon)
        centred = x.to(dtype) - spread(mean, call.layout)
        y = finish(centred, scale, gamma, beta, residual, call).to(x.dtype)
        count = torch.as_tensor(batch.count, dtype=dtype, device=x.device)
        kept = None if call.slope is None else y
        ctx.save_for_backward(x, gamma, weights, mean, scale, count, kept)
        ctx.call = call
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        """Return the gradients by the equations of `normalize_batch`."""
        x, gamma, weights, mean, scale, count, y = ctx.saved_tensors
        g = behind_activation(dy, y, ctx.call.slope)
        if torch.is_grad_enabled():
            needs = ctx.needs_input_grad
            found = differentiable_gradients(x, gamma, g, weights, needs, ctx.call)
        else:
            found = _gradients(x, gamma, g, weights, mean, scale, count, ctx.call)
        return *as_asked(ctx, found, g, x.shape), None, None, None


def _gradients(
    x: Tensor,
    gamma: Tensor | None,
    g: Tensor,
    weights: Tensor | None,
    mean: Tensor,
    scale: Tensor,
    count: Tensor,
    call: Call,
) -> Gradients:
    layout = call.layout
    g = g.to(mean.dtype)
    x_hat = (x.to(mean.dtype) - spread(mean, layout)) * spread(scale, layout)
    product = g * x_hat
    if weights is not None:
        # What lies under a mask may be NaN: it counts only where a gradient comes in.
        product = torch.where(g == 0, 0.0, product)
    dbeta, dgamma = g.sum(layout.reduction_axes), product.sum(layout.reduction_axes)
    sums = torch.stack([dbeta, dgamma])
    if call.all_reduce is not None:
        sums = call.all_reduce(sums)
    sums = sums / torch.where(count > 0, count, 1.0)
    through = spread(sums[0], layout) + x_hat * spread(sums[1], layout)
    if weights is not None:
        w = full_weights(weights, layout, mean.dtype)
        through = torch.where(w > 0, through * w, 0.0)
    a = scale if gamma is None else scale * gamma.to(scale.dtype)
    return (g - through) * spread(a, layout), dgamma, dbeta
