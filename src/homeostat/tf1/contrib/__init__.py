"""What TF1 programs used of `tf.contrib`, for today's TensorFlow.

`learn` and `training` are Homeostat's, `slim`, `layers` and others live on in the package tf_slim,
which `mended_slim` makes work; `data`, `framework` and `rnn` name what is in TensorFlow.
"""

from __future__ import annotations

import importlib
from types import MappingProxyType, ModuleType
from typing import Any

from homeostat.tf1.names import missing_name

_OURS = ("data", "framework", "learn", "rnn", "training")
_MOVED = MappingProxyType(
    {
        "layers": "tf_slim.layers",
        "losses": "tf_slim.losses",
        "metrics": "tf_slim.metrics",
        "slim": "tf_slim",
        # What they were inside.
        "framework.python.ops": "homeostat.tf1.contrib.framework",
        "framework.python.ops.arg_scope": "tf_slim.ops.arg_scope",
        "framework.python.ops.variables": "tf_slim.ops.variables",
        "layers.python.layers": "tf_slim.layers",
        "losses.python.losses": "tf_slim.losses",
        "metrics.python.ops": "tf_slim.metrics",
        "slim.python.slim": "tf_slim",
    }
)


def moved(name: str) -> ModuleType | None:
    """Return the module that took the place of ``tf.contrib.<name>``; None if there is none.

    Raises:
        MissingExtraError: tf_slim is not installed.
        ModuleNotFoundError: tf_slim has no such module.
    """
    for old in sorted(_MOVED, key=len, reverse=True):
        if name == old or name.startswith(f"{old}."):
            importlib.import_module("homeostat.tf1.contrib.mended_slim").mended_slim()
            return importlib.import_module(f"{_MOVED[old]}{name.removeprefix(old)}")
    return None


def __getattr__(name: str) -> Any:
    if name in _OURS:
        return importlib.import_module(f"homeostat.tf1.contrib.{name}")
    module = moved(name)
    if module is None:
        raise missing_name("tf.contrib", name, "is not provided by homeostat.tf1", __dir__())
    return module


def __dir__() -> list[str]:
    return sorted({*_OURS, *(name for name in _MOVED if "." not in name)})
