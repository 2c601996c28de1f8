"""Write checkpoints and SavedModels into the folder that is named, and what is in them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np


def write_tf1(folder: Path) -> None:
    """A checkpoint of tf.layers, slim, renorm, partitioned variables, slots and averages."""
    import tensorflow.compat.v1 as native

    import homeostat.tf1 as tf
    from homeostat.tf1.contrib import slim

    rng = np.random.default_rng(0)
    with native.Graph().as_default(), native.Session() as session:
        x = native.placeholder(native.float32, (None, 6))
        y = slim.batch_norm(x, scale=True, zero_debias_moving_mean=True, scope="slim/BatchNorm")
        y = tf.layers.batch_normalization(y, training=True, name="bn10")
        y = tf.layers.batch_normalization(y, training=True, name="bn2", renorm=True, scale=False)
        with native.variable_scope("parts", partitioner=native.fixed_size_partitioner(3)):
            for name in ("gamma", "beta", "moving_mean", "moving_variance"):
                start = native.random_normal_initializer()
                native.get_variable(f"bn/{name}", (300,), initializer=start)
        train = native.train.AdamOptimizer().minimize(native.reduce_mean(y**3))
        average = native.train.ExponentialMovingAverage(0.9)
        steps = [train, average.apply(), native.get_collection(native.GraphKeys.UPDATE_OPS)]
        session.run(native.global_variables_initializer())
        for _ in range(3):
            session.run(steps, {x: rng.normal(3, 2, (16, 6))})
        native.train.Saver().save(session, str(folder / "model.ckpt"), global_step=3)
    save_expected(folder / "model.ckpt-3", folder)


def write_objects(folder: Path) -> None:
    """Checkpoints by objects: of tf-keras and Keras, and SavedModels of both."""
    import keras
    import tensorflow as tf
    import tf_keras

    for library in (keras, tf_keras):
        layers = library.layers
        stack = [layers.Input((4, 4, 2)), layers.Conv2D(3, 3)]
        stack += [part for _ in range(11) for part in (layers.BatchNormalization(), layers.ReLU())]
        model = library.Sequential([*stack, layers.Dense(2)])
        rng = np.random.default_rng(1)
        model.set_weights([rng.uniform(0.5, 2, w.shape) for w in model.get_weights()])
        name = library.__name__
        home = folder / name
        tf.train.Checkpoint(model=model).write(str(home / "weights"))
        tf.saved_model.save(model, str(home / "saved"))
        if library is keras:
            model.export(home / "exported", verbose=False)
        norms = [layer for layer in model.layers if "norm" in layer.name]
        np.savez(home / "expected.npz", *[np.stack(layer.get_weights()) for layer in norms])


def save_expected(prefix: Path, folder: Path) -> None:
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(prefix))
    found = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    np.savez(folder / "expected.npz", **found)


def main() -> None:
    folder = Path(sys.argv[1])
    # The TF1 front door turns eager execution off for good.
    for name, write in (("objects", write_objects), ("tf1", write_tf1)):
        (folder / name).mkdir()
        write(folder / name)


if __name__ == "__main__":
    main()
