"""Homeostat: batch normalization for TensorFlow, Keras, PyTorch and JAX.

Importing this package loads no framework. The front doors are modules, loaded when first used:

- `homeostat.keras`: the Keras 3 layer, on Keras's TensorFlow, JAX and torch backends;
- `homeostat.torch`: PyTorch modules, drop-in for `torch.nn.BatchNorm*`;
- `homeostat.tf1`: TensorFlow 1's API on today's TensorFlow.

`homeostat.kernels(False)` turns the compiled CPU kernels off; `homeostat.allocator(keep=True)`
makes the process keep the memory of large tensors between steps.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from homeostat.errors import (
    DataError,
    DisagreementError,
    DTypeError,
    HomeostatError,
    HomeostatWarning,
    MatchError,
    MissingExtraError,
    MissingUpdatesError,
    MissingUpdatesWarning,
    ModelFileError,
    NonFiniteBatchError,
    OneElementWarning,
    ShapeError,
    SpecError,
    UnsupportedError,
)
from homeostat.layout import Layout
from homeostat.memory import allocator
from homeostat.moments import Moments, merge
from homeostat.spec import CONVENTIONS, Activation, BatchNormSpec, Convention, RenormClipping

if TYPE_CHECKING:
    from homeostat import keras as keras
    from homeostat import kernels as kernels
    from homeostat import tf1 as tf1
    from homeostat import torch as torch

__version__ = "0.1.0"

__all__ = [
    "CONVENTIONS",
    "Activation",
    "BatchNormSpec",
    "Convention",
    "DTypeError",
    "DataError",
    "DisagreementError",
    "HomeostatError",
    "HomeostatWarning",
    "Layout",
    "MatchError",
    "MissingExtraError",
    "MissingUpdatesError",
    "MissingUpdatesWarning",
    "ModelFileError",
    "Moments",
    "NonFiniteBatchError",
    "OneElementWarning",
    "RenormClipping",
    "ShapeError",
    "SpecError",
    "UnsupportedError",
    "__version__",
    "allocator",
    "keras",
    "kernels",
    "merge",
    "tf1",
    "torch",
]

# Modules that are loaded when first used, and the extra that each needs.
_MODULES = {"keras": "tensorflow", "kernels": "cpu", "tf1": "tf1", "torch": "torch"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'homeostat' has no attribute {name!r}; it has {__all__}")
    try:
        return importlib.import_module(f"homeostat.{name}")
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("homeostat"):
            raise
        extra = _MODULES[name]
        raise MissingExtraError(
            f"homeostat.{name} needs the package {error.name!r}, which is not installed: expected "
            f"the extra {extra!r}. Run: pip install 'homeostat[{extra}]'"
        ) from error


def __dir__() -> list[str]:
    return __all__
