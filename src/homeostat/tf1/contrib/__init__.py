"""What TF1 programs used of `tf.contrib`, for today's TensorFlow.

`learn` and `training` are Homeostat's; `slim` and `layers` live on in the package tf_slim.
"""

from __future__ import annotations

import importlib
from typing import Any

_OURS = ("learn", "training")
_MOVED = {"slim": "tf_slim", "layers": "tf_slim.layers"}


def __getattr__(name: str) -> Any:
    if name in _OURS:
        return importlib.import_module(f"homeostat.tf1.contrib.{name}")
    if name in _MOVED:
        return importlib.import_module(_MOVED[name])
    raise AttributeError(
        f"tf.contrib.{name} ended with TensorFlow 1: expected one of "
        f"{', '.join((*_OURS, *_MOVED))}. Look for its successor in TensorFlow or tf_slim."
    )
