"""Two graphs side by side: each has its own network, statistics and session.

python examples/tf1/two_graphs.py FOLDER    # with the four IDX files of MNIST
"""

import sys

import numpy as np
import tensorflow as tf
from tensorflow.examples.tutorials.mnist import input_data

STEPS, BATCH = 800, 60


class Learner:
    """A network that trains on batches of its own order."""

    def __init__(self, folder, activation, rate, seed):
        self.mnist = input_data.read_data_sets(folder, seed=seed)
        self.graph = tf.Graph()
        with self.graph.as_default():
            tf.set_random_seed(seed)
            self.images = tf.placeholder(tf.float32, (None, 784))
            self.labels = tf.placeholder(tf.int64, (None,))
            self.is_training = tf.placeholder_with_default(False, ())
            hidden = tf.layers.dense(self.images, 100, use_bias=False)
            hidden = tf.layers.batch_normalization(hidden, training=self.is_training)
            logits = tf.layers.dense(activation(hidden), 10)
            right = tf.equal(tf.argmax(logits, 1), self.labels)
            self.right = tf.reduce_mean(tf.cast(right, tf.float32))
            loss = tf.losses.sparse_softmax_cross_entropy(self.labels, logits)
            # The collection is this graph's: the other network's updates are not in it.
            with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
                self.train_op = tf.train.GradientDescentOptimizer(rate).minimize(loss)
            self.variables = tf.global_variables()
            self.session = tf.Session()
            self.session.run(tf.global_variables_initializer())

    def step(self):
        """Train on the next batch."""
        x, y = self.mnist.train.next_batch(BATCH)
        feed = {self.images: x, self.labels: y, self.is_training: True}
        self.session.run(self.train_op, feed)

    def accuracy(self):
        """Return the share of test images that are read right."""
        test = self.mnist.test
        return self.session.run(self.right, {self.images: test.images, self.labels: test.labels})

    def values(self):
        """Return all weights and statistics."""
        return self.session.run(self.variables)


def main(folder):
    settings = {"relu": (tf.nn.relu, 0.1, 1), "sigmoid": (tf.nn.sigmoid, 3.0, 2)}
    together = {name: Learner(folder, *each) for name, each in settings.items()}
    for _ in range(STEPS):
        for learner in together.values():
            learner.step()
    difference = 0.0
    for name, each in settings.items():
        alone = Learner(folder, *each)
        for _ in range(STEPS):
            alone.step()
        for each in map(np.subtract, alone.values(), together[name].values()):
            difference = max(difference, np.abs(each).max())
        print(f"{name} {together[name].accuracy():.4f}")
    print(f"difference {difference:g}")


if __name__ == "__main__":
    main(sys.argv[1])
