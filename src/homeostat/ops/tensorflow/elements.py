"""The elements that a TensorFlow batch norm averages, and sums over them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
from tensorflow.python.ops import control_flow_util

from homeostat.layout import Layout, known_sizes
from homeostat.ops.arguments import statistics_dtype
from homeostat.spec import Activation

Tensor = Any


# A float32 sum over n rows, one after the other, is off by about 1e-10 n: more rows than these are
# summed side by side, in groups. A mean may be large against its spread, so its sums are shorter.
LONGEST_SUM = 2**11
LONGEST_DOT = 2**14
# The batch that is expected where its size is unknown.
LIKELY_BATCH = 64
# Elements up to which an input is small.
FEW = 2**15


@functools.cache
def gpu_present() -> bool:
    """Return whether TensorFlow sees a GPU: then no branch may wait for a value on the device."""
    return bool(tf.config.list_physical_devices("GPU"))


def in_xla() -> bool:
    """Return whether what is being traced will be compiled by XLA."""
    return control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def _sum_rows(rows: Tensor) -> Tensor:
    return tf.matmul(tf.ones([1, tf.shape(rows)[0]], rows.dtype), rows)


def _dot_rows(first: Tensor, second: Tensor) -> Tensor:
    # The filter gradient of a 1x1 depthwise convolution is this very sum, and reads its inputs
    # once where a product and a sum would write and read the product as well.
    rows, channels = known_sizes(first)
    channels = channels or tf.shape(first)[1]
    view = [1, 1, -1, channels]
    sums = tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
        input=tf.reshape(first, view),
        filter_sizes=[1, 1, channels, 1],
        out_backprop=tf.reshape(second, view),
        strides=[1, 1, 1, 1],
        padding="VALID",
    )
    # Without rows the op leaves its output as the memory was.
    return sums if rows else tf.where(tf.shape(first)[0] > 0, sums, tf.zeros_like(sums))


def sizes_of(x: Tensor, layout: Layout) -> tuple[Any, ...]:
    """Return the sizes of x's axes, ints where they are known and scalars elsewhere."""
    dynamic = tf.shape(x) if None in layout.shape else ()
    return tuple(dynamic[a] if n is None else n for a, n in enumerate(layout.shape))


def product(sizes: tuple[Any, ...]) -> Any:
    """Multiply sizes, an int if they all are."""
    known = math.prod(n for n in sizes if isinstance(n, int))
    unknown = [n for n in sizes if not isinstance(n, int)]
    if not unknown:
        return known
    rest = unknown[0] if len(unknown) == 1 else tf.reduce_prod(tf.stack(unknown))
    return rest if known == 1 else rest * known


def spread(channels: Tensor, x: Tensor, layout: Layout) -> Tensor:
    """Reshape per-channel values to broadcast against x."""
    return _spread(channels, sizes_of(x, layout), layout)


def _spread(channels: Tensor, sizes: tuple[Any, ...], layout: Layout) -> Tensor:
    if layout.channels_last:
        return channels
    axes = layout.channel_axes
    return tf.reshape(channels, [n if a in axes else 1 for a, n in enumerate(sizes)])


def _spread_weights(weights: Tensor, sizes: tuple[Any, ...], layout: Layout) -> Tensor:
    """Broadcast weights to the input's sizes, with 1 at the channel axes."""
    if weights.shape.rank != len(sizes):
        named = dict(zip(layout.reduction_axes, range(weights.shape.rank), strict=False))
        given = tf.shape(weights)
        view = [given[named[a]] if a in named else 1 for a in range(len(sizes))]
        weights = tf.reshape(weights, view)
    full = [1 if a in layout.channel_axes else n for a, n in enumerate(sizes)]
    return tf.broadcast_to(weights, full)


def _divisor(count: Any, weights: Tensor | None) -> Any:
    """Return the count, or 1 where there is nothing to average."""
    if isinstance(count, int):
        return max(count, 1)
    if weights is None:
        return tf.maximum(count, 1.0)
    return tf.where(count > 0, count, tf.ones_like(count))


@dataclass(frozen=True)
class Elements:
    """An input's layout, weights and replicas: what its statistics are taken over.

    Args:
        layout: the input's layout.
        shape: the input's shape, sizes as ints where they are known and as tensors elsewhere.
        count: elements, or summed weights, per channel and over all replicas: an int or a scalar.
        divisor: the count, or 1 where there is nothing to average.
        dtype: the dtype of the statistics.
        weights: weights that broadcast against the input, in the statistics' dtype, or None.
        all_reduce: sums a tensor over all replicas, or None.
    """

    layout: Layout
    shape: tuple[Any, ...]
    count: Any
    divisor: Any
    dtype: str
    weights: Tensor | None
    all_reduce: Callable[[Tensor], Tensor] | None

    @classmethod
    def of(
        cls,
        x: Tensor,
        layout: Layout,
        weights: Tensor | None,
        all_reduce: Callable[[Tensor], Tensor] | None,
    ) -> Elements:
        """Gather them for one call."""
        dtype = statistics_dtype(x)
        shape = sizes_of(x, layout)
        count: Any = layout.count
        if count is None:
            count = tf.cast(product(tuple(shape[a] for a in layout.reduction_axes)), dtype)
        if weights is not None:
            weights = _spread_weights(tf.cast(weights, dtype), shape, layout)
            count = tf.reduce_sum(weights)
        if all_reduce is not None:
            count = all_reduce(tf.cast(count, dtype))
        return cls(layout, shape, count, _divisor(count, weights), dtype, weights, all_reduce)

    @property
    def few(self) -> bool:
        """Whether there is so little to compute that in a session the number of ops is the cost.

        Not in eager code or `tf.function`, which spend less on an op.
        """
        if tf.compat.v1.executing_eagerly_outside_functions() or gpu_present():
            return False
        return math.prod(LIKELY_BATCH if n is None else n for n in self.layout.shape) <= FEW

    @property
    def plain(self) -> bool:
        """Whether every element counts alike and only this replica's do."""
        return self.weights is None and self.all_reduce is None

    @property
    def channel_shape(self) -> list[Any]:
        """The channel shape, sizes as in ``shape``."""
        return [self.shape[a] for a in self.layout.channel_axes]

    def affine(self, gamma: Tensor | None, beta: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return gamma and beta, ones and zeros in the place of None."""
        return (
            tf.ones(self.channel_shape, self.dtype) if gamma is None else gamma,
            tf.zeros(self.channel_shape, self.dtype) if beta is None else beta,
        )

    def spread(self, channels: Tensor) -> Tensor:
        """Reshape per-channel values to broadcast against the input."""
        return _spread(channels, self.shape, self.layout)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the averaged axes of this replica, one value for each channel."""
        axes = self.layout.reduction_axes
        if gpu_present() or self.few:
            return tf.reduce_sum(values, axes)
        if not self.layout.channels_last:
            # Outer and inner axes in one reduction are added one element after the other on a CPU,
            # which is slower and 3e-5 off over 1e5 elements.
            inner = [a for a in axes if a > 0]
            values = tf.reduce_sum(values, inner) if inner else values
            if 0 not in axes:
                return values
        # On a CPU a product with ones uses every core, under XLA too, where a reduction does not.
        return self._grouped(_sum_rows, LONGEST_SUM, values)

    def dot(self, first: Tensor, second: Tensor) -> Tensor:
        """Sum first * second as `sum` does."""
        if not self._as_rows or self.few or in_xla() or self.weights is not None:
            return self.sum(first * second)
        return self._grouped(_dot_rows, LONGEST_DOT, first, second)

    @property
    def _as_rows(self) -> bool:
        return self.layout.channels_last and not gpu_present()

    def _grouped(self, total: Callable[..., Tensor], longest: int, *arrays: Tensor) -> Tensor:
        """Sum rows by ``total``, so many side by side that no float32 sum is over ``longest``."""
        channels = product(tuple(self.channel_shape))
        averaged = self.layout.reduction_axes if self.layout.channels_last else (0,)
        rows = product(tuple(self.shape[a] for a in averaged))
        flat = [tf.reshape(array, [rows, channels]) for array in arrays]
        known = isinstance(rows, int)
        if known and rows <= longest:
            return tf.reshape(total(*flat), self.channel_shape)
        group = 1 << (rows // longest).bit_length() if known else 64
        rest = rows % group
        wide = [tf.reshape(array[: rows - rest], [-1, group * channels]) for array in flat]
        summed = tf.reduce_sum(tf.reshape(total(*wide), [group, channels]), 0)
        if not known or rest:
            summed += tf.reshape(total(*(array[rows - rest :] for array in flat)), [channels])
        return tf.reshape(summed, self.channel_shape)

    def mean(self, values: Tensor) -> Tensor:
        """Return the weighted mean over the averaged axes of all replicas."""
        if self.weights is not None:
            values = tf.where(self.weights > 0, values * self.weights, tf.zeros_like(values))
        return self.reduced(self.sum(values)) / self.divisor

    def mean_square(self, values: Tensor) -> Tensor:
        """Return the weighted mean of values**2, as `mean` does."""
        if self.weights is not None:
            return self.mean(values * values)
        return self.reduced(self.dot(values, values)) / self.divisor

    def reduced(self, channels: Tensor) -> Tensor:
        """Sum per-channel values over all replicas."""
        return channels if self.all_reduce is None else self.all_reduce(channels)


def finish(z: Tensor, residual: Tensor | None, activation: Activation | None, dtype: Any) -> Tensor:
    """Return activation(z + residual) in the output's dtype."""
    if residual is not None:
        z = z + tf.cast(residual, z.dtype)
    if activation is not None:
        slope = activation.negative_slope
        if slope and z.dtype == tf.float64:
            # The op holds its slope in float32.
            z = tf.maximum(z, slope * z)
        else:
            z = tf.nn.leaky_relu(z, slope) if slope else tf.nn.relu(z)
    return tf.cast(z, dtype)


def through_activation(dy: Tensor, y: Tensor, activation: Activation | None) -> Tensor:
    """Return dy * activation'(z), read off the output: y > 0 exactly where z > 0."""
    if activation is None:
        return dy
    if activation.negative_slope and dy.dtype == tf.float64:
        return tf.where(y > 0, dy, activation.negative_slope * dy)
    if activation.negative_slope:
        return tf.raw_ops.LeakyReluGrad(gradients=dy, features=y, alpha=activation.negative_slope)
    return tf.raw_ops.ReluGrad(gradients=dy, features=y)
