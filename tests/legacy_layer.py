"""Train tf-keras's legacy batch norm, the one that still has renorm and virtual batches.

Reads a list of ``{"options", "axis", "batches"}`` as JSON from standard input and writes, for each,
the last output and the state. It runs in a process of its own, since tf-keras and Keras 3 do not
share one.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow as tf
from tf_keras.src.layers.normalization.batch_normalization_v1 import BatchNormalization


def train(options: dict[str, Any], batches: list[Any], dy: Any) -> dict[str, Any]:
    # Its renorm knows float32 alone.
    dtype = "float32" if options.get("renorm") else "float64"
    layer = BatchNormalization(fused=False, dtype=dtype, **options)
    y = dx = None
    for batch in batches:
        x = tf.constant(batch, dtype)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        dx = tape.gradient(y, x, output_gradients=tf.constant(dy, dtype))
    state = {w.name.split("/")[-1].split(":")[0]: w.numpy().ravel().tolist() for w in layer.weights}
    return {"y": np.asarray(y).tolist(), "dx": np.asarray(dx).tolist(), "state": state}


if __name__ == "__main__":
    json.dump([train(**case) for case in json.load(sys.stdin)], sys.stdout)
