"""The small pieces that every path shares: dtypes, channel shapes, the activation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from homeostat.layout import Layout
from homeostat.ops.arguments import check
from homeostat.ops.torch.memory import PLAIN, Memory, memory_of
from homeostat.spec import Activation

Tensor = torch.Tensor
AllReduce = Callable[[Tensor], Tensor]
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class Call(NamedTuple):
    """What one call asks for besides its tensors' values.

    Args:
        layout: of the input.
        epsilon: added to the variance.
        slope: the activation's, or None for none.
        memory: how the input lies, or None where the compiled loops cannot take it.
        all_reduce: sums a tensor over all replicas, or None.
        dtypes: of the input, gamma, beta and the residual, None for one that there is not.
    """

    layout: Layout
    epsilon: float
    slope: float | None
    memory: Memory | None = None
    all_reduce: AllReduce | None = None
    dtypes: tuple[torch.dtype | None, ...] = ()


class _Like(NamedTuple):
    """What the check of an argument looks at."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def call_of(
    x: Tensor,
    axis: int | Iterable[int],
    epsilon: float,
    activation: Any,
    gamma: Tensor | None,
    beta: Tensor | None,
    residual: Tensor | None,
    weights: Tensor | None = None,
) -> Call:
    """Check the arguments of a call, once for those that look alike, and return what it asks for.

    Args:
        x: the input.
        axis: see `homeostat.ops.arguments.check`.
        epsilon: see there.
        activation: of any form.
        gamma: see there, or None.
        beta: see there, or None.
        residual: see there, or None.
        weights: see there, or None.
    """
    # The compiler looks through no cache.
    traced = torch.compiler.is_compiling() or torch._C._is_tracing()
    plain = type(axis) is int or (type(axis) is tuple and all(type(a) is int for a in axis))
    if plain and not traced and type(activation) in _ACTIVATIONS:
        looks: list[Any] = []
        for t in (x, gamma, beta, residual, weights):
            if t is not None and type(t) not in PLAIN:
                break
            looks.append(None if t is None else (t.shape, t.dtype))
        else:
            if x.layout is torch.strided:
                return _alike(axis, epsilon, activation, x.stride(), *looks)
    layout = check(
        x, axis, epsilon=epsilon, gamma=gamma, beta=beta, residual=residual, weights=weights
    )
    memory = None if traced else Memory.of(x, layout.channel_axes)
    each = _dtypes(x, gamma, beta, residual)
    return Call(layout, epsilon, slope_of(activation), memory, dtypes=each)


_ACTIVATIONS = (type(None), str, Activation)


@functools.lru_cache(maxsize=4096)
def _alike(
    axis: Any, epsilon: float, activation: Any, strides: tuple[int, ...], *looks: Any
) -> Call:
    x, gamma, beta, residual, weights = (None if look is None else _Like(*look) for look in looks)
    layout = check(
        x, axis, epsilon=epsilon, gamma=gamma, beta=beta, residual=residual, weights=weights
    )
    memory = memory_of(x.shape, strides, x.dtype, layout.channel_axes)
    each = _dtypes(x, gamma, beta, residual)
    return Call(layout, epsilon, slope_of(activation), memory, dtypes=each)


def _dtypes(*tensors: Tensor | _Like | None) -> tuple[torch.dtype | None, ...]:
    return tuple(None if t is None else t.dtype for t in tensors)


def statistics(x: Tensor) -> torch.dtype:
    """Return the dtype of x's statistics."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def slope_of(activation: Any) -> float | None:
    """Return the slope for negative values, or None without an activation."""
    act = Activation.of(activation)
    return None if act is None else act.negative_slope


def transformed() -> bool:
    """Return whether a transform of torch.func, such as vmap, is under way."""
    return torch._C._are_functorch_transforms_active()


def spread(channels: Tensor, layout: Layout) -> Tensor:
    """Return channels shaped to broadcast against the input."""
    return channels.reshape(layout.broadcast_shape)


def flat(channels: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return channels as a vector of a dtype, or None for None."""
    if channels is None or (channels.dtype == dtype and channels.dim() == 1):
        return channels
    return channels.to(dtype).flatten()


def fit(t: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """Return t in a shape and a dtype, at no cost where it has them: small calls feel each op."""
    if dtype is not None and t.dtype != dtype:
        t = t.to(dtype)
    return t if t.shape == shape else t.reshape(shape)


def finish(
    centred: Tensor,
    scale: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    residual: Tensor | None,
    call: Call,
) -> Tensor:
    """Return activation(gamma * scale * centred + beta + residual), in centred's dtype."""
    if gamma is not None:
        scale = scale * gamma.to(scale.dtype)
    z = centred * spread(scale, call.layout)
    if beta is not None:
        z = z + spread(beta.to(z.dtype), call.layout)
    if residual is not None:
        z = z + residual.to(z.dtype)
    return activated(z, call.slope)


def activated(z: Tensor, slope: float | None) -> Tensor:
    """Return z behind the activation."""
    if slope is None:
        return z
    # A slope of 0 makes -0 of a negative value and NaN of minus infinity.
    return z.relu() if slope == 0.0 else functional.leaky_relu(z, slope)


def finish_in_place(z: Tensor, residual: Tensor | None, slope: float | None) -> Tensor:
    """Add the residual to z and apply the activation, in z's own memory."""
    if residual is not None:
        z.add_(residual)
    if slope is None:
        return z
    return z.relu_() if slope == 0.0 else functional.leaky_relu_(z, slope)


def behind_activation(dy: Tensor, y: Tensor | None, slope: float | None) -> Tensor:
    """Return dy times the activation's derivative, which the sign of y tells."""
    if slope is None:
        return dy
    if slope == 0.0:
        return torch.ops.aten.threshold_backward(dy, y, 0)
    return torch.ops.aten.leaky_relu_backward(dy, y, slope, True)


def as_asked(ctx: Any, found: Gradients, g: Tensor, shape: torch.Size) -> tuple[Any, ...]:
    """Return the gradients to x, gamma, beta and the residual that autograd asks for.

    Args:
        ctx: has the `Call` as ``call``.
        found: dx, dgamma and dbeta in any dtype, the latter two of any shape.
        g: the gradient behind the activation.
        shape: x's shape.
    """
    channels = ctx.call.layout.channel_shape
    asked = zip(
        (*found, g),
        (shape, channels, channels, shape),
        ctx.call.dtypes,
        ctx.needs_input_grad[:4],
        strict=True,
    )
    return tuple(fit(t, s, dtype) if need else None for t, s, dtype, need in asked)
