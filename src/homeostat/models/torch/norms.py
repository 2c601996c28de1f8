"""Find a PyTorch model's batch norms and tell what is known of each."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from homeostat.models.records import BatchNormRecord
from homeostat.spec import CONVENTIONS
from homeostat.torch.state import State

TORCH = CONVENTIONS["torch"]
_FOUR = ("weight", "bias", "running_mean", "running_var")


def is_frozen(module: nn.Module) -> bool:
    """Return whether a module is a frozen batch norm, by its four buffers and no parameters.

    That is how torchvision's, Detectron2's and Transformers' are made, and Homeostat's.
    """
    buffers = module._buffers
    return (
        not module._parameters
        and not module._modules
        and all(name in buffers for name in _FOUR)
        and buffers["running_mean"] is not None
        and buffers["running_var"] is not None
    )


def is_batch_norm(module: nn.Module) -> bool:
    """Return whether a module is a batch norm of any class."""
    return isinstance(module, _BatchNorm) or is_frozen(module)


def is_uninitialized(module: nn.Module) -> bool:
    """Return whether a module waits for its first input to know its shapes."""
    tensors = (*module._parameters.values(), *module._buffers.values())
    return any(tensor is not None and is_lazy(tensor) for tensor in tensors)


def find_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Return the batch norms of a model by name, in the order of definition.

    Args:
        model: any module. What waits for its first input is left out.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if is_batch_norm(module) and not is_uninitialized(module)
    }


def record_of(
    name: str, norm: nn.Module, *, model_trains: bool, operations: tuple[str, ...] = ()
) -> BatchNormRecord:
    """Return what is known of one batch norm.

    Args:
        name: its name in the model.
        norm: one of `find_norms`.
        model_trains: whether the model as a whole is in training mode.
        operations: those of the model's graph that apply it.
    """
    arrays, unknown = {}, set()
    for ours, theirs in TORCH.names.items():
        tensor = getattr(norm, theirs, None)
        arrays[ours] = None if tensor is None else array_of(tensor)
        if tensor is not None and arrays[ours] is None:
            unknown.add(ours)
    options = _frozen(norm) if is_frozen(norm) else _options(norm, model_trains)
    unknown |= {"epsilon"} if options["epsilon"] is None else set()
    known = norm.running_mean is not None
    return BatchNormRecord(
        name=name,
        kind=_kind(norm),
        **arrays,
        stored_variance=TORCH.stored_variance if known else None,
        dtype=_dtype(norm),
        operations=operations,
        unknown=frozenset(unknown),
        **options,
    )


def epsilon_of(norm: nn.Module) -> float | None:
    """Return what a batch norm adds to the variance; None where it does not tell."""
    if isinstance(norm, State):
        return norm.spec.epsilon
    found = (getattr(norm, name, None) for name in ("eps", "epsilon", "variance_epsilon"))
    return next((float(each) for each in found if isinstance(each, int | float)), None)


def array_of(tensor: torch.Tensor) -> np.ndarray[Any, Any] | None:
    """Return a copy of a tensor's values; None where it has none, as on the meta device."""
    if tensor.is_meta:
        return None
    tensor = tensor.detach().cpu()
    # NumPy has no bfloat16.
    return np.array((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())


def _kind(norm: nn.Module) -> str:
    ours = type(norm).__module__.startswith("homeostat.")
    return f"homeostat.{type(norm).__name__}" if ours else type(norm).__name__


def _dtype(norm: Any) -> str | None:
    first = norm.weight if norm.weight is not None else norm.running_mean
    return None if first is None else str(first.dtype).removeprefix("torch.")


def _frozen(norm: Any) -> dict[str, Any]:
    activation = getattr(getattr(norm, "spec", None), "fused_activation", None)
    return {
        "epsilon": epsilon_of(norm),
        "trainable": False,
        "tracking": False,
        "training": False,
        "activation": None if activation is None else activation.name,
    }


def _options(norm: Any, model_trains: bool) -> dict[str, Any]:
    ours = isinstance(norm, State)
    has_statistics = norm.running_mean is not None
    held = ours and (norm.frozen_statistics or norm.inference_mode)
    # One that was put into eval mode inside a model that trains is frozen by that.
    moves = norm.training or not model_trains
    affine = [each for each in (norm.weight, norm.bias) if each is not None]
    return {
        "epsilon": epsilon_of(norm),
        "momentum": TORCH.to_old_weight(norm.momentum),
        "cumulative": norm.momentum is None,
        "debiased": ours and norm.spec.zero_debias,
        **_counts(norm),
        "trainable": any(each.requires_grad for each in affine) if affine else None,
        "tracking": bool(
            has_statistics and norm.track_running_stats and norm.momentum != 0 and moves
        )
        and not held,
        "training": not has_statistics or (norm.training and not (ours and norm.inference_mode)),
        "synchronized": isinstance(norm, nn.SyncBatchNorm) or (ours and norm.synchronized),
        "activation": _activation(norm),
    }


def _counts(norm: Any) -> dict[str, int | None]:
    tracked, skipped = norm.num_batches_tracked, getattr(norm, "skipped_updates", None)
    if tracked is None or tracked.is_meta:
        return {"updates": None, "skipped": None}
    if skipped is None or not skipped.numel():
        return {"updates": int(tracked), "skipped": None}
    # A batch that some channels left out has moved the others.
    moved = max(0, int(tracked) - int(skipped.min()))
    return {"updates": moved, "skipped": int(skipped.max())}


def _activation(norm: Any) -> str | None:
    if isinstance(norm, State):
        fused = norm.spec.fused_activation
        return None if fused is None else fused.name
    # Subclasses that apply more, such as timm's BatchNormAct2d, hold it as children.
    inside = [type(m).__name__.lower() for m in norm.children() if not isinstance(m, nn.Identity)]
    return "+".join(inside) or None
