"""Batch normalization on JAX arrays, with a hand-written backward.

Reverse mode of any order, `jit`, `vmap`, `scan`, `checkpoint`, `pmap` and `shard_map`; forward mode
(`jvp`, `jacfwd`, `hessian`) is refused by `jax.custom_vjp`: take `jacrev(jacrev(f))` for a Hessian.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from homeostat.layout import Layout
from homeostat.moments import Moments
from homeostat.ops.arguments import check, statistics_dtype
from homeostat.spec import Activation

Array = Any


def moments(
    x: Array,
    axis: int | Iterable[int] = -1,
    *,
    weights: Array | None = None,
    all_reduce: Callable[[Array], Array] | None = None,
) -> Moments:
    """Return the count, mean and population variance of each channel.

    mean = sum(w x) / W and variance = sum(w (x - mean)**2) / W with W = sum(w), the variance
    centred, so it is neither negative nor lost to cancellation. With nothing to average (W = 0)
    both are 0.

    Args:
        x: array of any rank >= 2 (or 1 with a batch axis only through a list of axes), floating.
        axis: channel axis or axes.
        weights: weights or mask, of the averaged axes' shape or their leading part, or None.
        all_reduce: sums an array over all replicas, such as ``lambda a: jax.lax.psum(a, "batch")``,
            or None for this process alone.

    Returns:
        `Moments`, detached, float32 (float64 for float64 inputs), arrays of the channel shape. The
        count is a Python int where neither weights nor all_reduce is given.

    Raises:
        ShapeError: a shape does not fit.
        DTypeError: x is not floating.

    Example:
        >>> import jax.numpy as jnp
        >>> batch = moments(jnp.array([[1.0, 10.0], [3.0, 30.0]]))
        >>> batch.count, batch.mean.tolist(), batch.variance.tolist()
        (2, [2.0, 20.0], [1.0, 100.0])
    """
    x, weights = _array(x), _array(weights)
    layout = check(x, axis, weights=weights)
    return _moments(x, layout, _spread_weights(weights, x, layout), all_reduce)


def normalize(
    x: Array,
    mean: Array,
    variance: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    axis: int | Iterable[int] = -1,
    epsilon: float = 1e-3,
    activation: Any = None,
    residual: Array | None = None,
) -> Array:
    """Return activation(gamma * (x - mean) / sqrt(variance + epsilon) + beta + residual).

    Gradients go to every array, to mean and variance too.

    Args:
        x: array of any rank >= 2, floating.
        mean: of the channel shape.
        variance: of the channel shape, the population variance.
        gamma: of the channel shape, or None for 1.
        beta: of the channel shape, or None for 0.
        axis: channel axis or axes.
        epsilon: added to the variance.
        activation: None, "relu" or "leaky_relu" (see `homeostat.Activation`).
        residual: of x's shape, added before the activation, or None.

    Returns:
        Array of x's shape and dtype.

    Raises:
        ShapeError: a shape does not fit.
        DTypeError: an array is not floating.
        SpecError: epsilon or the activation is not valid.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[1.0], [3.0]])
        >>> y = normalize(x, jnp.array([2.0]), jnp.array([4.0]), epsilon=0.0, activation="relu")
        >>> y.tolist()
        [[0.0], [0.5]]
    """
    x, residual = _array(x), _array(residual)
    mean, variance, gamma, beta = map(_array, (mean, variance, gamma, beta))
    layout = check(
        x, axis, epsilon=epsilon, residual=residual,
        mean=mean, variance=variance, gamma=gamma, beta=beta,
    )  # fmt: skip
    plan = _Plan(layout, float(epsilon), _slope(activation), residual_dtype=_dtype(residual))
    return _normalized(plan, _operands(layout, x, mean, variance, gamma, beta, residual))


def normalize_batch(
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    axis: int | Iterable[int] = -1,
    epsilon: float = 1e-3,
    weights: Array | None = None,
    activation: Any = None,
    residual: Array | None = None,
    batch: Moments | None = None,
    all_reduce: Callable[[Array], Array] | None = None,
) -> tuple[Array, Moments]:
    """Normalize with the batch's own moments (Ioffe & Szegedy 2015, Algorithm 1).

    The backward goes through the moments, by the paper's formula. With g = dy * activation'(z),
    x_hat = (x - mean) * s, s = 1 / sqrt(variance + epsilon) and W = sum(w)::

        dbeta = sum(g)    dgamma = sum(g * x_hat)    dresidual = g
        dx    = gamma * s * (g - (w / W) * (dbeta + x_hat * dgamma))

    It keeps x, arrays of the channel shape and, with both an activation and a residual, y. With
    all_reduce, dx takes the sums over all replicas, while dgamma and dbeta stay this replica's
    share, to be summed with the other gradients.

    Args:
        x: array of any rank >= 2, floating.
        gamma: of the channel shape, or None for 1.
        beta: of the channel shape, or None for 0.
        axis: channel axis or axes.
        epsilon: added to the variance.
        weights: weights or mask of the statistics (see `moments`), or None.
        activation: None, "relu" or "leaky_relu".
        residual: of x's shape, added before the activation, or None.
        batch: the moments of this very x, where they are known already, or None.
        all_reduce: sums an array over all replicas, or None for this process alone.

    Returns:
        y, of x's shape and dtype, and the batch's `Moments`, detached.

    Raises:
        ShapeError: a shape does not fit.
        DTypeError: an array is not floating.
        SpecError: epsilon or the activation is not valid.

    Example:
        >>> import jax.numpy as jnp
        >>> y, batch = normalize_batch(jnp.array([[1.0], [3.0]]), epsilon=0.0)
        >>> y.tolist(), batch.mean.tolist()
        ([[-1.0], [1.0]], [2.0])
    """
    x, weights, residual = _array(x), _array(weights), _array(residual)
    gamma, beta = _array(gamma), _array(beta)
    layout = check(
        x, axis, epsilon=epsilon, weights=weights, residual=residual, gamma=gamma, beta=beta
    )
    plan = _Plan(
        layout, float(epsilon), _slope(activation), _dtype(residual),
        through_moments=True, all_reduce=all_reduce,
    )  # fmt: skip
    weights = _spread_weights(weights, x, layout)
    if batch is None:
        batch = _moments(x, layout, weights, all_reduce)
    mean, variance = jax.lax.stop_gradient((batch.mean, batch.variance))
    batch = Moments(batch.count, mean, variance)
    operands = _operands(layout, x, mean, variance, gamma, beta, residual)
    count = jax.lax.stop_gradient(jnp.asarray(batch.count, operands.mean.dtype))
    share = _vary_like(_spread(1 / _divisor(count), layout), x)
    return _normalized(plan, operands._replace(weights=weights, share=share)), batch


class _Plan(NamedTuple):
    """What is known while tracing."""

    layout: Layout
    epsilon: float
    slope: float | None
    residual_dtype: Any = None
    through_moments: bool = False
    all_reduce: Callable[[Array], Array] | None = None


class _Operands(NamedTuple):
    """What is not: x and residual of x's shape, the others ready to broadcast against it."""

    x: Array
    mean: Array
    variance: Array
    gamma: Array | None = None
    beta: Array | None = None
    residual: Array | None = None
    weights: Array | None = None
    share: Array | None = None


def _array(array: Any) -> Array | None:
    return None if array is None else jnp.asarray(array)


def _dtype(array: Array | None) -> Any:
    return None if array is None else array.dtype


def _slope(activation: Any) -> float | None:
    act = Activation.of(activation)
    return None if act is None else act.negative_slope


def _spread(channels: Array, layout: Layout) -> Array:
    return channels.reshape(layout.broadcast_shape) if channels.ndim else channels


def _spread_weights(weights: Array | None, x: Array, layout: Layout) -> Array | None:
    if weights is None:
        return None
    full = weights.reshape(layout.weights_shape(weights.shape))
    averaged = [1 if a in layout.channel_axes else n for a, n in enumerate(x.shape)]
    full = jnp.broadcast_to(full, averaged).astype(statistics_dtype(x))
    return jax.lax.stop_gradient(full)


def _operands(
    layout: Layout, x: Array, mean: Any, variance: Any, gamma: Any, beta: Any, residual: Any
) -> _Operands:
    statistics = statistics_dtype(x)

    def channels(array: Array | None) -> Array | None:
        if array is None:
            return None
        return _spread(_vary_like(array.astype(statistics), x), layout)

    mean, variance, gamma, beta = map(channels, (mean, variance, gamma, beta))
    return _Operands(x, mean, variance, gamma, beta, residual)


def _vary_like(array: Array, x: Array) -> Array:
    # Under shard_map a replicated array must be marked as varying before a custom gradient takes
    # it: the mark's transpose then sums its gradient over the replicas, as autodiff would.
    missing = _varying(x) - _varying(array)
    return jax.lax.pcast(array, tuple(missing), to="varying") if missing else array


def _varying(array: Array) -> frozenset[str]:
    typeof = getattr(jax, "typeof", None)
    return getattr(typeof(array), "vma", frozenset()) if typeof else frozenset()


def _divisor(count: Array) -> Array:
    return jnp.where(count > 0, count, 1)


def _moments(
    x: Array,
    layout: Layout,
    weights: Array | None,
    all_reduce: Callable[[Array], Array] | None,
) -> Moments:
    x = jax.lax.stop_gradient(x)
    batch = _local_moments(x, layout, weights)
    return batch if all_reduce is None else _reduced(batch, x, all_reduce)


def _local_moments(x: Array, layout: Layout, weights: Array | None) -> Moments:
    x = x.astype(statistics_dtype(x))
    count: Array = layout.count
    divisor: Array = max(layout.count or 0, 1)
    if weights is not None:
        count = jnp.sum(weights)
        divisor = _divisor(count)
        x = jnp.where(weights > 0, x, 0)

    def average(values: Array) -> Array:
        weighted = values if weights is None else values * weights
        return jnp.sum(weighted, layout.reduction_axes) / divisor

    mean = average(x)
    # How far rounding left the mean from where it should be: small numbers, so nearly exact. The
    # three sums share no operand but x (hence x + -m and m - x): XLA on the CPU would write a
    # shared one to memory, at the cost of a new tensor.
    offset = average(x + _spread(-mean, layout))
    variance = average(jnp.square(_spread(mean, layout) - x)) - jnp.square(offset)
    return Moments(count, mean + offset, jnp.maximum(variance, 0))


def _reduced(batch: Moments, x: Array, all_reduce: Callable[[Array], Array]) -> Moments:
    local = _vary_like(jnp.asarray(batch.count, batch.mean.dtype), x)
    count = all_reduce(local)
    divisor = _divisor(count)
    mean = all_reduce(batch.mean * local) / divisor
    delta = batch.mean - mean
    offset = all_reduce(delta * local) / divisor
    spread = all_reduce((batch.variance + jnp.square(delta)) * local) / divisor
    return Moments(count, mean + offset, jnp.maximum(spread - jnp.square(offset), 0))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _moments_of(plan: _Plan, operands: _Operands) -> tuple[Array, Array]:
    """Return the moments given, as the functions of x that they are when differentiated."""
    return operands.mean, operands.variance


def _moments_of_forward(plan: _Plan, operands: _Operands) -> Any:
    mean, variance = _moments_of(plan, operands)
    return (mean, variance), operands._replace(mean=mean, variance=variance)


def _moments_of_backward(plan: _Plan, operands: _Operands, gradients: Any) -> Any:
    dmean, dvariance = gradients if plan.all_reduce is None else map(plan.all_reduce, gradients)
    dx = _share(operands) * (dmean + 2 * _counted(operands) * dvariance)
    none = _Operands(*[None] * len(operands))
    return (none._replace(x=dx.astype(operands.x.dtype)),)


_moments_of.defvjp(_moments_of_forward, _moments_of_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalized(plan: _Plan, operands: _Operands) -> Array:
    y = _before_activation(operands, plan.epsilon)
    if operands.residual is not None:
        y = y + operands.residual.astype(y.dtype)
    if plan.slope is not None:
        y = jnp.where(y > 0, y, plan.slope * y) if plan.slope else jnp.maximum(y, 0)
    return y.astype(operands.x.dtype)


def _normalized_forward(plan: _Plan, operands: _Operands) -> Any:
    if plan.through_moments:
        # The formula below is the whole first derivative; further ones find the way to x here.
        bare = operands._replace(gamma=None, beta=None, residual=None)
        mean, variance = _moments_of(plan, bare)
        operands = operands._replace(mean=mean, variance=variance)
    y = _normalized(plan, operands)
    recomputed = plan.slope is None or operands.residual is None
    return y, (operands._replace(residual=None), None if recomputed else y)


def _normalized_backward(plan: _Plan, kept: Any, dy: Array) -> Any:
    operands, y = kept
    x, mean, variance = operands.x, operands.mean, operands.variance
    g = dy.astype(mean.dtype)
    if plan.slope is not None:
        z = _before_activation(operands, plan.epsilon) if y is None else y
        g = jnp.where(z > 0, g, plan.slope * g if plan.slope else 0)
    s = 1 / jnp.sqrt(variance + plan.epsilon)
    a = s if operands.gamma is None else s * operands.gamma
    # As in the moments, x + -m: this sum shares no operand with the rest.
    products = g * (x.astype(mean.dtype) + -mean)
    if operands.weights is not None:
        # A masked NaN with no gradient of its own stays out of gamma's.
        products = jnp.where(g == 0, 0, products)
    dbeta = _sum(g, plan)
    centred_g = _sum(products, plan)
    gradients = _Operands(
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


_normalized.defvjp(_normalized_forward, _normalized_backward)


def _before_activation(operands: _Operands, epsilon: float) -> Array:
    a = 1 / jnp.sqrt(operands.variance + epsilon)
    if operands.gamma is not None:
        a = a * operands.gamma
    # Subtract before scaling: x * a + (beta - mean * a) loses the digits of a large mean.
    z = (operands.x.astype(a.dtype) - operands.mean) * a
    return z if operands.beta is None else z + operands.beta


def _sum(values: Array, plan: _Plan) -> Array:
    return jnp.sum(values, plan.layout.reduction_axes, keepdims=True)


def _share(operands: _Operands) -> Array:
    return operands.share if operands.weights is None else operands.share * operands.weights


def _counted(operands: _Operands) -> Array:
    """Return x - mean, 0 where the weight is 0."""
    centred = operands.x.astype(operands.mean.dtype) - operands.mean
    return centred if operands.weights is None else jnp.where(operands.weights > 0, centred, 0)
