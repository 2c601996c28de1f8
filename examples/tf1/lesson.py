"""The MNIST lesson in TF1: three hidden layers with batch norm, fed by placeholders.

python examples/tf1/lesson.py FOLDER    # with the four IDX files of MNIST
"""

import sys

import tensorflow as tf
from tensorflow.examples.tutorials.mnist import input_data

STEPS, BATCH, RATE = 2000, 60, 0.01


def network(images, is_training):
    hidden = images
    for _ in range(3):
        start = tf.random_normal_initializer(stddev=0.05)
        hidden = tf.layers.dense(hidden, 100, use_bias=False, kernel_initializer=start)
        hidden = tf.nn.relu(tf.layers.batch_normalization(hidden, training=is_training))
    return tf.layers.dense(hidden, 10)


def main(folder):
    mnist = input_data.read_data_sets(folder)
    tf.set_random_seed(0)
    images = tf.placeholder(tf.float32, (None, 784))
    labels = tf.placeholder(tf.int64, (None,))
    is_training = tf.placeholder_with_default(False, ())
    logits = network(images, is_training)
    loss = tf.losses.sparse_softmax_cross_entropy(labels, logits)
    accuracy = tf.reduce_mean(tf.cast(tf.equal(tf.argmax(logits, 1), labels), tf.float32))
    # Without these two lines the moving averages would never move.
    update_ops = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
    with tf.control_dependencies(update_ops):
        train_op = tf.train.GradientDescentOptimizer(RATE).minimize(loss)
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        for _ in range(STEPS):
            x, y = mnist.train.next_batch(BATCH)
            session.run(train_op, {images: x, labels: y, is_training: True})
        test = {images: mnist.test.images, labels: mnist.test.labels}
        print(f"accuracy {session.run(accuracy, test):.4f}")
        singly = [
            session.run(accuracy, {images: mnist.test.images[i : i + 1], labels: [y]})
            for i, y in enumerate(mnist.test.labels[:100])
        ]
        print(f"one image at a time {sum(singly) / len(singly):.2f}")


if __name__ == "__main__":
    main(sys.argv[1])
