"""Batch normalization on PyTorch tensors, with a hand-written backward.

In eager mode on CPU and CUDA the unweighted, local case runs on PyTorch's native kernels, or on a
CPU, where they are faster, on compiled loops (`choice`); weights,
statistics over replicas and scattered channel axes run on one plain path of tensor operations.
`torch.compile` and the transforms of `torch.func` get a differentiable formula instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.nn import functional

from homeostat.moments import Moments
from homeostat.ops.arguments import check
from homeostat.ops.torch.batch import by_batch
from homeostat.ops.torch.batch import normalize_and_move as normalize_and_move
from homeostat.ops.torch.compiled import loop_moments, loop_normalize
from homeostat.ops.torch.elements import (
    AllReduce,
    Call,
    Tensor,
    activated,
    call_of,
    finish,
    finish_in_place,
    flat,
    slope_of,
    spread,
    statistics,
    transformed,
)
from homeostat.ops.torch.launched import launched_moments, launched_normalize
from homeostat.ops.torch.memory import Memory
from homeostat.ops.torch.moving import Moving as Moving
from homeostat.ops.torch.native import View, apply, ill_conditioned, native_moments
from homeostat.ops.torch.plain import plain_moments


def moments(
    x: Tensor,
    axis: int | Iterable[int] = -1,
    *,
    weights: Tensor | None = None,
    all_reduce: AllReduce | None = None,
) -> Moments:
    """Return the count, mean and population variance of each channel.

    mean = sum(w x) / W and variance = sum(w (x - mean)**2) / W with W = sum(w), the variance
    centred, so it is neither negative nor lost to cancellation. With nothing to average (W = 0)
    both are 0.

    Args:
        x: tensor of any rank >= 2 (or 1 with a batch axis only through a list of axes), floating.
        axis: channel axis or axes.
        weights: weights or mask, of the averaged axes' shape or their leading part, or None.
        all_reduce: sums a tensor over all replicas, or None for this process alone.

    Returns:
        `Moments`, detached, float32 (float64 for float64 inputs), tensors of the channel shape;
        the count is an int, or a tensor with weights or replicas.

    Raises:
        ShapeError: a shape does not fit.
        DTypeError: x is not floating.

    Example:
        >>> batch = moments(torch.tensor([[1.0, 10.0], [3.0, 30.0]]))
        >>> batch.count, batch.mean.tolist(), batch.variance.tolist()
        (2, [2.0, 20.0], [1.0, 100.0])
    """
    layout = check(x, axis, weights=weights)
    x = x.detach()
    memory = None if _exported() or transformed() else Memory.of(x, layout.channel_axes)
    if weights is None and memory is not None and memory.prefers_gpu(x, "moments"):
        return launched_moments(x, memory, all_reduce)
    if _alone(weights, all_reduce):
        if memory is not None and memory.prefers_loops(x, "moments"):
            return loop_moments(x, memory)
        view = View.of(x, layout)
        if view is not None:
            return native_moments(x, view, layout)
    return plain_moments(x, weights, layout, all_reduce)


def normalize(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    axis: int | Iterable[int] = -1,
    epsilon: float = 1e-3,
    activation: Any = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Return activation(gamma * (x - mean) / sqrt(variance + epsilon) + beta + residual).

    Args:
        x: tensor of any rank >= 2, floating.
        mean: of the channel shape.
        variance: of the channel shape, the population variance.
        gamma: of the channel shape, or None for 1.
        beta: of the channel shape, or None for 0.
        axis: channel axis or axes.
        epsilon: added to the variance.
        activation: None, "relu" or "leaky_relu" (see `homeostat.Activation`).
        residual: of x's shape, added before the activation, or None.

    Returns:
        Tensor of x's shape and dtype, differentiable with respect to every tensor given.

    Raises:
        ShapeError: a shape does not fit.
        DTypeError: a tensor is not floating.
        SpecError: epsilon or the activation is not valid.

    Example:
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> mean, variance = torch.tensor([2.0]), torch.tensor([4.0])
        >>> normalize(x, mean, variance, epsilon=0.0, activation="relu").tolist()
        [[0.0], [0.5]]
    """
    layout = check(
        x, axis, epsilon=epsilon, residual=residual,
        mean=mean, variance=variance, gamma=gamma, beta=beta,
    )  # fmt: skip
    call = Call(layout, epsilon, slope_of(activation))
    dtype = statistics(x)
    mean, variance = mean.to(dtype), variance.to(dtype)
    alone = _alone()
    if alone and not _differentiates(x, mean, variance, gamma, beta, residual):
        memory = Memory.of(x, layout.channel_axes)
        if memory is not None and memory.prefers_gpu(x, "infer", residual, call.slope):
            return launched_normalize(x, mean, variance, gamma, beta, residual, memory, call)
        if memory is not None and memory.prefers_loops(x, "infer", residual, call.slope):
            return loop_normalize(x, mean, variance, gamma, beta, residual, memory, call)
    # The native kernel takes the moments for constants.
    constant = not (mean.requires_grad or variance.requires_grad)
    exact = residual is None or x.dtype == dtype
    if constant and exact and layout.channel_axes == (1,) and _exported():
        # One node that compilers, exporters and quantizers know.
        y = functional.batch_norm(
            x, mean, variance, flat(gamma, dtype), flat(beta, dtype), eps=epsilon
        )
        return activated(y if residual is None else y + residual, call.slope)
    view = View.of(x, layout) if alone and constant else None
    if view is None or ill_conditioned(mean, variance):
        centred = x.to(dtype) - spread(mean, layout)
        scale = torch.rsqrt(variance + epsilon)
        return finish(centred, scale, gamma, beta, residual, call).to(x.dtype)
    y = apply(
        view.enter(x), flat(gamma, dtype), flat(beta, dtype), mean.flatten(), variance.flatten(),
        epsilon,
    )  # fmt: skip
    return finish_in_place(view.leave(y), residual, call.slope)


def normalize_batch(
    x: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    axis: int | Iterable[int] = -1,
    epsilon: float = 1e-3,
    weights: Tensor | None = None,
    activation: Any = None,
    residual: Tensor | None = None,
    batch: Moments | None = None,
    all_reduce: AllReduce | None = None,
) -> tuple[Tensor, Moments]:
    """Normalize with the batch's own moments (Ioffe & Szegedy 2015, Algorithm 1).

    The backward goes through the moments. With g the gradient behind the activation,
    s = 1 / sqrt(variance + epsilon) and x_hat = (x - mean) * s::

        dbeta = sum(g)          dgamma = sum(g * x_hat)          dresidual = g
        dx    = gamma * s * (g - (w / W) * (sum(g) + x_hat * sum(g * x_hat)))

    With replicas the two sums in dx run over all of them, while dgamma and dbeta are each
    replica's own. Beyond statistics, x alone is kept for the backward, and y with an activation;
    on the compiled loops y only with both an activation and a residual.
    Gradients of gradients are right too, except over replicas.

    Args:
        x: tensor of any rank >= 2, floating.
        gamma: of the channel shape, or None for 1.
        beta: of the channel shape, or None for 0.
        axis: channel axis or axes.
        epsilon: added to the variance.
        weights: weights or mask of the statistics (see `moments`), or None; no gradient to them.
        activation: None, "relu" or "leaky_relu".
        residual: of x's shape, added before the activation, or None.
        batch: the moments of this very x, where they are known already, or None.
        all_reduce: sums a tensor over all replicas, or None for this process alone.

    Returns:
        y, of x's shape and dtype, and the batch's `Moments`, detached.

    Raises:
        ShapeError: a shape does not fit.
        DTypeError: a tensor is not floating.
        SpecError: epsilon or the activation is not valid.
        UnsupportedError: gradients of gradients, or a transform, over replicas.

    Example:
        >>> y, batch = normalize_batch(torch.tensor([[1.0], [3.0]]), epsilon=0.0)
        >>> y.tolist(), batch.mean.tolist()
        ([[-1.0], [1.0]], [2.0])
    """
    call = call_of(x, axis, epsilon, activation, gamma, beta, residual, weights)
    if all_reduce is not None:
        call = call._replace(all_reduce=all_reduce)
    return by_batch(x, gamma, beta, weights, residual, batch, None, call)


def _differentiates(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _alone(weights: Tensor | None = None, all_reduce: AllReduce | None = None) -> bool:
    """Return whether the unweighted moments of this process are asked for, in eager mode."""
    return weights is None and all_reduce is None and not _exported() and not transformed()


def _exported() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing()
