"""What Keras's layers and functions do, in the words of `homeostat.models.graph`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from homeostat.models.files.keras_layers import Layer, Shape
from homeostat.models.graph import LINEAR, Kind

_DIMENSIONS = ("1D", "2D", "3D")

_LAYERS: Mapping[Kind, tuple[str, ...]] = {
    "input": ("InputLayer",),
    "dense": ("Dense",),
    "conv": ("Conv", "Convolution"),
    "depthwise_conv": ("DepthwiseConv",),
    "separable_conv": ("SeparableConv", "SeparableConvolution"),
    "conv_transpose": ("ConvTranspose", "Convolution2DTranspose", "Convolution3DTranspose"),
    "other_norm": (
        *("LayerNormalization", "GroupNormalization", "RMSNormalization", "UnitNormalization"),
        *("InstanceNormalization",),
    ),
    "activation": ("Activation", "ReLU", "LeakyReLU", "PReLU", "ELU", "ThresholdedReLU", "Softmax"),
    "dropout": ("Dropout", "SpatialDropout", "GaussianDropout"),
    "add": ("Add",),
    "multiply": ("Multiply",),
    "concatenate": ("Concatenate",),
    "pool": (
        *("MaxPooling", "AveragePooling", "GlobalMaxPooling", "GlobalAveragePooling"),
        *("MaxPool", "AvgPool", "GlobalMaxPool", "GlobalAvgPool"),
        *("AdaptiveAveragePooling", "AdaptiveMaxPooling"),
    ),
    "pad": ("ZeroPadding",),
    "reshape": ("Flatten", "Reshape", "Permute", "RepeatVector"),
    "identity": ("Identity", "ActivityRegularization"),
    "recurrent": (
        *("LSTM", "GRU", "SimpleRNN", "RNN", "ConvLSTM", "Bidirectional", "CuDNNLSTM", "CuDNNGRU"),
    ),
}
_BY_LAYER = {name: kind for kind, names in _LAYERS.items() for name in names}

_ACTIVATIONS = frozenset(
    (
        *("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "swish", "mish"),
        *("sigmoid", "tanh", "softmax", "log_softmax", "softplus", "softsign", "log_sigmoid"),
        *("hard_sigmoid", "hard_silu", "hard_swish", "hard_tanh", "exponential", "glu", "crelu"),
        *("hard_shrink", "soft_shrink", "tanh_shrink", "threshold", "sparsemax", "squareplus"),
    )
)
_BY_FUNCTION: Mapping[str, Kind] = {
    "add": "add",
    "multiply": "multiply",
    "mul": "multiply",
    "concatenate": "concatenate",
    "concat": "concatenate",
    "reshape": "reshape",
    "transpose": "reshape",
    "squeeze": "reshape",
    "expand_dims": "reshape",
    "ravel": "reshape",
    "pad": "pad",
    "max_pool": "pool",
    "average_pool": "pool",
    "avg_pool": "pool",
    "identity": "identity",
    **dict.fromkeys(_ACTIVATIONS, "activation"),
}
# Layers that leave the shape of their (first) input as it is.
_SAME_SHAPE = ("batch_norm", "other_norm", "activation", "dropout", "identity", "add", "multiply")


def is_batch_norm(layer: Layer) -> bool:
    """Return whether a layer is a batch norm: Keras's, Homeostat's, or one with its options."""
    if layer.layers is not None:
        return False
    return layer.type in ("BatchNormalization", "SyncBatchNormalization") or (
        "BatchNorm" in layer.type and {"axis", "momentum", "epsilon"} <= set(layer.config)
    )


def kind_of(layer: Layer) -> Kind:
    """Return what a layer or function does.

    Example:
        >>> from homeostat.models.files.keras_layers import parse
        >>> kind_of(parse({"class_name": "Conv2D", "config": {}}))
        'conv'
        >>> kind_of(parse({"class_name": "Add", "module": "keras.src.ops.numpy", "config": {}}))
        'add'
    """
    if is_batch_norm(layer):
        return "batch_norm"
    function = function_of(layer)
    if function is not None:
        return _BY_FUNCTION.get(function, "other")
    name = layer.type
    for dimension in _DIMENSIONS:
        name = name.replace(dimension, "")
    kind = _BY_LAYER.get(name, _BY_LAYER.get(layer.type, "other"))
    if kind == "activation" and activation_of(layer, "softmax") is None:
        return "identity"
    return kind


def function_of(layer: Layer) -> str | None:
    """Return the name of the function that an operation calls; None for a layer."""
    if layer.type == "TFOpLambda":
        # Such as "math.multiply" and "__operators__.add".
        return str(layer.config.get("function")).rpartition(".")[2]
    function = snake_case(layer.type)
    # A legacy file has no modules; a function has a name alone.
    bare = not layer.package and list(layer.config) == ["name"]
    return function if ".ops." in layer.package or (bare and function in _BY_FUNCTION) else None


def snake_case(name: str) -> str:
    """Return a class's name as Keras writes it in paths.

    Example:
        >>> snake_case("BatchNormalization"), snake_case("Conv2D"), snake_case("TFOpLambda")
        ('batch_normalization', 'conv2d', 'tf_op_lambda')
    """
    found = ""
    for at, letter in enumerate(name):
        before, after = name[at - 1 : at], name[at + 1 : at + 2]
        starts = letter.isupper() and (before.islower() or (before != "" and after.islower()))
        found += "_" * starts + letter.lower()
    return found


def type_of(layer: Layer) -> str:
    """Return the word for a layer or function: its class, or the function's name."""
    if layer.type == "Activation":
        return activation_of(layer) or "linear"
    return function_of(layer) or layer.type


def activation_of(layer: Layer, default: str | None = None) -> str | None:
    """Return the name of the activation among a layer's options; None for none.

    Args:
        layer: the layer.
        default: for a layer without that option.
    """
    value = layer.config.get("activation", default)
    if isinstance(value, Mapping):
        inside = value.get("config")
        value = inside if isinstance(inside, str) else value.get("class_name", value.get("name"))
    return value if isinstance(value, str) and value not in ("linear", "identity") else None


def bias_of(layer: Layer, kind: Kind) -> bool | None:
    """Return whether a linear layer adds a bias; None for another."""
    value = layer.config.get("use_bias")
    return value if kind in LINEAR and isinstance(value, bool) else None


def padded(layer: Layer, kind: Kind) -> bool | None:
    """Return whether zeros surround the input of a convolution; None where that has no sense."""
    if kind not in ("conv", "depthwise_conv", "separable_conv"):
        return None
    size: Any = layer.config.get("kernel_size")
    sizes = size if isinstance(size, list | tuple) else (size,)
    # A kernel of one element stays inside its input.
    return layer.config.get("padding") in ("same", "causal") and any(n != 1 for n in sizes)


def rate_of(layer: Layer, kind: Kind) -> float | None:
    """Return the rate of a dropout; None for another layer."""
    rate = layer.config.get("rate")
    known = kind == "dropout" and isinstance(rate, int | float) and not isinstance(rate, bool)
    return float(rate) if known else None


def output_shape(layer: Layer, kind: Kind, shapes: list[Shape | None]) -> Shape | None:
    """Return the shape of a layer's output as far as it follows from those of its inputs."""
    first = shapes[0] if shapes else None
    if kind in _SAME_SHAPE and (len(shapes) == 1 or (shapes and set(shapes) == {first})):
        return first
    units = layer.config.get("units")
    if kind == "dense" and first and isinstance(units, int):
        return (*first[:-1], units)
    return None
