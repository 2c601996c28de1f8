"""Batch normalization on JAX arrays, with a hand-written backward.

Reverse mode of any order, `jit`, `vmap`, `scan`, `checkpoint`, `pmap` and `shard_map`; forward mode
(`jvp`, `jacfwd`, `hessian`) is refused by `jax.custom_vjp`: take `jacrev(jacrev(f))` for a Hessian.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from homeostat.moments import Moments
from homeostat.ops.arguments import check
from homeostat.ops.jax.normalization import Plan, dtype_of, normalized, operands_of, slope_of
from homeostat.ops.jax.statistics import (
    divisor_of,
    moments_of_elements,
    spread,
    spread_weights,
    vary_like,
)

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
    return moments_of_elements(x, layout, spread_weights(weights, x, layout), all_reduce)


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
    plan = Plan(layout, float(epsilon), slope_of(activation), residual_dtype=dtype_of(residual))
    return normalized(plan, operands_of(layout, x, mean, variance, gamma, beta, residual))


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
    plan = Plan(
        layout, float(epsilon), slope_of(activation), dtype_of(residual),
        through_moments=True, all_reduce=all_reduce,
    )  # fmt: skip
    weights = spread_weights(weights, x, layout)
    if batch is None:
        batch = moments_of_elements(x, layout, weights, all_reduce)
    mean, variance = jax.lax.stop_gradient((batch.mean, batch.variance))
    batch = Moments(batch.count, mean, variance)
    operands = operands_of(layout, x, mean, variance, gamma, beta, residual)
    count = jax.lax.stop_gradient(jnp.asarray(batch.count, operands.mean.dtype))
    share = vary_like(spread(1 / divisor_of(count), layout), x)
    return normalized(plan, operands._replace(weights=weights, share=share)), batch


def _array(array: Any) -> Array | None:
    return None if array is None else jnp.asarray(array)
