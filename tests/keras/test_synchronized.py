"""Two replicas on one machine normalize with the statistics of the whole batch."""

import os
import subprocess
import sys

import keras
import pytest

SCRIPT = """
import numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from homeostat import reference
from homeostat.keras import BatchNormalization

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
rng = np.random.default_rng(3)
x = np.concatenate([rng.normal(0, 1, (8, 3)), rng.normal(9, 3, (8, 3))]).astype("float32")
dy = rng.normal(size=x.shape).astype("float32")
parts = [slice(0, 8), slice(8, 16)]
with strategy.scope():
    layer = BatchNormalization(momentum=0.0, synchronized=True, activation="relu")
    layer.build(x.shape)

@tf.function
def step(x, dy):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True)
    return (y, *tape.gradient(y, (x, layer.gamma.value), output_gradients=dy))

def replica(array):
    return strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(array[parts[context.replica_id_in_sync_group]])
    )

results = strategy.run(step, (replica(x), replica(dy)))
y, dx, dgamma = map(strategy.experimental_local_results, results)
exact_y, exact = reference.normalize_batch(x, activation="relu")
gradients = reference.backward(dy, x, activation="relu")
np.testing.assert_allclose(np.concatenate(y), exact_y, rtol=1e-5, atol=1e-5)
np.testing.assert_allclose(np.concatenate(dx), gradients.x, rtol=1e-4, atol=1e-5)
np.testing.assert_allclose(sum(d.numpy() for d in dgamma), gradients.gamma, rtol=1e-4, atol=1e-4)
np.testing.assert_allclose(layer.moving_variance.numpy(), exact.variance, rtol=1e-5)
np.testing.assert_allclose(layer.moving_mean.numpy(), exact.mean, rtol=1e-5)
print("synchronized")
"""


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.distribute is TensorFlow's")
def test_two_replicas_share_their_statistics():
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=os.environ, capture_output=True, text=True
    )
    assert "synchronized" in result.stdout, result.stderr[-4000:]
