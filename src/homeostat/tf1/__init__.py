"""TensorFlow 1 on today's TensorFlow: ``import homeostat.tf1 as tf``.

Everything in `tensorflow.compat.v1`, with the behaviour of TensorFlow 2 switched off for the
process, and what is gone from it: `tf.layers`, with batch normalization by Homeostat, and
`tf.estimator`.
"""

from __future__ import annotations

import importlib
from typing import Any

import tensorflow.compat.v1 as _v1

from homeostat.tf1.names import missing_name

_v1.disable_v2_behavior()

# What this package provides itself, in modules that are loaded when first used.
_PROVIDED = {
    name: f"homeostat.tf1.{name}" for name in ("contrib", "estimator", "examples", "layers")
}
_FUNCTIONS = {"check_updates": "homeostat.tf1.updates"}


def __getattr__(name: str) -> Any:
    if name in _PROVIDED:
        return importlib.import_module(_PROVIDED[name])
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    try:
        return getattr(_v1, name)
    except AttributeError:
        where = "is neither in tensorflow.compat.v1 nor provided by homeostat.tf1"
        raise missing_name("tf", name, where, __dir__()) from None


def __dir__() -> list[str]:
    return sorted({*dir(_v1), *_PROVIDED, *_FUNCTIONS})
