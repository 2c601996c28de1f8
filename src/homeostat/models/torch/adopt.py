"""Give a PyTorch batch norm another's arrays and options, and run it alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from homeostat.errors import SpecError
from homeostat.models.records import BatchNormRecord
from homeostat.models.torch.norms import TORCH
from homeostat.models.torch.undisturbed import undisturbed


def adopt(name: str, norm: nn.Module, record: BatchNormRecord) -> None:
    """Give a norm another's arrays and options; see `LiveModel.adopt`.

    Raises:
        SpecError: a value is not finite in the norm's dtype, or the norm has no place for one.
    """
    state: Any = norm
    for ours, theirs in TORCH.names.items():
        tensor, value = getattr(norm, theirs, None), getattr(record, ours)
        if value is None:
            continue
        if tensor is None or tuple(tensor.shape) != value.shape:
            raise SpecError(
                f"{name!r} has no {theirs} of shape {value.shape}: expected one that takes "
                f"{record.name!r}. Make it with affine=True and as many channels."
            )
        new = torch.as_tensor(np.asarray(value, np.float64)).to(tensor.device, tensor.dtype)
        if not bool(torch.isfinite(new).all()):
            raise SpecError(
                f"{ours} of {record.name!r} is not finite in {tensor.dtype}: expected finite "
                "numbers. Repair the source first."
            )
        with torch.no_grad():
            tensor.copy_(new)
    if record.epsilon is not None:
        state.eps = record.epsilon
    if hasattr(norm, "momentum") and (record.momentum is not None or record.cumulative):
        momentum = TORCH.from_old_weight(record.momentum)
        # 1 - 0.9 is 0.1, not 0.09999999999999998.
        state.momentum = None if momentum is None else float(f"{momentum:.12g}")
    if record.updates is not None and getattr(norm, "num_batches_tracked", None) is not None:
        state.num_batches_tracked.fill_(record.updates)


def normalize_alone(norm: nn.Module, inputs: Any) -> np.ndarray[Any, Any]:
    """Return a norm's inference of inputs (examples, channels), without its activation."""
    state: Any = norm
    like = next(t for t in (norm.weight, norm.running_mean) if isinstance(t, torch.Tensor))
    x = torch.as_tensor(np.asarray(inputs, np.float64)).to(like.device, like.dtype)
    with undisturbed(norm):
        if getattr(norm, "activation", None) is not None:
            state.activation = None
        for ones in (2, 0, 3):
            try:
                y = norm(x.reshape(*x.shape, *(1,) * ones))
            except ValueError:
                # A norm for inputs of another rank says so.
                continue
            return y.reshape(x.shape).double().cpu().numpy()
    raise SpecError(f"a {type(norm).__name__} takes inputs of no rank from 2 to 5.")
