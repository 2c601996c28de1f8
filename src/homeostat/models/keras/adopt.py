"""Give a Keras batch norm another's arrays and options, and run it alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np

from homeostat.errors import SpecError, UnsupportedError
from homeostat.models.records import ARRAYS, BatchNormRecord


def adopt(name: str, norm: Any, record: BatchNormRecord) -> None:
    """Give a norm another's arrays and options; see `LiveModel.adopt`.

    Raises:
        SpecError: a value is not finite in the norm's dtype, or the norm has no place for one.
        UnsupportedError: Keras's own norm cannot average all batches.
    """
    if record.cumulative and not hasattr(norm, "spec"):
        raise UnsupportedError(
            f"{record.name!r} keeps the average of all batches, which keras.layers."
            f"BatchNormalization cannot: expected homeostat.keras.BatchNormalization at {name!r}. "
            "Convert the target with homeostat.keras.convert first."
        )
    prepared: list[tuple[Any, Any]] = []
    for key in ARRAYS:
        variable, value = getattr(norm, key, None), getattr(record, key)
        if value is None:
            continue
        if variable is None or int(np.prod(variable.shape)) != value.size:
            raise SpecError(
                f"{name!r} has no {key} of {value.size} channels: expected one that takes "
                f"{record.name!r}. Make it with center and scale, and as many channels."
            )
        new = keras.ops.convert_to_tensor(
            np.asarray(value, np.float64).reshape(variable.shape), variable.dtype
        )
        if not np.isfinite(np.asarray(keras.ops.convert_to_numpy(new), np.float64)).all():
            raise SpecError(
                f"{key} of {record.name!r} is not finite in {variable.dtype}: expected finite "
                "numbers. Repair the source first."
            )
        prepared.append((variable, new))
    for variable, new in prepared:
        variable.assign(new)
    _follow(norm, record.epsilon)
    momentum = None if record.momentum is None else float(f"{record.momentum:.12g}")
    if hasattr(norm, "spec"):
        changes: dict[str, Any] = {}
        if record.epsilon is not None:
            changes["epsilon"] = record.epsilon
        if momentum is not None or record.cumulative:
            changes["momentum"] = momentum
        norm.spec = replace(norm.spec, **changes)
        return
    norm.epsilon = norm.epsilon if record.epsilon is None else record.epsilon
    norm.momentum = norm.momentum if momentum is None else momentum


def _follow(norm: Any, epsilon: float | None) -> None:
    """Have what renorm keeps beside the moving statistics follow them."""
    if getattr(norm, "moving_stddev", None) is None:
        return
    epsilon = norm.epsilon if epsilon is None else epsilon
    stddev = keras.ops.sqrt(norm.moving_variance + epsilon)
    norm.moving_stddev.assign(stddev)
    norm.renorm_mean.assign(norm.moving_mean)
    norm.renorm_stddev.assign(stddev)


def normalize_alone(norm: Any, inputs: Any) -> np.ndarray[Any, Any]:
    """Return a norm's inference of inputs (examples, channels), without its activation."""
    axes = norm.axis if isinstance(norm.axis, list | tuple) else [norm.axis]
    if len(axes) > 1:
        raise UnsupportedError(
            f"{norm.name!r} keeps statistics along several axes: expected one channel axis. Leave "
            "it out with a mapping."
        )
    x = np.asarray(inputs)
    shape = [len(x)] + [1] * (norm.input_spec.ndim - 1)
    shape[axes[0]] = x.shape[1]
    x = x.reshape(shape)
    kept = norm.spec if hasattr(norm, "spec") else None
    try:
        if kept is not None:
            norm.spec = replace(kept, activation=None)
        y = norm(keras.ops.convert_to_tensor(x, norm.compute_dtype), training=False)
    finally:
        if kept is not None:
            norm.spec = kept
    return np.asarray(keras.ops.convert_to_numpy(y), np.float64).reshape(np.shape(inputs))
