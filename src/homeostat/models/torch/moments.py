"""Float64 moments of what comes to a batch norm."""

from __future__ import annotations

import torch

from homeostat.errors import UnsupportedError
from homeostat.moments import Moments, merge

Tensor = torch.Tensor

# Elements at a time: what a processor's cache holds in float64, and what a device computes at once.
_AT_ONCE = {"cpu": 1 << 18}
_ON_DEVICES = 1 << 26


def moments_of(x: Tensor, weights: Tensor | None = None) -> Moments:
    """Return the moments of each channel in float64, part by part.

    In each part mean = sum(w x) / W and variance = sum(w (x - mean)**2) / W; the parts are merged
    by their counts (Chan, Golub & LeVeque 1979), so that memory does not grow with x.

    Args:
        x: of shape (N, C, ...), floating.
        weights: of shape (N,), positive, float64, on x's device; None for 1.

    Returns:
        Float64 tensors of shape (C,) on x's device (on the CPU where that has no float64), and the
        count, a number.

    Raises:
        UnsupportedError: x is complex or its first axis is not that of the weights.

    Example:
        >>> moments_of(torch.tensor([[1.0], [4.0]]), torch.tensor([2.0, 1.0]).double())
        Moments(count=3.0, mean=tensor([2.], dtype=torch.float64), variance=tensor([2.], \
dtype=torch.float64))
    """
    x = x.detach()
    if not x.is_floating_point():
        raise UnsupportedError(
            f"the input of a batch norm is {x.dtype}: expected real floating numbers. Convert it."
        )
    if weights is not None and len(weights) != len(x):
        raise UnsupportedError(
            f"{len(weights)} weighted examples came to a batch norm as {len(x)}: expected as many, "
            "to weight each. Use weights of 0 and 1, which leave examples out beforehand."
        )
    if x.device.type == "mps":
        x = x.cpu()
        weights = None if weights is None else weights.cpu()
    channels = x.shape[1]
    total = Moments(0.0, *torch.zeros(2, channels, dtype=torch.float64, device=x.device))
    size = max(1, x[:1].numel())
    step = max(1, _AT_ONCE.get(x.device.type, _ON_DEVICES) // size)
    for start in range(0, len(x) if x.numel() else 0, step):
        part = slice(start, start + step)
        total = merge(total, _part(x[part], None if weights is None else weights[part]), torch)
    return total


def _part(x: Tensor, weights: Tensor | None) -> Moments:
    others = [axis for axis in range(x.dim()) if axis != 1]
    shape = [-1 if axis == 1 else 1 for axis in range(x.dim())]
    elements = x.numel() // x.shape[1]
    # A copy, since what follows writes into it.
    x = x.to(torch.float64, copy=True)
    if weights is None:
        count = float(elements)
        mean = x.sum(others) / count
        centred = x.sub_(mean.view(shape))
        return Moments(count, mean, centred.mul_(centred).sum(others) / count)
    w = weights.view([-1] + [1] * (x.dim() - 1))
    count = float(weights.sum()) * (elements // len(x))
    mean = (x * w).sum(others) / count
    centred = x.sub_(mean.view(shape))
    return Moments(count, mean, centred.mul_(centred).mul_(w).sum(others) / count)
