"""Nineteen convolutions on MNIST, without batch norm and with it.

python examples/tf1/deep_cnn.py FOLDER    # with the four IDX files of MNIST
"""

import sys

import tensorflow as tf
from tensorflow.examples.tutorials.mnist import input_data

BATCHES, BATCH, RATE, CHUNK = 800, 64, 0.002, 1000


def without_batch_norm(layer, inputs, *args, **kwargs):
    return layer(inputs, *args, activation=tf.nn.relu, **kwargs)


def with_batch_norm(is_training):
    def make(layer, inputs, *args, **kwargs):
        # The shift of the batch norm takes the place of the bias.
        outputs = layer(inputs, *args, use_bias=False, **kwargs)
        return tf.nn.relu(tf.layers.batch_normalization(outputs, training=is_training))

    return make


def network(images, make):
    hidden = images
    for i in range(1, 20):
        strides = 2 if i % 3 == 0 else 1
        hidden = make(tf.layers.conv2d, hidden, 4 * i, 3, strides=strides, padding="same")
    hidden = make(tf.layers.dense, tf.layers.flatten(hidden), 100)
    return tf.layers.dense(hidden, 10)


def run(name, mnist, seed, batch_norm):
    tf.reset_default_graph()
    tf.set_random_seed(seed)
    images = tf.placeholder(tf.float32, (None, 28, 28, 1))
    labels = tf.placeholder(tf.float32, (None, 10))
    is_training = tf.placeholder_with_default(False, ())
    logits = network(images, with_batch_norm(is_training) if batch_norm else without_batch_norm)
    # A yes or no for each digit; without batch norm, every image soon gets the same answers.
    loss = tf.losses.sigmoid_cross_entropy(labels, logits)
    with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
        train_op = tf.train.AdamOptimizer(RATE).minimize(loss)
    right = tf.equal(tf.argmax(logits, 1), tf.argmax(labels, 1))
    correct = tf.reduce_sum(tf.cast(right, tf.float32))
    x, y = mnist.test.images, mnist.test.labels
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        for _ in range(BATCHES):
            batch, targets = mnist.train.next_batch(BATCH)
            session.run(train_op, {images: batch, labels: targets, is_training: True})

        def accuracy(count, size):
            parts = [slice(i, i + size) for i in range(0, count, size)]
            return sum(session.run(correct, {images: x[p], labels: y[p]}) for p in parts) / count

        # In parts, since all 10,000 at once would take gigabytes.
        print(f"{name} {accuracy(len(x), CHUNK):.4f}")
        print(f"{name}, one image at a time {accuracy(100, 1):.2f}")


def main(folder, seed=2):
    for name, batch_norm in (("without", False), ("with", True)):
        mnist = input_data.read_data_sets(folder, one_hot=True, reshape=False, seed=int(seed))
        run(name, mnist, int(seed), batch_norm)


if __name__ == "__main__":
    main(*sys.argv[1:])
