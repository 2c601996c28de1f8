"""Audit Keras models that train on two replicas, and print what BN027 says of each.

A script, since TensorFlow is told of its devices once in a process.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import keras
import tensorflow as tf

from homeostat.audit import audit
from homeostat.rules import Settings

MODELS = {"speaks": {}, "is silent": {"synchronized": True}}


def main() -> None:
    processor = tf.config.list_physical_devices("CPU")[0]
    replicas = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(processor, replicas)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    layers: Any = keras.layers
    said = {}
    for name, options in MODELS.items():
        with strategy.scope():
            norm = layers.BatchNormalization(name="norm", **options)
            model = keras.Sequential([layers.Input((4,)), norm, layers.Dense(1)])
            model.compile("sgd", "mse")
        found = audit(model, settings=Settings(select=("BN027",)))
        said[name] = {
            "findings": [(one.norm, one.severity) for one in found.findings],
            "skipped": [one.reason for one in found.skipped],
        }
    json.dump(said, sys.stdout)


if __name__ == "__main__":
    main()
