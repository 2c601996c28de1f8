"""A whole step in as few calls as PyTorch allows.

A small input's time is that of the calls; and by constant statistics, an input of any size is one
pass of PyTorch's kernel, which only what is fused behind it can make a loop of ours worth. That
kernel normalizes and moves the running statistics in one, and its backward needs no Python; what it
does worse than the other paths is seen afterwards, before anything has changed.
"""

from __future__ import annotations

import math

import torch

from homeostat.ops.torch.choice import prefers_loops
from homeostat.ops.torch.elements import Tensor, activated, finish_in_place
from homeostat.ops.torch.native import ILL_CONDITIONED

# Elements up to which the calls outweigh what better kernels save; more where PyTorch's kernels are
# exact: those for channels that come first are, the others lose digits with the rows they add up.
SMALL, SMALL_OF_FEW_ROWS, SMALL_FIRST = 1 << 15, 1 << 17, 1 << 18
FEW_ROWS = 512


def few_calls_are_best(x: Tensor, *, trains: bool, fused: bool) -> bool:
    """Return whether x, of shape (N, C, ...), is best normalized in few calls.

    Args:
        x: the input.
        trains: whether by its own moments.
        fused: whether there is an activation or a residual.
    """
    size, first = x.numel(), x.dim() > 2 and x.is_contiguous()
    if size <= SMALL or not (trains or fused):
        return True
    if trains and not first:
        return size <= SMALL_OF_FEW_ROWS and size <= FEW_ROWS * x.shape[1]
    if trains and size > SMALL_FIRST:
        return False
    inner = size // (x.shape[0] * x.shape[1]) if first else 1
    purpose, order = "train" if trains else "infer+", "first" if first else "last"
    return not prefers_loops(purpose, order, x.element_size(), size, inner)


def small_step(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    residual: Tensor | None,
    running_mean: Tensor,
    running_variance: Tensor,
    momentum: float,
    epsilon: float,
    slope: float | None,
) -> Tensor | None:
    """Normalize with the batch's moments and move the running statistics, which average samples'.

    The numbers are those of `normalize_batch` and `homeostat.moments.advance`.

    Args:
        x: of shape (N, C, ...), on the CPU.
        gamma: of shape (C,) and the statistics' dtype, or None for 1.
        beta: like gamma, or None for 0.
        residual: of x's shape and dtype, or None.
        running_mean: of shape (C,), float64 for an x of float64, else float32; moved in place.
        running_variance: like running_mean.
        momentum: weight of the old value.
        epsilon: added to the variance.
        slope: the activation's slope for negative values, or None for no activation.

    Returns:
        y; or None, with nothing changed, where the batch is not finite or so badly conditioned
        that this kernel would lose digits.
    """
    mean, variance = running_mean.clone(), running_variance.clone()
    y, batch_mean, scale = torch.native_batch_norm(
        x, gamma, beta, mean, variance, True, 1.0 - momentum, epsilon
    )
    if not _conditioned(batch_mean, scale) or not math.isfinite(torch.dot(mean, variance).item()):
        return None
    running_mean.copy_(mean)
    running_variance.copy_(variance)
    return activated(y if residual is None else y + residual, slope)


def small_inference(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    epsilon: float,
    slope: float | None,
) -> Tensor | None:
    """Return what `homeostat.ops.torch.normalize` does for constant statistics.

    Args:
        x: as in `small_step`, like all that follows.
        gamma: or None for 1.
        beta: or None for 0.
        residual: or None.
        mean: requires no gradient.
        variance: requires no gradient.
        epsilon: added to the variance.
        slope: the activation's slope for negative values, or None for no activation.

    Returns:
        y, or None where this kernel would lose digits.
    """
    if not _conditioned(mean, torch.rsqrt(variance + epsilon)):
        return None
    y = torch.native_batch_norm(x, gamma, beta, mean, variance, False, 0.0, epsilon)[0]
    return finish_in_place(y, residual, slope)


def _conditioned(mean: Tensor, scale: Tensor) -> bool:
    """Return whether all channels' means are small enough in standard deviations, and finite.

    NaN and infinity survive every product and sum, and are not below a bound.
    """
    ratio = mean * scale
    return torch.dot(ratio, ratio).item() <= ILL_CONDITIONED
