"""Compiles the loops ahead, so that the first step of a training does not wait for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from homeostat.kernels import batchnorm

# Elements as the loops take them: the bits of float16 and bfloat16.
DTYPES = {
    "float32": "float32",
    "bfloat16": "int16",
    "float16": "uint16",
    "float64": "float64",
}
SHAPES = {"channels last": batchnorm.Shape(4, 3, 1), "channels first": batchnorm.Shape(2, 3, 5)}


def steps(dtypes: tuple[str, ...] = tuple(DTYPES)) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield what is compiled, by name, each with the call that does it.

    Args:
        dtypes: of the tensors.
    """
    for dtype in dtypes:
        for order, shape in SHAPES.items():
            yield f"{dtype}, {order}", lambda d=dtype, s=shape: _step(DTYPES[d], s)


def _step(dtype: str, shape: batchnorm.Shape) -> None:
    x, y, dx = np.zeros((3, shape.outer * shape.channels * shape.inner), dtype)
    statistics = np.zeros((2, shape.channels), batchnorm.statistics_dtype(dtype))
    updates = np.zeros(1, np.int64)
    x, y, dx, mean, variance, updates = (
        array.ctypes.data for array in (x, y, dx, *statistics, updates)
    )
    moving = batchnorm.Moving(mean, variance, updates, (0.5, 0.5, 0.5))
    batch = batchnorm.Batch(batchnorm.plan_of(dtype, shape), 1e-3, 0.0)
    batch.train(x, 0, y, 0, 0, 1, moving=moving)
    batch.gradients(x, x, 0, dx, 0, mean, variance, 1)
