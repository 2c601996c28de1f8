"""The functions of `batchnorm` for any caller: PyTorch's operators while something traces.

`torch.compile` and other tracers see operators ``homeostat::gpu_...`` and, inside of them, the
kernels. Eager calls pass the dispatcher by, which costs more than small tensors take. What is
traced knows its shape: another one is compiled anew.
"""

from __future__ import annotations

import torch
from torch.library import triton_op
from torch.utils._python_dispatch import _get_current_dispatch_mode

from homeostat.kernels.gpu import batchnorm
from homeostat.kernels.gpu.launch import traceable
from homeostat.kernels.gpu.moving import Moving
from homeostat.kernels.gpu.plans import Shape

Tensor = torch.Tensor


def moments(x: Tensor, shape: Shape) -> Tensor:
    """See `batchnorm.moments`."""
    if _is_traced(x):
        return _moments(x, *shape)
    return batchnorm.moments(x, shape)


def train(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    residual: Tensor | None,
    shape: Shape,
    epsilon: float,
    slope: float | None,
    moving: Moving | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `batchnorm.train`; while something traces, nothing may move."""
    if moving is None and _is_traced(x):
        return _train(x, gamma, beta, residual, *shape, epsilon, slope)
    return batchnorm.train(x, gamma, beta, residual, shape, epsilon, slope, moving)


def normalize(
    x: Tensor,
    moments: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    residual: Tensor | None,
    shape: Shape,
    epsilon: float,
    slope: float | None,
) -> tuple[Tensor, Tensor]:
    """See `batchnorm.normalize`."""
    if _is_traced(x):
        return _normalize(x, moments, gamma, beta, residual, *shape, epsilon, slope)
    return batchnorm.normalize(x, moments, gamma, beta, residual, shape, epsilon, slope)


def backward(
    x: Tensor,
    dy: Tensor,
    y: Tensor | None,
    kept: Tensor,
    shape: Shape,
    slope: float | None,
    count: int | Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """See `batchnorm.backward`; returns dx, dgamma, dbeta and g."""
    if _is_traced(x):
        if count is not None:
            sums, g = gradient_sums(x, dy, y, kept, shape, slope)
            dx = input_gradient(x, dy, g, kept, sums, count, shape, slope)
            return dx, *sums.to(kept.dtype).unbind(), g
        dx, results, g = _backward(x, dy, y, kept, *shape, slope)
    else:
        dx, results, g = batchnorm.backward(x, dy, y, kept, shape, slope, count)
    return dx, *results.unbind(), _written(g)


def gradient_sums(
    x: Tensor, dy: Tensor, y: Tensor | None, kept: Tensor, shape: Shape, slope: float | None
) -> tuple[Tensor, Tensor | None]:
    """See `batchnorm.gradient_sums`."""
    if _is_traced(x):
        sums, g = _gradient_sums(x, dy, y, kept, *shape, slope)
        return sums, _written(g)
    return batchnorm.gradient_sums(x, dy, y, kept, shape, slope)


def input_gradient(
    x: Tensor,
    dy: Tensor,
    g: Tensor | None,
    kept: Tensor,
    sums: Tensor,
    count: int | Tensor,
    shape: Shape,
    slope: float | None,
) -> Tensor:
    """See `batchnorm.input_gradient`."""
    if not _is_traced(x):
        return batchnorm.input_gradient(x, dy, g, kept, sums, count, shape, slope)
    if isinstance(count, torch.Tensor):
        return _input_gradient(x, dy, g, kept, sums, count, 0, *shape, slope)
    return _input_gradient(x, dy, g, kept, sums, None, count, *shape, slope)


def _is_traced(x: Tensor) -> bool:
    """Return whether something watches operations on x, or x is more than its memory."""
    if torch.compiler.is_compiling():
        return True
    return type(x) not in (Tensor, torch.nn.Parameter) or _get_current_dispatch_mode() is not None


# An operator's outputs are tensors, there or not, and none is a view of another.


def _absent(g: Tensor | None, x: Tensor) -> Tensor:
    return x.new_empty(0) if g is None else g


def _written(g: Tensor | None) -> Tensor | None:
    return None if g is None or g.numel() == 0 else g


@triton_op("homeostat::gpu_moments", mutates_args=())
def _moments(x: Tensor, outer: int, channels: int, inner: int) -> Tensor:
    with traceable():
        return batchnorm.moments(x, Shape(int(outer), int(channels), int(inner)))


@triton_op("homeostat::gpu_train", mutates_args=())
def _train(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    residual: Tensor | None,
    outer: int,
    channels: int,
    inner: int,
    epsilon: float,
    slope: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = Shape(int(outer), int(channels), int(inner))
    with traceable():
        return batchnorm.train(x, gamma, beta, residual, shape, epsilon, slope)


@triton_op("homeostat::gpu_normalize", mutates_args=())
def _normalize(
    x: Tensor,
    moments: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    residual: Tensor | None,
    outer: int,
    channels: int,
    inner: int,
    epsilon: float,
    slope: float | None,
) -> tuple[Tensor, Tensor]:
    shape = Shape(int(outer), int(channels), int(inner))
    with traceable():
        return batchnorm.normalize(x, moments, gamma, beta, residual, shape, epsilon, slope)


@triton_op("homeostat::gpu_backward", mutates_args=())
def _backward(
    x: Tensor,
    dy: Tensor,
    y: Tensor | None,
    kept: Tensor,
    outer: int,
    channels: int,
    inner: int,
    slope: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = Shape(int(outer), int(channels), int(inner))
    with traceable():
        dx, results, g = batchnorm.backward(x, dy, y, kept, shape, slope)
        return dx, results, _absent(g, x)


@triton_op("homeostat::gpu_gradient_sums", mutates_args=())
def _gradient_sums(
    x: Tensor,
    dy: Tensor,
    y: Tensor | None,
    kept: Tensor,
    outer: int,
    channels: int,
    inner: int,
    slope: float | None,
) -> tuple[Tensor, Tensor]:
    shape = Shape(int(outer), int(channels), int(inner))
    with traceable():
        sums, g = batchnorm.gradient_sums(x, dy, y, kept, shape, slope)
        return sums, _absent(g, x)


@triton_op("homeostat::gpu_input_gradient", mutates_args=())
def _input_gradient(
    x: Tensor,
    dy: Tensor,
    g: Tensor | None,
    kept: Tensor,
    sums: Tensor,
    counted: Tensor | None,
    count: int,
    outer: int,
    channels: int,
    inner: int,
    slope: float | None,
) -> Tensor:
    shape = Shape(int(outer), int(channels), int(inner))
    with traceable():
        n = int(count) if counted is None else counted
        return batchnorm.input_gradient(x, dy, g, kept, sums, n, shape, slope)
