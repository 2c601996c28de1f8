"""The layers of Keras that a batch norm can be folded into, and those that let one through."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import layers

from homeostat.models.foldable import Kernel, LinearOp
from homeostat.models.graph import Kind

_KINDS: dict[type, Kind] = {
    layers.Dense: "dense",
    **dict.fromkeys((layers.Conv1D, layers.Conv2D, layers.Conv3D), "conv"),
    **dict.fromkeys((layers.DepthwiseConv1D, layers.DepthwiseConv2D), "depthwise_conv"),
    **dict.fromkeys((layers.SeparableConv1D, layers.SeparableConv2D), "separable_conv"),
    **dict.fromkeys(
        (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose), "conv_transpose"
    ),
    **dict.fromkeys((layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D), "pad"),
    **dict.fromkeys(
        (
            *(layers.Dropout, layers.SpatialDropout1D, layers.SpatialDropout2D),
            *(layers.SpatialDropout3D, layers.AlphaDropout, layers.GaussianDropout),
            layers.GaussianNoise,
        ),
        "dropout",
    ),
    # These do to each channel what they do to all, and add nothing.
    **dict.fromkeys(
        (
            *(layers.Identity, layers.ActivityRegularization),
            *(layers.Cropping1D, layers.Cropping2D, layers.Cropping3D),
            *(layers.UpSampling1D, layers.UpSampling3D),
        ),
        "identity",
    ),
}
LINEAR_LAYERS = tuple(cls for cls in _KINDS if _KINDS[cls] == "dense" or "conv" in _KINDS[cls])


def kind_of(operation: Any) -> Kind:
    """Return what an operation does, as folding needs it: ``"other"`` for what stops it."""
    if type(operation) is layers.Activation and operation.activation is keras.activations.linear:
        return "identity"
    if type(operation) is layers.UpSampling2D and operation.interpolation == "nearest":
        return "identity"
    return _KINDS.get(type(operation), "other")


def axis_of(layer: Any, rank: int) -> int | None:
    """Return the channel axis of a layer's input and output, or None for one that has none.

    Args:
        layer: a layer.
        rank: of its input.
    """
    if type(layer) is layers.Dense:
        return rank - 1
    one = (layers.Cropping1D, layers.UpSampling1D)
    order = getattr(layer, "data_format", "channels_last" if type(layer) in one else None)
    return {"channels_last": rank - 1, "channels_first": 1}.get(order) if order else None


def linear_of(layer: Any, name: str, output_shape: tuple[int | None, ...]) -> LinearOp:
    """Read a linear layer.

    Args:
        layer: one of `LINEAR_LAYERS`, built.
        name: what to call it.
        output_shape: of its call, with the batch.
    """
    why_not = _why_not(layer)
    dtype = keras.backend.standardize_dtype(layer.variable_dtype)
    sizes = output_shape[1:]
    return LinearOp(
        name,
        () if why_not else _kernels(layer),
        _array(layer.bias) if layer.use_bias and not why_not else None,
        axis_of(layer, len(output_shape)),
        padded=_is_padded(layer),
        elements=None if None in sizes else math.prod(size or 0 for size in sizes),
        largest=_largest(dtype),
        dtype=layer.compute_dtype,
        why_not=why_not,
        why_not_behind=_why_not_behind(layer),
    )


def _why_not(layer: Any) -> str:
    if getattr(layer, "lora_enabled", False):
        return "has LoRA weights"
    if getattr(layer, "quantization_mode", None):
        return "is quantized"
    return ""


def _why_not_behind(layer: Any) -> str:
    if layer.activation is None or layer.activation is keras.activations.linear:
        return ""
    return f"applies {getattr(layer.activation, '__name__', 'an activation')} itself"


def _is_padded(layer: Any) -> bool:
    if _KINDS[type(layer)] == "dense":
        return False
    # A transposed convolution's outputs at the borders are sums of fewer terms.
    if _KINDS[type(layer)] == "conv_transpose":
        return True
    return layer.padding != "valid" and max(layer.kernel_size) > 1


def _kernels(layer: Any) -> tuple[Kernel, ...]:
    kind = _KINDS[type(layer)]
    if kind == "separable_conv":
        depthwise, pointwise = _array(layer.depthwise_kernel), _array(layer.pointwise_kernel)
        n = depthwise.ndim - 2
        return (
            Kernel(depthwise, depthwise.shape, (n,), (n, n + 1)),
            Kernel(pointwise, pointwise.shape, (n,), (n + 1,)),
        )
    kernel = _array(layer.kernel)
    n = kernel.ndim - 2
    if kind == "depthwise_conv":
        return (Kernel(kernel, kernel.shape, (n,), (n, n + 1)),)
    if kind == "conv_transpose":
        return (Kernel(kernel, kernel.shape, (n + 1,), (n,)),)
    groups = getattr(layer, "groups", 1)
    view = (*kernel.shape[:-1], groups, kernel.shape[-1] // groups)
    return (Kernel(kernel, view, (n + 1, n), (n + 1, n + 2)),)


def _array(variable: Any) -> np.ndarray[Any, Any]:
    return np.asarray(keras.ops.convert_to_numpy(variable.value), np.float64)


def _largest(dtype: str) -> float:
    # NumPy has no bfloat16, whose range is float32's.
    return float(np.finfo("float32" if dtype == "bfloat16" else dtype).max)
