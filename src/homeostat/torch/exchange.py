"""One batch norm: PyTorch's own becomes Homeostat's and back, and stays the same object."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _LazyNormBase

from homeostat.errors import SpecError
from homeostat.torch import modules
from homeostat.torch.state import OPTIONS, SIXTEEN_BITS, State
from homeostat.torch.synchronized import SyncBatchNorm

OURS: dict[type, type[State]] = {
    nn.BatchNorm1d: modules.BatchNorm1d,
    nn.BatchNorm2d: modules.BatchNorm2d,
    nn.BatchNorm3d: modules.BatchNorm3d,
    nn.LazyBatchNorm1d: modules.LazyBatchNorm1d,
    nn.LazyBatchNorm2d: modules.LazyBatchNorm2d,
    nn.LazyBatchNorm3d: modules.LazyBatchNorm3d,
    nn.SyncBatchNorm: SyncBatchNorm,
}
NATIVE = {ours: native for native, ours in OURS.items()}

# What a subclass may define and still compute what its base does.
_HARMLESS = {
    *("__init__", "__module__", "__doc__", "__qualname__", "__annotations__", "__firstlineno__"),
    *("__static_attributes__", "__parameters__", "__orig_bases__", "__repr__", "extra_repr"),
    *("reset_parameters", "__constants__"),
}
_PARAMETERS = {"weight", "bias"}
_BUFFERS = {"running_mean", "running_var", "num_batches_tracked"}
# What native modules have no word for. That statistics follow no NaN is no loss of theirs.
_OURS_ALONE = ("renorm", "virtual_batch_size", "zero_debias", "frozen_statistics", "inference_mode")


def native_class(norm: nn.Module) -> type | None:
    """Return PyTorch's class that a module is of or derived from, or None where there is none."""
    return next((cls for cls in type(norm).__mro__ if cls in OURS), None)


def is_native(module: nn.Module) -> bool:
    """Return whether a module is a batch norm, and not Homeostat's."""
    return isinstance(module, _BatchNorm) and not isinstance(module, State)


def why_not_ours(norm: nn.Module) -> str:
    """Return why Homeostat's class cannot take the place of a native norm's; "" where it can."""
    base = native_class(norm)
    if base is None:
        return f"class {type(norm).__name__} is none of PyTorch's batch norms"
    derived = type(norm).__mro__[: type(norm).__mro__.index(base)]
    changed = sorted({name for cls in derived for name in vars(cls)} - _HARMLESS)
    if changed:
        return f"class {type(norm).__name__} defines {', '.join(changed)}"
    if "forward" in vars(norm):
        return "its forward was replaced"
    extra = sorted(
        (set(norm._parameters) - _PARAMETERS) | (set(norm._buffers) - _BUFFERS) | set(norm._modules)
    )
    lost = sorted(_PARAMETERS - set(norm._parameters))
    if extra or lost:
        return f"it was changed: {', '.join(extra + [f'{name} is gone' for name in lost])}"
    return ""


def become_ours(norm: nn.Module) -> None:
    """Make a native batch norm Homeostat's, with the same parameters, statistics and hooks.

    Args:
        norm: one for which `why_not_ours` has nothing to say.

    Raises:
        SpecError: an option has a value that Homeostat refuses.
    """
    base = native_class(norm)
    options: dict[str, Any] = {}
    if base is nn.SyncBatchNorm:
        options = {"synchronized": True, "process_group": norm.process_group}
    buffers = norm._buffers
    if buffers.get("running_mean") is not None and buffers.get("num_batches_tracked") is None:
        raise SpecError(
            "num_batches_tracked is None: expected a count beside running_mean. Load the "
            "checkpoint into a new module."
        )
    parameters = norm._parameters
    # Out of sight, since the options set requires_grad.
    norm.__dict__["_parameters"] = dict.fromkeys(_PARAMETERS)
    try:
        norm.__class__ = OURS[base] if base is not None else State
        norm._take(options)
    finally:
        norm.__dict__["_parameters"] = parameters


def why_not_native(norm: State) -> str:
    """Return what keeps a Homeostat norm from becoming native; "" for nothing."""
    if type(norm) not in NATIVE:
        return f"is of class {type(norm).__name__}"
    used = [f"{name}={getattr(norm, name)!r}" for name in _OURS_ALONE if getattr(norm, name)]
    if norm.nonfinite == "raise":
        used.append("nonfinite='raise'")
    # Native modules are synchronized by their class, of which there is no lazy one.
    if norm.synchronized is not isinstance(norm, SyncBatchNorm) and (
        not norm.synchronized or isinstance(norm, _LazyNormBase)
    ):
        used.append(f"synchronized={norm.synchronized}")
    if norm.activation is not None:
        used.append(f"activation={norm.activation!r}")
    return f"uses {', '.join(used)}" if used else ""


def become_native(norm: State) -> None:
    """Make a Homeostat batch norm PyTorch's own, with the same parameters, statistics and hooks.

    Args:
        norm: one for which `why_not_native` has nothing to say.
    """
    group, synchronized = norm.process_group, norm.synchronized
    native = nn.SyncBatchNorm if synchronized else NATIVE[type(norm)]
    for name in (*OPTIONS, "spec", "plain", "renorm_schedule"):
        norm.__dict__.pop(name, None)
    norm._buffers.pop("skipped_updates", None)
    norm._non_persistent_buffers_set.discard("skipped_updates")
    norm.__class__ = native
    if synchronized:
        norm.process_group = group
    weight = norm._parameters["weight"]
    if weight is not None and weight.dtype in SIXTEEN_BITS:
        for name in ("running_mean", "running_var"):
            statistic = norm._buffers[name]
            if statistic is not None and not isinstance(norm, _LazyNormBase):
                norm._buffers[name] = statistic.to(weight.dtype)
