"""Read the batch norms among variables that are in memory, such as a state dict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from homeostat.models.records import ModelRecord


def record_variables(variables: Mapping[str, Any]) -> ModelRecord:
    """Return the batch norms among variables, told by their names as in a file of arrays.

    Args:
        variables: arrays by name, as PyTorch, Keras or TensorFlow name them: NumPy's, tensors, or
            what NumPy can read.

    Raises:
        ModelFileError: the arrays of a norm are too large.

    Example:
        >>> found = record_variables(
        ...     {"bn.running_mean": np.zeros(2), "bn.running_var": np.ones(2)}
        ... )
        >>> [(norm.name, norm.channels) for norm in found.norms]
        [('bn', 2)]
    """
    from homeostat.models.files.arrays import StoredArray
    from homeostat.models.files.state_dict import describe_state_dict

    arrays = [
        StoredArray(name, tuple(np.shape(value)), _dtype(value), _reader(value))
        for name, value in variables.items()
    ]
    return describe_state_dict(Path("variables"), "variables in memory", arrays)


def _dtype(value: Any) -> str:
    return str(getattr(value, "dtype", None) or np.asarray(value).dtype).removeprefix("torch.")


def _reader(value: Any) -> Callable[[], np.ndarray[Any, np.dtype[Any]]]:
    def read() -> np.ndarray[Any, np.dtype[Any]]:
        found = value.detach().cpu() if hasattr(value, "detach") else value
        # NumPy has no bfloat16; float32 holds it exactly.
        return np.asarray(
            found.float() if _dtype(value) == "bfloat16" and hasattr(found, "float") else found
        )

    return read
