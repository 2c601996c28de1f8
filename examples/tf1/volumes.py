"""Two 3-D networks trained in turn: one restores damaged volumes, the other reads their digits.

Each step trains one network and moves its statistics only, though it runs through both.

python examples/tf1/volumes.py FOLDER    # with the four IDX files of MNIST
"""

import sys

import numpy as np
import tensorflow as tf
from tensorflow.examples.tutorials.mnist import input_data

TURNS, BATCH, RATE, NOISE, TEST = 250, 64, 0.003, 0.5, 1000


def volumes(images):
    """Stack an image as its strokes widen: (n, depth 4, 28, 28, 1) of zeros and ones."""
    levels = np.reshape([0.8, 0.6, 0.4, 0.2], (1, 4, 1, 1, 1))
    return (images.reshape(-1, 1, 28, 28, 1) > levels).astype(np.float32)


def block(layer, inputs, filters, strides, training):
    start = tf.keras.initializers.he_normal()
    outputs = layer(
        inputs, filters, 3, strides, padding="same", use_bias=False, kernel_initializer=start
    )
    outputs = tf.layers.batch_normalization(outputs, momentum=0.99, epsilon=1e-5, training=training)
    return tf.nn.leaky_relu(outputs, alpha=0.2)


def restorer(damaged, training):
    with tf.variable_scope("restorer"):
        hidden = block(tf.layers.conv3d, damaged, 8, (1, 2, 2), training)
        hidden = block(tf.layers.conv3d, hidden, 8, (1, 1, 1), training)
        hidden = block(tf.layers.conv3d_transpose, hidden, 8, (1, 2, 2), training)
        return tf.layers.conv3d(hidden, 1, 3, padding="same", activation=tf.nn.sigmoid)


def reader(inputs, training):
    with tf.variable_scope("reader"):
        hidden = block(tf.layers.conv3d, inputs, 8, (2, 2, 2), training)
        hidden = block(tf.layers.conv3d, hidden, 16, (2, 2, 2), training)
        return tf.layers.dense(tf.layers.flatten(hidden), 10)


def step_of(scope, loss):
    variables = tf.get_collection(tf.GraphKeys.TRAINABLE_VARIABLES, scope)
    with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS, scope)):
        return tf.train.AdamOptimizer(RATE).minimize(loss, var_list=variables)


def main(folder):
    mnist = input_data.read_data_sets(folder, seed=0)
    tf.set_random_seed(0)
    true = tf.placeholder(tf.float32, (None, 4, 28, 28, 1))
    labels = tf.placeholder(tf.int64, (None,))
    training = tf.placeholder_with_default(False, ())
    restored = restorer(true + tf.random_normal(tf.shape(true), stddev=NOISE), training)
    logits = reader(restored, training)
    error = tf.losses.mean_squared_error(true, restored)
    misread = tf.losses.sparse_softmax_cross_entropy(labels, logits)
    accuracy = tf.reduce_mean(tf.cast(tf.equal(tf.argmax(logits, 1), labels), tf.float32))
    # What is restored should be near the truth, and readable.
    losses = {"restorer": error + 0.01 * misread, "reader": misread}
    steps = {scope: step_of(scope, loss) for scope, loss in losses.items()}
    statistics = {
        scope: [v for v in tf.global_variables(scope) if "/moving_" in v.name] for scope in steps
    }
    own, other = [], []
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        for _ in range(TURNS):
            for scope, step in steps.items():
                x, y = mnist.train.next_batch(BATCH)
                before = session.run(statistics)
                session.run(step, {true: volumes(x), labels: y, training: True})
                after = session.run(statistics)
                for each in steps:
                    moves = map(np.subtract, after[each], before[each])
                    (own if each == scope else other).extend(np.abs(m).max() for m in moves)
        test = {true: volumes(mnist.test.images[:TEST]), labels: mnist.test.labels[:TEST]}
        print(f"accuracy of the reader {session.run(accuracy, test):.4f}")
        print(f"error of the restorer {session.run(error, test):.4f}")
        print(f"least move of statistics by their own step {min(own):g}")
        print(f"greatest move by the other step {max(other):g}")


if __name__ == "__main__":
    main(sys.argv[1])
