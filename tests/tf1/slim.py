"""tf_slim as users get it, and its own batch norm to compare ours with."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import Any

import homeostat.tf1 as tf
from homeostat.tf1.contrib.mended_slim import mend

slim = tf.contrib.slim


@functools.cache
def original_layers() -> Any:
    """Return a second copy of tf_slim's layers, whose batch norm is its own, made to run."""
    path = importlib.import_module("tf_slim.layers.layers").__file__
    spec = importlib.util.spec_from_file_location("original_layers", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    mend(module)
    return module


def as_layer(batch_norm: Any) -> Any:
    """Give a batch norm of slim the words of `tf.layers.batch_normalization`."""

    def layer(x: Any, training: Any, name: str, **options: Any) -> Any:
        return batch_norm(x, is_training=training, scope=name, **options)

    return layer
