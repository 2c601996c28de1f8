"""The modules of PyTorch that a batch norm can be folded into, and those that let one through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from homeostat.models.foldable import Kernel, LinearOp
from homeostat.models.graph import Kind
from homeostat.torch.patterns import has_hooks

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LINEAR = (*CONVS, *TRANSPOSED, nn.Linear)

_KINDS: Mapping[type, Kind] = {
    **dict.fromkeys(CONVS, "conv"),
    **dict.fromkeys(TRANSPOSED, "conv_transpose"),
    nn.Linear: "dense",
    nn.Identity: "identity",
    **dict.fromkeys(
        (
            *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
            *(nn.AlphaDropout, nn.FeatureAlphaDropout),
        ),
        "dropout",
    ),
    **dict.fromkeys((nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d), "pad"),
}


def linear_class(module: nn.Module) -> Any:
    """Return PyTorch's linear class that a module is of or derived from, or None."""
    return next((cls for cls in type(module).__mro__ if cls in LINEAR), None)


def kind_of(module: nn.Module) -> Kind:
    """Return what a module does in eval mode: ``"other"`` for what stops folding."""
    kind = _KINDS.get(linear_class(module) or type(module), "other")
    if kind in ("dropout", "identity", "pad") and (module.training or has_hooks(module)):
        return "other"
    return kind


def linear_of(
    module: nn.Module, name: str, shape: tuple[int, ...] | None, elements: int | None
) -> LinearOp:
    """Read a linear module.

    Args:
        module: one that has a `linear_class`.
        name: what to call it.
        shape: of its input with the batch, if that is known.
        elements: of its output, for one example.
    """
    cls = linear_class(module)
    why_not = why_not_linear(module)
    if why_not:
        return LinearOp(name, why_not=why_not)
    weight: Any = module.weight
    bias: Any = module.bias
    return LinearOp(
        name,
        (_kernel(module, cls),),
        None if bias is None else numpy_of(bias),
        _axis(module, cls, shape),
        padded=_is_padded(module, cls),
        elements=elements,
        largest=torch.finfo(weight.dtype).max,
    )


def why_not_linear(module: nn.Module) -> str:
    """Return why a module does not do what its linear class does; "" where it does."""
    cls = linear_class(module)
    for name in ("forward", "_conv_forward", "__call__"):
        if getattr(type(module), name, None) is not getattr(cls, name, None) or name in vars(
            module
        ):
            return f"has its own {name}"
    if parametrize.is_parametrized(module):
        return "is parametrized"
    if has_hooks(module):
        return "has hooks"
    weight: Any = module.weight
    if not weight.is_floating_point() or set(module._parameters) != {"weight", "bias"}:
        return "has no plain weight and bias"
    return ""


def _axis(module: nn.Module, cls: Any, shape: tuple[int, ...] | None) -> int | None:
    if cls is nn.Linear:
        return None if shape is None else len(shape) - 1
    spatial: Any = module.kernel_size
    # A single example without a batch axis has its channels first.
    return 1 if shape is None or len(shape) == len(spatial) + 2 else None


def _is_padded(module: Any, cls: Any) -> bool:
    if cls is nn.Linear:
        return False
    # A transposed convolution's outputs at the borders are sums of fewer terms.
    if cls in TRANSPOSED:
        return True
    # What the other modes put around its input is normalized as well.
    if module.padding_mode != "zeros":
        return False
    if isinstance(module.padding, str):
        return module.padding != "valid" and max(module.kernel_size) > 1
    return any(module.padding)


def _kernel(module: Any, cls: Any) -> Kernel:
    weight = numpy_of(module.weight)
    if cls is nn.Linear:
        return Kernel(weight, weight.shape, (1,), (0,))
    view = (module.groups, weight.shape[0] // module.groups, *weight.shape[1:])
    if cls in TRANSPOSED:
        return Kernel(weight, view, (0, 1), (0, 2))
    return Kernel(weight, view, (0, 2), (0, 1))


def numpy_of(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """Return a tensor's values as float64."""
    return tensor.detach().to("cpu", torch.float64).numpy()
