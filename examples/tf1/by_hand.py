"""Batch norm by hand: a convolution normalized per feature map and a dense layer per unit.

python examples/tf1/by_hand.py FOLDER    # with the four IDX files of MNIST
"""

import sys

import tensorflow as tf
from tensorflow.examples.tutorials.mnist import input_data

STEPS, BATCH, RATE = 600, 64, 0.003
DECAY, EPSILON = 0.99, 0.001


def batch_norm(inputs, axes, is_training):
    """Normalize over some axes; also return how far the formula, written out, is from it."""
    size = [int(inputs.shape[-1])]
    scale, shift = tf.Variable(tf.ones(size)), tf.Variable(tf.zeros(size))
    population_mean = tf.Variable(tf.zeros(size), trainable=False)
    population_variance = tf.Variable(tf.ones(size), trainable=False)

    def of_batch():
        mean, variance = tf.nn.moments(inputs, axes)
        keep_mean = tf.assign(population_mean, DECAY * population_mean + (1 - DECAY) * mean)
        keep_variance = tf.assign(
            population_variance, DECAY * population_variance + (1 - DECAY) * variance
        )
        # Whoever takes the batch's statistics also moves the population's.
        with tf.control_dependencies([keep_mean, keep_variance]):
            return tf.identity(mean), tf.identity(variance)

    def of_population():
        return tf.identity(population_mean), tf.identity(population_variance)

    mean, variance = tf.cond(is_training, of_batch, of_population)
    normalized = tf.nn.batch_normalization(inputs, mean, variance, shift, scale, EPSILON)
    formula = (inputs - mean) / tf.sqrt(variance + EPSILON) * scale + shift
    return normalized, tf.reduce_max(tf.abs(normalized - formula))


def main(folder):
    mnist = input_data.read_data_sets(folder, reshape=False, seed=0)
    tf.set_random_seed(0)
    images = tf.placeholder(tf.float32, (None, 28, 28, 1))
    labels = tf.placeholder(tf.int64, (None,))
    is_training = tf.placeholder(tf.bool)
    filters = tf.Variable(tf.truncated_normal([5, 5, 1, 8], stddev=0.1))
    maps = tf.nn.conv2d(images, filters, strides=[1, 2, 2, 1], padding="SAME")
    maps, of_maps = batch_norm(maps, [0, 1, 2], is_training)
    flat = tf.reshape(tf.nn.relu(maps), [-1, 14 * 14 * 8])
    units = tf.matmul(flat, tf.Variable(tf.truncated_normal([14 * 14 * 8, 100], stddev=0.05)))
    units, of_units = batch_norm(units, [0], is_training)
    weights, biases = tf.Variable(tf.zeros([100, 10])), tf.Variable(tf.zeros([10]))
    logits = tf.matmul(tf.nn.relu(units), weights) + biases
    loss = tf.losses.sparse_softmax_cross_entropy(labels, logits)
    accuracy = tf.reduce_mean(tf.cast(tf.equal(tf.argmax(logits, 1), labels), tf.float32))
    difference = tf.maximum(of_maps, of_units)
    # Measured before the step changes scale and shift.
    with tf.control_dependencies([difference]):
        train_op = tf.train.AdamOptimizer(RATE).minimize(loss)
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        differences = []
        for _ in range(STEPS):
            x, y = mnist.train.next_batch(BATCH)
            feed = {images: x, labels: y, is_training: True}
            differences.append(session.run([train_op, difference], feed)[1])
        x, y = mnist.test.images, mnist.test.labels
        test = {images: x, labels: y, is_training: False}
        print(f"accuracy {session.run(accuracy, test):.4f}")
        differences.append(session.run(difference, test))
        print(f"difference from the formula {max(differences):.7f}")
        one = [slice(i, i + 1) for i in range(100)]
        for name, own in (("one image at a time", False), ("by its own statistics", True)):
            right = [
                session.run(accuracy, {images: x[i], labels: y[i], is_training: own}) for i in one
            ]
            print(f"{name} {sum(right) / len(right):.2f}")


if __name__ == "__main__":
    main(sys.argv[1])
