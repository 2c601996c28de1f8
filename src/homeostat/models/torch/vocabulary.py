"""What PyTorch's modules and functions are in the words of `homeostat.models.graph`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from homeostat.models.graph import Kind
from homeostat.models.torch.norms import is_batch_norm

# By the file of `torch.nn.modules` that defines the class.
_FILES: Mapping[str, Kind] = {
    "linear": "dense",
    "activation": "activation",
    "pooling": "pool",
    "padding": "pad",
    "dropout": "dropout",
    "rnn": "recurrent",
    "flatten": "reshape",
    "fold": "reshape",
    "pixelshuffle": "reshape",
    "channelshuffle": "reshape",
    "normalization": "other_norm",
    "instancenorm": "other_norm",
}

_WORDS: Mapping[Kind, str] = {
    "activation": "relu relu6 leaky_relu prelu elu selu celu gelu silu mish sigmoid tanh hardswish "
    "hardsigmoid hardtanh softplus softmax log_softmax softmin softsign logsigmoid threshold rrelu "
    "glu tanhshrink softshrink hardshrink clamp clamp_min clamp_max clip",
    "add": "add iadd",
    "multiply": "mul imul multiply",
    "concatenate": "cat concat concatenate",
    "pool": "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
    "adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
    "adaptive_max_pool3d lp_pool1d lp_pool2d lp_pool3d mean amax",
    "pad": "pad",
    "reshape": "flatten unflatten view view_as reshape permute transpose swapaxes movedim squeeze "
    "unsqueeze pixel_shuffle pixel_unshuffle channel_shuffle",
    "identity": "contiguous clone detach to float half double bfloat16 type type_as",
    "dropout": "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout",
    "dense": "linear",
    "conv": "conv1d conv2d conv3d",
    "conv_transpose": "conv_transpose1d conv_transpose2d conv_transpose3d",
    "batch_norm": "batch_norm",
    "other_norm": "layer_norm group_norm instance_norm rms_norm local_response_norm normalize",
}
_FUNCTIONS: Mapping[str, Kind] = {
    word: kind for kind, words in _WORDS.items() for word in words.split()
}


def kind_of_module(module: nn.Module) -> Kind:
    """Return what a module does; ``"other"`` for what has no word.

    Example:
        >>> kind_of_module(nn.Conv2d(4, 8, 3)), kind_of_module(nn.Conv2d(4, 8, 3, groups=4))
        ('conv', 'depthwise_conv')
    """
    if is_batch_norm(module):
        return "batch_norm"
    if isinstance(module, nn.modules.conv._ConvNd):
        if module.transposed:
            return "conv_transpose"
        return "depthwise_conv" if module.groups == module.in_channels > 1 else "conv"
    if isinstance(module, nn.Identity):
        return "identity"
    if isinstance(module, nn.Bilinear | nn.MultiheadAttention):
        return "other"
    for cls in type(module).__mro__:
        package, _, file = cls.__module__.rpartition(".")
        if package == "torch.nn.modules":
            return _FILES.get(file, "other")
    return "other"


def word_of(function: Any) -> str:
    """Return a function's or method's name without the signs of work in place."""
    name = function if isinstance(function, str) else getattr(function, "__name__", "function")
    name = name.strip("_") or "function"
    return "dropout" if name == "native_dropout" else name


def kind_of_function(word: str, tensors: int) -> Kind:
    """Return what a function does.

    Args:
        word: of `word_of`.
        tensors: how many of its arguments are results of other operations. What adds or multiplies
            a constant has no word.
    """
    kind = _FUNCTIONS.get(word, "other")
    return "other" if kind in ("add", "multiply") and tensors < 2 else kind


def is_padded(module: nn.Module) -> bool | None:
    """Return whether a convolution puts zeros around its input; None for what is none."""
    if not isinstance(module, nn.modules.conv._ConvNd) or module.transposed:
        return None
    if module.padding_mode != "zeros" or module.padding == "valid":
        return False
    if module.padding == "same":
        return any(size > 1 for size in module.kernel_size)
    return any(module.padding)
