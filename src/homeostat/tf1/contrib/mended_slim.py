"""tf_slim on today's TensorFlow.

tf_slim 1.1 looks for names in modules of TensorFlow that have lost them. Its own modules are given
what they look for, and Homeostat's batch norm for theirs; neither TensorFlow nor any installed file
is changed, so there is nothing to undo.
"""

from __future__ import annotations

import functools
import importlib
import sys
from types import MappingProxyType, ModuleType
from typing import Any

import tensorflow.compat.v1 as tf

from homeostat.errors import MissingExtraError

_LEGACY = "tf_keras.src.legacy_tf_layers"


def _flatten(inputs: Any) -> Any:
    # tf-keras's function says that it is deprecated, its class does not.
    return importlib.import_module(f"{_LEGACY}.core").Flatten()(inputs)


# By module of TensorFlow: the names that it has lost, and where they are now.
_LOST = MappingProxyType(
    {
        "tensorflow.python.framework.ops": {
            "Tensor": tf.Tensor,
            "IndexedSlices": tf.IndexedSlices,
        },
        "tensorflow.python.ops.array_ops": {"stack": tf.stack, "unstack": tf.unstack},
        "tensorflow.python.ops.control_flow_ops": {
            "Assert": tf.Assert,
            "case": tf.case,
            "cond": tf.cond,
            "while_loop": tf.while_loop,
        },
        "tensorflow.python.ops.variable_scope": {"variable": tf.Variable},
        "tensorflow.python.layers.core": {"flatten": _flatten},
    }
)
# By module of TensorFlow: the module that took its place. The layers are those of `tf.layers`.
_REPLACED = MappingProxyType(
    {
        f"tensorflow.python.layers.{name}": f"{_LEGACY}.{name}"
        for name in ("convolutional", "core", "normalization", "pooling")
    }
)


class _StandIn(ModuleType):
    """A module with names that it has lost; it has no others of its own."""

    def __init__(self, module: ModuleType) -> None:
        super().__init__(module.__name__)
        name = module.__name__
        self._module = importlib.import_module(_REPLACED.get(name, name))
        vars(self).update(_LOST.get(name, {}))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@functools.cache
def mended_slim() -> ModuleType:
    """Return tf_slim, mended.

    Raises:
        MissingExtraError: tf_slim is not installed.
    """
    try:
        slim = importlib.import_module("tf_slim")
    except ModuleNotFoundError as error:
        if error.name != "tf_slim":
            raise
        raise MissingExtraError(
            "tf.contrib.slim and tf.contrib.layers live on in the package 'tf_slim', which is not "
            "installed: expected the extra 'tf1'. Run: pip install 'homeostat[tf1]'"
        ) from error
    # As in TF1, without an import statement of their own.
    for name in ("nets", "layers.sparse_ops", "ops.framework_ops"):
        importlib.import_module(f"tf_slim.{name}")
    parts = [module for name, module in sys.modules.items() if name.split(".")[0] == "tf_slim"]
    for part in parts:
        mend(part)
    ours = importlib.import_module("homeostat.tf1.contrib.batch_norm").batch_norm
    theirs = slim.batch_norm
    for part in parts:
        if vars(part).get("batch_norm") is theirs:
            part.batch_norm = ours
    return slim


def mend(module: ModuleType) -> None:
    """Give a module of tf_slim what it looks for in modules of TensorFlow."""
    for name, value in list(vars(module).items()):
        if isinstance(value, ModuleType) and value.__name__ in {**_LOST, **_REPLACED}:
            setattr(module, name, _StandIn(value))
