"""Moments of an array in float64, whatever its dtype: what an adapter says of a norm's inputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from homeostat.layout import Layout
from homeostat.moments import Moments

# Elements that are taken at once: float64 copies of so many stay in a core's cache.
_AT_ONCE = 1 << 16


def pool(x: Any, layout: Layout, weights: Any = None) -> Moments:
    """Return the moments of each channel of a NumPy array, accumulated in float64.

    With a pivot p, an element of the channel: mean = p + sum(w * (x - p)) / n and variance =
    sum(w * (x - p)**2) / n - (mean - p)**2, n = sum(w) (Chan, Golub & LeVeque 1983, "shifted
    data"). Elements of weight 0 do not count, even if they are NaN. No elements give count, mean
    and variance 0.

    Args:
        x: the array.
        layout: which axes are channels.
        weights: of the elements, in one of the shapes that `Layout.weights_shape` takes; or None.

    Returns:
        Count, mean and population variance: float64, mean and variance of shape (channels,), the
        channels of several axes in their order.

    Example:
        >>> import numpy as np
        >>> x = np.array([[1.0], [3.0], [np.nan]], "float32")
        >>> moments = pool(x, Layout.of((3, 1), -1), np.array([1, 1, 0]))
        >>> float(moments.count), moments.mean.tolist(), moments.variance.tolist()
        (2.0, [2.0], [1.0])
    """
    x = np.asarray(x)
    if weights is not None:
        given = np.asarray(weights, np.float64)
        full = [1 if a in layout.channel_axes else n for a, n in enumerate(x.shape)]
        weights = np.broadcast_to(given.reshape(layout.weights_shape(given.shape)), full)
    count, pivot, first, second = 0.0, None, 0.0, 0.0
    for rows, weight in _parts(x, layout, weights):
        if not len(rows):
            continue
        # An element of the data keeps the squares small where the mean is far from zero.
        pivot = rows[0].astype(np.float64) if pivot is None else pivot
        # Infinities and NaN go into the result as they are.
        with np.errstate(invalid="ignore", over="ignore"):
            shifted = rows - pivot
            first = first + weight @ shifted
            np.multiply(shifted, shifted, out=shifted)
            second = second + weight @ shifted
        count += float(weight.sum())
    if pivot is None or count == 0:
        channels = np.zeros(int(np.prod([x.shape[a] for a in layout.channel_axes])))
        return Moments(np.float64(0.0), channels, channels.copy())
    with np.errstate(invalid="ignore", over="ignore"):
        offset = first / count
        variance = np.maximum(second / count - offset * offset, 0.0)
        return Moments(np.float64(count), pivot + offset, variance)


def _parts(x: Any, layout: Layout, weights: Any) -> Iterator[tuple[Any, Any]]:
    """Yield parts of an array as rows of channels, and the weight of each row."""
    channels = layout.channel_axes
    ones = np.ones(max(1, _AT_ONCE))
    for part, weight in _examples(x, layout, weights):
        rows = np.moveaxis(part, channels, range(part.ndim - len(channels), part.ndim))
        rows = rows.reshape(-1, int(np.prod([x.shape[a] for a in channels])))
        if weight is not None:
            # Without the axes of the channels, which have one element.
            weight = np.moveaxis(weight, channels, range(part.ndim - len(channels), part.ndim))
            weight = weight.reshape(-1)
        step = max(1, _AT_ONCE // max(1, rows.shape[1]))
        for start in range(0, len(rows), step):
            piece = rows[start : start + step]
            if weight is None:
                yield piece, ones[: len(piece)]
                continue
            chosen = weight[start : start + step]
            yield piece[chosen != 0], chosen[chosen != 0]


def _examples(x: Any, layout: Layout, weights: Any) -> Iterator[tuple[Any, Any]]:
    """Yield what can be viewed as rows of channels whole, and one example after another else."""
    if layout.channels_last or 0 in layout.channel_axes:
        yield x, weights
        return
    for at in range(len(x)):
        yield x[at : at + 1], None if weights is None else weights[at : at + 1]
