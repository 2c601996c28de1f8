"""The small pieces that every path shares: dtypes, channel shapes, the activation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from homeostat.layout import Layout
from homeostat.ops.arguments import check
from homeostat.spec import Activation

Tensor = torch.Tensor
AllReduce = Callable[[Tensor], Tensor]
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class Call(NamedTuple):
    """What one call asks for besides its tensors; slope is the activation's, or None for none."""

    layout: Layout
    epsilon: float
    slope: float | None
    all_reduce: AllReduce | None = None


class _Like(NamedTuple):
    """What the check of an argument looks at."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def call_of(
    x: Tensor,
    axis: int | Iterable[int],
    epsilon: float,
    activation: Any,
    all_reduce: AllReduce | None,
    **others: Any,
) -> Call:
    """Check the arguments of a call, once for those that look alike, and return what it asks for.

    Args:
        x: the input.
        axis: see `homeostat.ops.arguments.check`.
        epsilon: see there.
        activation: of any form.
        all_reduce: see `Call`.
        **others: the other tensors, or None each.
    """
    given = {"x": x, **others}
    plain = isinstance(axis, int) and isinstance(activation, str | Activation | None)
    # The compiler looks through no cache.
    plain = plain and not torch.compiler.is_compiling() and not torch.jit.is_tracing()
    if plain and all(t is None or type(t) in _TENSORS for t in given.values()):
        looks = tuple(None if t is None else _Like(t.shape, t.dtype) for t in given.values())
        call = _alike(axis, epsilon, activation, tuple(given), looks)
    else:
        layout = check(axis=axis, epsilon=epsilon, **given)
        call = Call(layout, epsilon, slope_of(activation))
    return call if all_reduce is None else call._replace(all_reduce=all_reduce)


_TENSORS = (torch.Tensor, torch.nn.Parameter)


@functools.lru_cache(maxsize=4096)
def _alike(
    axis: int, epsilon: float, activation: Any, names: tuple[str, ...], looks: tuple[Any, ...]
) -> Call:
    layout = check(axis=axis, epsilon=epsilon, **dict(zip(names, looks, strict=True)))
    return Call(layout, epsilon, slope_of(activation))


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


def dtypes(*tensors: Tensor | None) -> tuple[torch.dtype | None, ...]:
    """Return the tensors' dtypes, None for None."""
    return tuple(None if t is None else t.dtype for t in tensors)


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
        ctx: has the `Call` as ``call`` and the four arguments' dtypes as ``dtypes``.
        found: dx, dgamma and dbeta in any dtype, the latter two of any shape.
        g: the gradient behind the activation.
        shape: x's shape.
    """
    channels = ctx.call.layout.channel_shape
    asked = zip(
        (*found, g),
        (shape, channels, channels, shape),
        ctx.dtypes,
        ctx.needs_input_grad[:4],
        strict=True,
    )
    return tuple(fit(t, s, dtype) if need else None for t, s, dtype, need in asked)
