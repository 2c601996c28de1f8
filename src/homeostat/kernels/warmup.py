"""Compiles the loops ahead, so that the first step of a training does not wait for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from homeostat.kernels import batchnorm

# Elements as the loops take them: the bits of float16 and bfloat16.
DTYPES = {
    "float32": np.float32,
    "bfloat16": np.int16,
    "float16": np.uint16,
    "float64": np.float64,
}
SHAPES = {"channels last": batchnorm.Shape(4, 3, 1), "channels first": batchnorm.Shape(2, 3, 5)}
# The activation's slope, and whether there is a residual.
FUSED = ((None, False), (0.0, False), (None, True), (0.0, True))


def steps(dtypes: tuple[str, ...] = tuple(DTYPES)) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield what is compiled, by name, each with the call that does it.

    Args:
        dtypes: of the tensors.
    """
    for dtype in dtypes:
        for order, shape in SHAPES.items():
            for slope, residual in FUSED:
                parts = ("ReLU" if slope is not None else "", "residual" if residual else "")
                name = " + ".join(part for part in (f"{dtype}, {order}", *parts) if part)
                yield name, lambda d=dtype, s=shape, a=slope, r=residual: _step(DTYPES[d], s, a, r)


def _step(dtype: Any, shape: batchnorm.Shape, slope: float | None, residual: bool) -> None:
    x = np.zeros(shape.outer * shape.channels * shape.inner, dtype)
    y, dx = np.empty_like(x), np.empty_like(x)
    mean, variance = batchnorm.moments(x, shape, 1)
    kind = batchnorm.statistics_dtype(x)
    by = batchnorm.coefficients(mean, variance, None, None, 1e-3, kind)
    batchnorm.normalize(x, x if residual else None, y, shape, by, slope, 1)
    kept = y if residual and slope is not None else None
    g = None if kept is None else np.empty_like(x)
    batchnorm.gradients(x, x, kept, dx, g, shape, by, slope, 1)
