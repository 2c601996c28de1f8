"""Keras's batch norm and ours on Keras, on whichever backend the process has chosen."""

from __future__ import annotations

from typing import Any

import keras

from homeostat.bench.cases import EPSILON, Case, Inputs
from homeostat.keras import BatchNormalization

MOMENTUM = 0.99


def make_layer(column: str, case: Case, inputs: Inputs, momentum: float = MOMENTUM) -> Any:
    """Return the built layer of a column, its weights those of the inputs.

    Args:
        column: ``"keras"`` or ``"homeostat.keras"``.
        case: what is asked; ours takes its activation in.
        inputs: whose parameters and statistics the layer gets.
        momentum: weight of the old moving value.
    """
    dtype = "mixed_bfloat16" if case.dtype == "bfloat16" else "float32"
    options: dict[str, Any] = {"axis": case.axis, "momentum": momentum, "epsilon": EPSILON}
    if column == "keras":
        layer = keras.layers.BatchNormalization(**options, dtype=dtype)
    else:
        activation = "relu" if case.relu else None
        layer = BatchNormalization(**options, activation=activation, dtype=dtype)
    layer.build(case.place(inputs.x).shape)
    layer.gamma.assign(inputs.gamma)
    layer.beta.assign(inputs.beta)
    layer.moving_mean.assign(inputs.mean)
    layer.moving_variance.assign(inputs.variance)
    return layer


def call_layer(layer: Any, x: Any, residual: Any, training: bool) -> Any:
    """Return our layer's output, the residual taken in where there is one."""
    extra = {} if residual is None else {"residual": residual}
    return layer(x, training=training, **extra)
