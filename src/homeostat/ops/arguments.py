"""The one check of the arguments of every function in `homeostat.ops`, whatever the library."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from homeostat.errors import DTypeError, ShapeError
from homeostat.layout import Layout, known_sizes
from homeostat.spec import check_epsilon

FLOATING = ("float16", "bfloat16", "float32", "float64")


def dtype_name(array: Any) -> str:
    """Return the dtype of a NumPy, TensorFlow, PyTorch or JAX array as a plain word."""
    dtype = array.dtype
    return getattr(dtype, "name", None) or str(dtype).removeprefix("torch.")


def statistics_dtype(array: Any) -> str:
    """Return the dtype in which an array's statistics are kept: float32, or float64 for float64."""
    return "float64" if dtype_name(array) == "float64" else "float32"


def check(
    x: Any,
    axis: int | Iterable[int],
    *,
    epsilon: float | None = None,
    weights: Any = None,
    residual: Any = None,
    **channels: Any,
) -> Layout:
    """Check the arguments of one call and return the input's layout.

    Args:
        x: the input.
        axis: its channel axis or axes.
        epsilon: added to the variance, or None where there is none.
        weights: weights or mask, or None.
        residual: added before the activation, or None.
        **channels: arrays that must have the channel shape, or None each.

    Raises:
        DTypeError: an array has a dtype that is not floating.
        ShapeError: an axis or a shape does not fit.
        SpecError: epsilon is not a finite number >= 0.
    """
    for name, array in (("x", x), ("residual", residual), *channels.items()):
        if array is not None and hasattr(array, "dtype") and dtype_name(array) not in FLOATING:
            raise DTypeError(
                f"{name} has dtype {dtype_name(array)}: expected one of {', '.join(FLOATING)}. "
                "Convert it first, for example to float32."
            )
    if x.shape is None or getattr(x.shape, "rank", 0) is None:
        raise ShapeError(
            "x has unknown rank: expected a known number of axes. Set its shape first, for "
            "example with x = tf.ensure_shape(x, (None, 28, 28, 1))."
        )
    layout = Layout.of(known_sizes(x), axis)
    if epsilon is not None:
        check_epsilon(epsilon)
    layout.check_channels(**channels)
    layout.check_residual(residual)
    if weights is not None:
        layout.weights_shape(known_sizes(weights))
    return layout
