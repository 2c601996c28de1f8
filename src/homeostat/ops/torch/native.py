"""Batch normalization on PyTorch's native CPU and CUDA kernels: unweighted, this process alone.

The CPU kernels are fast and less exact than they could be. Two remedies keep their speed: their
float32 sums run over few rows at a time (`_sums`), and badly conditioned inputs are centred first.
The CUDA kernels need neither, which spares a wait for the device: their statistics are Welford's
and they subtract the mean before scaling.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch

from homeostat.layout import Layout
from homeostat.moments import Moments, merge
from homeostat.ops.torch.elements import (
    Call,
    Tensor,
    as_asked,
    behind_activation,
    finish_in_place,
    fit,
    flat,
    statistics,
)
from homeostat.ops.torch.plain import differentiable_gradients

# The CPU kernels compute x * a + (beta - mean * a), which loses |mean| / std * 6e-8 of a standard
# deviation, and their mean about as much. Beyond this mean**2 / variance x is centred first.
ILL_CONDITIONED = 1024.0
# Rows of channels that one thread's float32 sum may run over (twice that before anything is done
# about it), and the widest row to sum into.
ROWS_PER_SUM = 8192
WIDEST_ROW = 16384


class View(NamedTuple):
    """How a tensor is shown to the native kernels, as (batch, channels, ...), and back.

    Args:
        order: permutation of the axes that comes first, or None.
        back: its inverse, or None.
        shape: the shape after it.
        native: the shape for the kernels, with the channels last if ``last``, else at axis 1.
        last: whether the channels come last.
    """

    order: tuple[int, ...] | None
    back: tuple[int, ...] | None
    shape: tuple[int, ...]
    native: tuple[int, ...]
    last: bool

    @classmethod
    def of(cls, x: Tensor, layout: Layout) -> View | None:
        """Return the view of x, or None where the native kernels do not fit."""
        axes = layout.channel_axes
        scattered = axes[-1] - axes[0] + 1 != len(axes)
        if scattered or x.device.type not in ("cpu", "cuda"):
            return None
        last = axes[-1] == x.dim() - 1
        if not last and not x.is_contiguous():
            last = x.permute(*layout.reduction_axes, *axes).is_contiguous()
        return _view(tuple(x.shape), axes, last)

    def enter(self, x: Tensor) -> Tensor:
        """Return x as the kernels take it; a copy only if its memory is not in that order."""
        if self.order is not None:
            x = x.permute(self.order)
        x = x.reshape(self.native)
        return x.permute(0, 3, 1, 2) if self.last else x

    def leave(self, y: Tensor) -> Tensor:
        """Return what `enter` was given."""
        if self.last:
            y = y.permute(0, 2, 3, 1)
        y = y.reshape(self.shape)
        return y if self.back is None else y.permute(self.back)


@functools.lru_cache(maxsize=1024)
def _view(shape: tuple[int, ...], axes: tuple[int, ...], last: bool) -> View | None:
    channels = math.prod(shape[a] for a in axes)
    size = math.prod(shape)
    if size < 2 * channels or size == 0:
        return None
    count = size // channels
    if not last or channels == 1:
        before = math.prod(shape[: axes[0]])
        return View(None, None, shape, (before, channels, count // before), False)
    order = (*(a for a in range(len(shape)) if a not in axes), *axes)
    permuted = tuple(shape[a] for a in order)
    native = (1, count, 1, channels)
    if order == tuple(range(len(shape))):
        return View(None, None, permuted, native, True)
    back = tuple(sorted(range(len(order)), key=order.__getitem__))
    return View(order, back, permuted, native, True)


class Native(torch.autograd.Function):
    """Normalize with the batch's moments, given or computed, on the native kernels."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        residual: Tensor | None,
        batch: Moments | None,
        view: View,
        call: Call,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return y, mean and variance; keep x, and y where there is an activation."""
        v, dtype = view.enter(x), statistics(x)
        v, pivot, offset, variance = _conditioned(v, batch, dtype)
        y = apply(v, flat(gamma, dtype), flat(beta, dtype), offset, variance, call.epsilon)
        y = finish_in_place(view.leave(y), residual, call.slope).to(x.dtype)
        # Not as a view, which PyTorch refuses to change in place, as a ReLU behind this may.
        y = y.data
        scale = torch.rsqrt(variance + call.epsilon)
        kept = None if call.slope is None else y
        ctx.save_for_backward(x, gamma, offset, scale, pivot, kept)
        ctx.view, ctx.call = view, call
        shape = call.layout.channel_shape
        mean = offset if pivot is None else pivot + offset
        mean, variance = fit(mean, shape), fit(variance, shape)
        ctx.mark_non_differentiable(mean, variance)
        ctx.set_materialize_grads(False)
        return y, mean, variance

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Any, ...]:
        """Return the gradients by the equations of `normalize_batch`."""
        if dy is None:
            return (None,) * 7
        x, gamma, offset, scale, pivot, y = ctx.saved_tensors
        g = behind_activation(dy, y, ctx.call.slope)
        needs = list(ctx.needs_input_grad[:3])
        if torch.is_grad_enabled():
            found = differentiable_gradients(x, gamma, g, None, needs, ctx.call)
        elif any(needs):
            v = _shifted(ctx.view.enter(x), pivot)
            g_seen = ctx.view.enter(g).to(v.dtype)
            dx, dgamma, dbeta = torch.ops.aten.native_batch_norm_backward(
                g_seen, v, flat(gamma, offset.dtype), None, None,
                offset, scale, True, ctx.call.epsilon, needs,
            )  # fmt: skip
            found = None if dx is None else ctx.view.leave(dx), dgamma, dbeta
        else:
            found = None, None, None
        return *as_asked(ctx, found, g, x.shape), None, None, None


def native_moments(x: Tensor, view: View, layout: Layout) -> Moments:
    """Return x's moments."""
    _, pivot, offset, variance = _conditioned(view.enter(x), None, statistics(x))
    mean = offset if pivot is None else pivot + offset
    shape = layout.channel_shape
    return Moments(layout.count, fit(mean, shape), fit(variance, shape))


def apply(
    v: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    epsilon: float,
) -> Tensor:
    """Return gamma * (v - mean) / sqrt(variance + epsilon) + beta."""
    return torch.native_batch_norm(v, gamma, beta, mean, variance, False, 0.0, epsilon)[0]


def ill_conditioned(mean: Tensor, variance: Tensor) -> bool:
    """Return whether the native kernel would lose digits to a large mean; never so on a GPU."""
    if mean.device.type != "cpu":
        return False
    return bool((mean * mean > ILL_CONDITIONED * variance).any())


def _conditioned(
    v: Tensor, batch: Moments | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Return v - pivot, the pivot, and the mean and variance of v - pivot; pivot None is 0."""
    if batch is None:
        mean, variance = _statistics_of(v)
    else:
        mean, variance = flat(batch.mean, dtype), flat(batch.variance, dtype)
    if not ill_conditioned(mean, variance):
        return v, None, mean, variance
    if batch is None:
        axes = [a for a in range(v.dim()) if a != 1]
        pivot = v.sum(axes, dtype=dtype) / (v.numel() // v.shape[1])
        v = _shifted(v, pivot)
        return v, pivot, *_statistics_of(v)
    return _shifted(v, mean), mean, torch.zeros_like(mean), variance


def _shifted(v: Tensor, pivot: Tensor | None) -> Tensor:
    return v if pivot is None else v - pivot.reshape(-1, *[1] * (v.dim() - 2))


def _statistics_of(v: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and population variance of (N, C, ...)."""
    channels = v.shape[1]
    rows = v.numel() // channels
    groups = (
        1
        if v.device.type != "cpu" or v.is_contiguous()
        else _groups(rows, channels, torch.get_num_threads())
    )
    if groups == 1:
        return _sums(v)
    # One float32 sum over all rows would lose digits, 1e-5 of the variance at 10**5 rows and 4e-4
    # at 10**6. Neighbouring rows side by side are one wide row: fewer additions, no copy.
    wide = rows // groups
    table = v.permute(0, 2, 3, 1).reshape(rows, channels)
    means, variances = _sums(_as_channels_last(table[: wide * groups].reshape(wide, -1)))
    means = means.view(groups, channels)
    mean = means.mean(0)
    variance = (variances.view(groups, channels) + (means - mean).square_()).mean(0)
    rest = rows - wide * groups
    if rest:
        tail = Moments(rest, *_sums(_as_channels_last(table[wide * groups :])))
        _, mean, variance = merge(Moments(wide * groups, mean, variance), tail, torch)
    return mean, variance


@functools.lru_cache(maxsize=1024)
def _groups(rows: int, channels: int, threads: int) -> int:
    """Return how many rows to lay side by side, a divisor of rows where there is one at hand."""
    groups = min(rows // (ROWS_PER_SUM * threads), WIDEST_ROW // channels)
    if groups < 2:
        return 1
    return next((g for g in range(groups, 2 * groups) if rows % g == 0), groups)


def _as_channels_last(table: Tensor) -> Tensor:
    return table.view(1, table.shape[0], 1, -1).permute(0, 3, 1, 2)


def _sums(v: Tensor) -> tuple[Tensor, Tensor]:
    buffers = (None, None)
    if v.dtype in (torch.float16, torch.bfloat16):
        # The dtype of the buffers, whose contents do not matter, is that of the results.
        buffers = v.new_zeros((2, v.shape[1]), dtype=torch.float32).unbind()
    return torch.batch_norm_update_stats(v, *buffers, 0.0)
