"""The moments of a JAX array's channels, over one process or over replicas."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from homeostat import kernels
from homeostat.layout import Layout
from homeostat.moments import Moments
from homeostat.ops.arguments import statistics_dtype

Array = Any

# Elements up to which a pass over them costs less than a branch around it.
SMALL = 2**18
# Elements from which on the CPU kernels are called.
LEAST = 2**14


def spread(channels: Array, layout: Layout) -> Array:
    """Shape channels to broadcast against the input."""
    return channels.reshape(layout.broadcast_shape) if channels.ndim else channels


def spread_weights(weights: Array | None, x: Array, layout: Layout) -> Array | None:
    """Broadcast weights to the averaged axes of x, in the statistics' dtype; None stays None."""
    if weights is None:
        return None
    full = weights.reshape(layout.weights_shape(weights.shape))
    averaged = [1 if a in layout.channel_axes else n for a, n in enumerate(x.shape)]
    full = jnp.broadcast_to(full, averaged).astype(statistics_dtype(x))
    return jax.lax.stop_gradient(full)


def vary_like(array: Array, x: Array) -> Array:
    """Mark an array as varying over the replicas that x varies over."""
    # Under shard_map a replicated array must be marked as varying before a custom gradient takes
    # it: the mark's transpose then sums its gradient over the replicas, as autodiff would.
    missing = _varying(x) - _varying(array)
    return jax.lax.pcast(array, tuple(missing), to="varying") if missing else array


def _varying(array: Array) -> frozenset[str]:
    if not hasattr(jax, "typeof"):
        return frozenset()
    kind = jax.typeof(array)
    return getattr(getattr(kind, "manual_axis_type", kind), "varying", frozenset())


def divisor_of(count: Array) -> Array:
    """Return the count, or 1 where there is nothing to average."""
    return jnp.where(count > 0, count, 1)


def moments_of_elements(
    x: Array,
    layout: Layout,
    weights: Array | None,
    all_reduce: Callable[[Array], Array] | None,
) -> Moments:
    """Return x's moments, detached, over all replicas where there is an all_reduce."""
    x = jax.lax.stop_gradient(x)
    batch = _local_moments(x, layout, weights)
    return batch if all_reduce is None else _reduced(batch, x, all_reduce)


def fits_kernel(x: Array, layout: Layout) -> bool:
    """Return whether the CPU kernels take x: large float32 rows of channels, on one CPU.

    Over several devices XLA could not divide their work.
    """
    axes = layout.channel_axes
    return (
        x.dtype == jnp.float32
        and x.size >= LEAST
        and axes[-1] - axes[0] + 1 == len(axes)
        and axes[-1] == x.ndim - 1
        and jax.default_backend() == "cpu"
        and jax.local_device_count() == 1
        and kernels.enabled()
        and kernel().available()
    )


def kernel() -> Any:
    """Return the module of the CPU kernels, which needs numba."""
    from homeostat.kernels import xla

    return xla


def rows_of(x: Array, layout: Layout) -> Array:
    """Shape x, channels last, as the kernels take it."""
    return x.reshape(-1, math.prod(layout.known_channel_shape))


# Compiled as one, so that a call outside of `jit` does not compile the branches anew each time.
@partial(jax.jit, static_argnums=1)
def _mean_and_variance(
    x: Array, layout: Layout, weights: Array | None, divisor: Array
) -> tuple[Array, Array]:
    def average(of: Callable[[Array], Array]) -> Array:
        values = of(x.astype(statistics_dtype(x)))
        if weights is not None:
            values = jnp.where(weights > 0, values, 0) * weights
        return jnp.sum(values, layout.reduction_axes) / divisor

    mean = average(lambda x: x)
    variance = average(lambda x: jnp.square(x - spread(mean, layout)))

    def corrected() -> tuple[Array, Array]:
        # How far rounding left the mean from where it should be: small numbers, so nearly exact.
        offset = average(lambda x: x - spread(mean, layout))
        return mean + offset, jnp.maximum(variance - jnp.square(offset), 0)

    def corrected_if_needed() -> tuple[Array, Array]:
        near = jnp.all(jnp.square(mean) <= 100 * variance)
        return jax.lax.cond(near, lambda: (mean, variance), corrected)

    if x.size <= SMALL:
        return corrected()
    # The CPU saves a pass over data that are centred well enough. Elsewhere the pass is fused with
    # the variance's, and the branch would cost a synchronization with the host.
    return jax.lax.platform_dependent(cpu=corrected_if_needed, default=corrected)


def _local_moments(x: Array, layout: Layout, weights: Array | None) -> Moments:
    count = layout.count if weights is None else jnp.sum(weights)
    divisor = max(layout.count or 0, 1) if weights is None else divisor_of(count)
    if weights is None and fits_kernel(x, layout):
        shape = (2, *layout.known_channel_shape)
        # Chosen where it is compiled for: what is traced on a CPU may be for another platform.
        found = jax.lax.platform_dependent(
            x,
            cpu=lambda x: tuple(kernel().moments(rows_of(x, layout)).reshape(shape)),
            default=lambda x: _mean_and_variance(x, layout, None, divisor),
        )
        return Moments(count, *found)
    return Moments(count, *_mean_and_variance(x, layout, weights, divisor))


def _reduced(batch: Moments, x: Array, all_reduce: Callable[[Array], Array]) -> Moments:
    local = vary_like(jnp.asarray(batch.count, batch.mean.dtype), x)
    count = all_reduce(local)
    divisor = divisor_of(count)
    mean = all_reduce(batch.mean * local) / divisor
    delta = batch.mean - mean
    offset = all_reduce(delta * local) / divisor
    spread = all_reduce((batch.variance + jnp.square(delta)) * local) / divisor
    return Moments(count, mean + offset, jnp.maximum(spread - jnp.square(offset), 0))
