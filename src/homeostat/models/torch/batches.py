"""Batches as a PyTorch model takes them, and its outputs as NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from homeostat.errors import ShapeError, SpecError
from homeostat.models.live import Batch, count_examples
from homeostat.models.torch.undisturbed import devices_of

Tensor = torch.Tensor


def to_tensors(batch: Batch, model: nn.Module) -> Batch:
    """Return a batch with its arrays as tensors on the model's device.

    NumPy's floating arrays take the dtype of the model's first parameter; tensors keep theirs, and
    their device too where the model lives on it.
    """
    devices = devices_of(model) or [torch.device("cpu")]
    floating = (t.dtype for t in (*model.parameters(), *model.buffers()) if t.is_floating_point())
    dtype = next(floating, torch.get_default_dtype())

    def placed(each: Any) -> Any:
        if isinstance(each, Tensor):
            return each if each.device in devices else each.to(devices[0])
        if not isinstance(each, np.ndarray | np.generic):
            return each
        tensor = torch.tensor(np.ascontiguousarray(each) if each.ndim else each.item())
        return tensor.to(devices[0], dtype if tensor.is_floating_point() else None)

    return _each(batch, placed)


def call(model: nn.Module, batch: Batch) -> Any:
    """Call a model: a mapping gives arguments by name, a tuple or list by position."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


def to_arrays(outputs: Any) -> Any:
    """Return outputs with every tensor as a float64 array, in tuples and dicts.

    Example:
        >>> to_arrays({"a": torch.ones(2), "b": [None]})
        {'a': array([1., 1.]), 'b': (None,)}
    """
    if is_dataclass(outputs) and not isinstance(outputs, Mapping | type):
        outputs = {field.name: getattr(outputs, field.name) for field in fields(outputs)}
    return _each(outputs, lambda each: _array(each) if isinstance(each, Tensor) else each)


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    # Not every device has float64.
    return tensor.detach().cpu().double().numpy()


def _each(tree: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(tree, Mapping):
        return {key: _each(value, change) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return tuple(_each(value, change) for value in tree)
    return change(tree)


def weigh(batch: Batch, weights: Any) -> tuple[Batch, Tensor | None]:
    """Leave the examples of weight 0 out of a batch.

    Args:
        batch: tensors.
        weights: a weight for each example, shape (examples,).

    Returns:
        The others, and their weights in float64 on the CPU; None where all weigh 1.

    Raises:
        ShapeError: there are not as many weights as examples.
        SpecError: a weight is negative or not finite.
    """
    if isinstance(weights, Tensor):
        weights = weights.detach().cpu().numpy()
    given = np.asarray(weights, dtype="float64")
    examples = count_examples(batch)
    if given.shape != (examples,):
        raise ShapeError(
            f"weights have shape {given.shape}: expected ({examples},), a weight for each example "
            "of the batch. Average the weights of an example's parts."
        )
    if not np.isfinite(given).all() or (given < 0).any():
        raise SpecError(
            "weights are negative or not finite: expected numbers >= 0. Use 0 to leave an example "
            "out."
        )
    kept = torch.tensor(given > 0)
    if not bool(kept.all()):
        batch = _each(batch, lambda each: _chosen(each, kept))
    left = given[given > 0]
    return batch, None if (left == 1).all() else torch.tensor(left)


def _chosen(each: Any, kept: Tensor) -> Any:
    if isinstance(each, Tensor) and each.dim() and len(each) == len(kept):
        return each[kept.to(each.device)]
    return each
