"""Normalization of JAX arrays with moments that are given, and its hand-written backward."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from homeostat.layout import Layout
from homeostat.ops.arguments import statistics_dtype
from homeostat.ops.jax.statistics import fits_kernel, kernel, rows_of, spread, vary_like
from homeostat.spec import Activation

Array = Any


class Plan(NamedTuple):
    """What is known while tracing."""

    layout: Layout
    epsilon: float
    slope: float | None
    residual_dtype: Any = None
    through_moments: bool = False
    all_reduce: Callable[[Array], Array] | None = None


class Operands(NamedTuple):
    """What is not: x and residual of x's shape, the others ready to broadcast against it."""

    x: Array
    mean: Array
    variance: Array
    gamma: Array | None = None
    beta: Array | None = None
    residual: Array | None = None
    weights: Array | None = None
    share: Array | None = None


def dtype_of(array: Array | None) -> Any:
    """Return an array's dtype, or None for None."""
    return None if array is None else array.dtype


def slope_of(activation: Any) -> float | None:
    """Return the slope for negative values, or None without an activation."""
    act = Activation.of(activation)
    return None if act is None else act.negative_slope


def operands_of(
    layout: Layout, x: Array, mean: Any, variance: Any, gamma: Any, beta: Any, residual: Any
) -> Operands:
    """Gather the arrays of one call, channels ready to broadcast against x."""
    statistics = statistics_dtype(x)

    def channels(array: Array | None) -> Array | None:
        if array is None:
            return None
        return spread(vary_like(array.astype(statistics), x), layout)

    mean, variance, gamma, beta = map(channels, (mean, variance, gamma, beta))
    return Operands(x, mean, variance, gamma, beta, residual)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _moments_of(plan: Plan, operands: Operands) -> tuple[Array, Array]:
    """Return the moments given, as the functions of x that they are when differentiated."""
    return operands.mean, operands.variance


def _moments_of_forward(plan: Plan, operands: Operands) -> Any:
    mean, variance = _moments_of(plan, operands)
    return (mean, variance), operands._replace(mean=mean, variance=variance)


def _moments_of_backward(plan: Plan, operands: Operands, gradients: Any) -> Any:
    dmean, dvariance = gradients if plan.all_reduce is None else map(plan.all_reduce, gradients)
    dx = _share(operands) * (dmean + 2 * _counted(operands) * dvariance)
    none = Operands(*[None] * len(operands))
    return (none._replace(x=dx.astype(operands.x.dtype)),)


_moments_of.defvjp(_moments_of_forward, _moments_of_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def normalized(plan: Plan, operands: Operands) -> Array:
    """Return activation(gamma * (x - mean) / sqrt(variance + epsilon) + beta + residual)."""
    y = _before_activation(operands, plan.epsilon)
    if operands.residual is not None:
        y = y + operands.residual.astype(y.dtype)
    if plan.slope is not None:
        y = jnp.where(y > 0, y, plan.slope * y) if plan.slope else jnp.maximum(y, 0)
    return y.astype(operands.x.dtype)


def _normalized_forward(plan: Plan, operands: Operands) -> Any:
    if plan.through_moments:
        # The formula below is the whole first derivative; further ones find the way to x here.
        bare = operands._replace(gamma=None, beta=None, residual=None)
        mean, variance = _moments_of(plan, bare)
        operands = operands._replace(mean=mean, variance=variance)
    y = normalized(plan, operands)
    recomputed = plan.slope is None or operands.residual is None
    return y, (operands._replace(residual=None), None if recomputed else y)


def _normalized_backward(plan: Plan, kept: Any, dy: Array) -> Any:
    operands, y = kept
    x, variance = operands.x, operands.variance
    g = _behind_activation(plan, operands, y, dy)
    s = 1 / jnp.sqrt(variance + plan.epsilon)
    a = s if operands.gamma is None else s * operands.gamma
    by_kernel = operands.weights is None and fits_kernel(operands.x, plan.layout)
    sums = _sums_by_kernel if by_kernel else _sums
    dbeta, centred_g = sums(plan, operands, y, dy)
    gradients = Operands(
        x=a * g,
        mean=-a * dbeta,
        variance=-0.5 * a * jnp.square(s) * centred_g,
        gamma=None if operands.gamma is None else s * centred_g,
        beta=None if operands.beta is None else dbeta,
        residual=None if plan.residual_dtype is None else g.astype(plan.residual_dtype),
    )
    if plan.through_moments:
        if plan.all_reduce is not None:
            dbeta, centred_g = plan.all_reduce(dbeta), plan.all_reduce(centred_g)
        through = dbeta + _counted(operands) * (jnp.square(s) * centred_g)
        dx = a * (g - _share(operands) * through)
        gradients = gradients._replace(x=dx, mean=None, variance=None)
    return (gradients._replace(x=gradients.x.astype(x.dtype)),)


normalized.defvjp(_normalized_forward, _normalized_backward)


def _behind_activation(plan: Plan, operands: Operands, y: Array | None, dy: Array) -> Array:
    g = dy.astype(operands.mean.dtype)
    if plan.slope is None:
        return g
    z = _before_activation(operands, plan.epsilon) if y is None else y
    return jnp.where(z > 0, g, plan.slope * g if plan.slope else 0)


def _sums(plan: Plan, operands: Operands, y: Array | None, dy: Array) -> tuple[Array, Array]:
    """Return the sums of g, the gradient behind the activation, and of g * (x - mean)."""
    g = _behind_activation(plan, operands, y, dy)
    # Not x - mean: XLA on the CPU would write an operand that this sum shares with the rest to
    # memory, at the cost of a new tensor.
    products = g * (operands.x.astype(g.dtype) + -operands.mean)
    if operands.weights is not None:
        # A masked NaN with no gradient of its own stays out of gamma's.
        products = jnp.where(g == 0, 0, products)
    axes = plan.layout.reduction_axes
    return jnp.sum(g, axes, keepdims=True), jnp.sum(products, axes, keepdims=True)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sums_by_kernel(
    plan: Plan, operands: Operands, y: Array | None, dy: Array
) -> tuple[Array, Array]:
    """Return the same as `_sums`."""

    def by_kernel(operands: Operands, y: Array | None, dy: Array) -> tuple[Array, ...]:
        a = 1 / jnp.sqrt(operands.variance + plan.epsilon)
        a = a if operands.gamma is None else a * operands.gamma
        b = jnp.zeros_like(a) if operands.beta is None else operands.beta
        mean, a, b = (channels.reshape(-1) for channels in (operands.mean, a, b))
        x, y, dy = (None if t is None else rows_of(t, plan.layout) for t in (operands.x, y, dy))
        sums = kernel().gradient_sums(x, dy, mean, slope=plan.slope, y=y, scale=a, shift=b)
        return tuple(sums.reshape(2, *plan.layout.broadcast_shape))

    return jax.lax.platform_dependent(operands, y, dy, cpu=by_kernel, default=partial(_sums, plan))


def _sums_by_kernel_forward(plan: Plan, *arguments: Any) -> Any:
    return _sums_by_kernel(plan, *arguments), arguments


def _sums_by_kernel_backward(plan: Plan, arguments: Any, gradients: Any) -> Any:
    return jax.vjp(partial(_sums, plan), *arguments)[1](gradients)


_sums_by_kernel.defvjp(_sums_by_kernel_forward, _sums_by_kernel_backward)


def _before_activation(operands: Operands, epsilon: float) -> Array:
    a = 1 / jnp.sqrt(operands.variance + epsilon)
    if operands.gamma is not None:
        a = a * operands.gamma
    # Subtract before scaling: x * a + (beta - mean * a) loses the digits of a large mean.
    z = (operands.x.astype(a.dtype) - operands.mean) * a
    return z if operands.beta is None else z + operands.beta


def _share(operands: Operands) -> Array:
    return operands.share if operands.weights is None else operands.share * operands.weights


def _counted(operands: Operands) -> Array:
    """Return x - mean, 0 where the weight is 0."""
    centred = operands.x.astype(operands.mean.dtype) - operands.mean
    return centred if operands.weights is None else jnp.where(operands.weights > 0, centred, 0)
